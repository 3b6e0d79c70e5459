# SPDX-License-Identifier: Apache-2.0
"""Make the cards of a run from its XComs, task states and batch files. No database, no HTML.

XComs are recognized by their shape, not by the class of the task that pushed them. So subclasses, ``@task.wan`` and
functions that use the hooks are shown too. A batch names a file in the bucket with a line for each of its images: the
status file while it runs, then its manifest.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from airflow_provider_wan.batch.results import Progress
from airflow_provider_wan.gallery import BUYS_NOTHING, LANDERS, SUBMITTERS
from airflow_provider_wan.gallery.cards import (
    Card,
    CardState,
    CardVideo,
    OfTask,
    TaskInstanceKey,
    XComRef,
    facts_of,
    mapping_or_empty,
    state_of_videos,
    task_name,
)

#: XCom keys that name the file of a batch, the later over the earlier; and the field that has its address.
FILE_KEYS = {"progress": "standing", "summary": "manifest"}
#: XCom keys that cards are made from.
KEYS = ("return_value", "request", "failed", "refused", *FILE_KEYS)
#: Key of a :class:`XComRef` to a line of the file that a batch names.
MANIFEST = "manifest"

TASK_OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
RUN_OVER = frozenset({"success", "failed"})

_STATE_OF_ERROR = {
    "WanCancelledError": CardState.CANCELLED,
    "WanTimeoutError": CardState.TIMED_OUT,
    "WanUnknownSubmissionError": CardState.UNKNOWN,
    "WanGenerationFailedError": CardState.FAILED,
}
_REFUSALS = frozenset({"WanInputError", "WanRefusedError", "WanBalanceError", "WanAuthError"})
_STATE_OF_OUTCOME = {
    "landed": CardState.LANDED,
    "reused": CardState.LANDED,
    "rejected": CardState.REJECTED,
    "cancelled": CardState.CANCELLED,
    "refused": CardState.REFUSED,
    "unknown": CardState.UNKNOWN,
    "not_landed": CardState.NOT_LANDED,
    "no_output": CardState.NOT_LANDED,
    "in_flight": CardState.OPEN,
    "to_do": CardState.WAITING,
    "left": CardState.LEFT,
}
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
#: Names of inputs that take an image, such as ``image_url``, ``start_image_url`` and ``first_frame``.
_IMAGE_INPUT = re.compile(r"img|image|frame")


@dataclass(frozen=True, slots=True)
class Entry(OfTask):
    """An XCom of the run."""

    task_id: str
    map_index: int
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class RunTask(OfTask):
    """A task instance of this provider.

    :param state: its state in Airflow; None: not scheduled yet.
    :param operator: name of its class.
    """

    task_id: str
    map_index: int
    state: str | None
    operator: str = "WanSubmitOperator"


# -- requests: cards from XComs ----------------------------------------------------------------------------------


def cards_of(
    entries: Iterable[Entry],
    tasks: Sequence[RunTask] = (),
    *,
    batches: Collection[TaskInstanceKey] = (),
    run_is_over: bool = False,
) -> list[Card]:
    """Make the cards of a run, in the order of its tasks and map indexes.

    :param entries: its XComs under :data:`KEYS`.
    :param batches: task instances whose videos come from a file; how such a task failed is no card.
    :param run_is_over: whether no task of the run can run any more.
    """
    entries = sorted(entries, key=lambda entry: (entry.task_id, entry.map_index, entry.key != "return_value"))
    joined = _JoinedCards({task.task: task.operator for task in tasks})
    for entry in entries:
        if entry.key in ("return_value", "request"):
            joined.add_request(entry)
    for entry in entries:
        if entry.key == "return_value":
            joined.add_videos(entry)
    for entry in entries:
        if entry.key == "failed" and entry.task not in batches:
            joined.add_failure(entry)
        elif entry.key == "refused":
            joined.others += _refused(entry)
    cards = [*joined.by_request.values(), *joined.others]
    with_xcoms = {card.ref.task for card in cards} | {entry.task for entry in entries}
    cards += [
        _without_xcom(task)
        for task in tasks
        if task.operator in SUBMITTERS
        and task.task not in with_xcoms
        and task.state not in ("success", "skipped", "removed")
    ]
    landings = [task.state in TASK_OVER for task in tasks if task.operator in LANDERS]
    if run_is_over or (landings and all(landings)):
        cards = [_not_landing(card) for card in cards]
    return sorted(cards, key=lambda card: (card.ref.task_id, card.ref.map_index, card.ref.index))


class _JoinedCards:
    """Cards by request id, joined from the XComs of several tasks about the same request."""

    def __init__(self, operators: Mapping[TaskInstanceKey, str]) -> None:
        self._operators = operators
        self.by_request: dict[str, Card] = {}
        self.others: list[Card] = []

    def add_request(self, entry: Entry) -> None:
        value = entry.value
        if not _has_request(value) or not ("fingerprint" in value or "state" in value):
            return
        ref = XComRef(entry.task_id, entry.map_index, entry.key)
        card = self.by_request.get(value["request_id"]) or Card(CardState.OPEN, ref, value["request_id"])
        facts = {name: fact for name, fact in facts_of(value).items() if getattr(card, name) in (None, {})}
        self.by_request[value["request_id"]] = replace(
            card,
            state=CardState.SUCCEEDED if value.get("state") == "succeeded" else card.state,
            # The card belongs to the task that submitted: the one that names the inputs.
            ref=ref if value.get("inputs") and not card.inputs else card.ref,
            image=card.image or image_at(value, 0),
            **facts,
        )

    def add_videos(self, entry: Entry) -> None:
        for number in range(len(entry.value) if isinstance(entry.value, list) else 0):
            video = video_at(entry.value, number)
            if video is None:
                continue
            ref = XComRef(entry.task_id, entry.map_index, entry.key, number)
            request_id = video["request_id"]
            card = self.by_request.get(request_id) or Card(CardState.LANDED, ref, request_id)
            if video["uri"] not in {known.uri for known in card.videos}:
                videos = (*card.videos, CardVideo.of(video, ref))
                card = replace(card, state=state_of_videos(videos), videos=videos)
            self.by_request[request_id] = card

    def add_failure(self, entry: Entry) -> None:
        if not isinstance(entry.value, Mapping):
            return
        request_id = entry.value.get("request_id")
        kind, error = str(entry.value.get("kind") or ""), str(entry.value.get("error") or "")
        known = self.by_request.get(str(request_id)) if request_id else None
        if known is None:
            ref = XComRef(entry.task_id, entry.map_index, entry.key)
            state = _STATE_OF_ERROR.get(kind, CardState.TASK_FAILED)
            if kind in _REFUSALS and not request_id and self._operators.get(entry.task) not in BUYS_NOTHING:
                state = CardState.REFUSED
            self.others.append(Card(state, ref, request_id, error=error))
        elif known.state not in (CardState.LANDED, CardState.REJECTED):
            is_paid = known.state is CardState.SUCCEEDED
            default = CardState.NOT_LANDED if is_paid else CardState.TASK_FAILED
            self.by_request[str(request_id)] = replace(
                known,
                state=_STATE_OF_ERROR.get(kind, default),
                error=error,
                failed_in=entry.task if entry.task != known.ref.task else None,
            )


def _has_request(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("request_id"), str)


def _refused(entry: Entry) -> list[Card]:
    rows = entry.value if isinstance(entry.value, list) else [entry.value]
    return [
        Card(
            CardState.REFUSED,
            XComRef(entry.task_id, entry.map_index, entry.key, number),
            image=image_at(entry.value, number),
            error=str(row.get("rule") or row.get("error") or ""),
        )
        for number, row in enumerate(rows)
        if isinstance(row, Mapping)
    ]


def _without_xcom(task: RunTask) -> Card:
    """Make the card of a submitting task that has pushed nothing: it has not started, or it died."""
    error = {
        "failed": "The task failed. Its log has the reason.",
        "upstream_failed": "A task before this one failed. Nothing was bought.",
    }.get(task.state or "")
    return Card(CardState.TASK_FAILED if error else CardState.OPEN, XComRef(*task.task, key=""), error=error)


def _not_landing(card: Card) -> Card:
    """Return the card of a request that no task is going to land."""
    if card.state in (CardState.SUCCEEDED, CardState.OPEN) and card.request_id:
        error = card.error or "No task of this run lands this request."
        return replace(card, state=CardState.NOT_LANDED, error=error)
    return card


def image_at(value: Any, index: int) -> str | None:
    """Return the address of the source image that an XCom's value names."""
    if isinstance(value, list):
        value = value[index] if index < len(value) else None
    value = mapping_or_empty(value)
    found = value.get("image") or value.get("img_url") or _image_of_inputs(mapping_or_empty(value.get("inputs")))
    return str(found) if found else None


def image_of_fields(fields: Mapping[str, Any]) -> str:
    """Return the address of the source image in the rendered fields of a task; empty if they name none."""
    named = {name: fields.get(name) for name in ("image", "img_url", "inputs")}
    return image_at({name: value for name, value in named.items() if value != "None"}, 0) or ""


def _image_of_inputs(inputs: Mapping[str, Any]) -> Any:
    """Return the first image among the inputs of any model, preferably not that of the last frame."""
    names = [name for name in inputs if _IMAGE_INPUT.search(str(name)) and inputs[name]]
    names.sort(key=lambda name: "end" in name or "last" in name)
    found = inputs[names[0]] if names else None
    return found[0] if isinstance(found, list) else found


def video_at(value: Any, index: int) -> Mapping[str, Any] | None:
    """Return the landed video that an XCom's value names."""
    video = value[index] if isinstance(value, list) and 0 <= index < len(value) else None
    if isinstance(video, Mapping) and _has_request(video) and str(video.get("uri", "")).startswith("gs://"):
        return video
    return None


# -- batches: cards from the lines of a file ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchStatus(OfTask):
    """Where the state of each image of a batch is written.

    :param uri: of the file with a line for each image; None: not written yet.
    :param journal: ``gs://bucket/prefix`` of the records; None: unknown.
    :param progress: how far it is, in words; empty once it has ended.
    :param is_over: whether its task has ended.
    :param model_id: the model of all its images; None: unknown.
    """

    task_id: str = ""
    map_index: int = -1
    uri: str | None = None
    journal: str | None = None
    progress: str = field(default="", compare=False)
    is_over: bool = False
    model_id: str | None = None

    def cards(self, lines: Iterable[bytes | str]) -> Iterator[tuple[int, str, Card]]:
        """Yield the number, the text and the card of each line that is a JSON object."""
        for number, text in enumerate(lines):
            try:
                yield number, (text if isinstance(text, str) else text.decode()), self.card(number, text)
            except ValueError:
                continue

    def card(self, number: int, text: bytes | str) -> Card:
        """Return the card of a line.

        :raises ValueError: it is no JSON object.
        """
        line = json.loads(text)
        if not isinstance(line, Mapping):
            raise ValueError("not a JSON object")
        ref = XComRef(self.task_id, self.map_index, MANIFEST, number)
        uri, request_id, fingerprint = (_text(line.get(name)) for name in ("uri", "request_id", "fingerprint"))
        verdict, reasons = str(line.get("verdict") or ""), line.get("reasons")
        # The record has more about the defect than the names of the checks that found it.
        defect = ", ".join(map(str, reasons)) if verdict == "bad" and isinstance(reasons, list) else ""
        takes = line.get("takes")
        earlier = [_number(mapping_or_empty(take).get("cost_usd")) for take in takes] if isinstance(takes, list) else []
        record = self.journal and _FINGERPRINT.fullmatch(fingerprint or "")
        return Card(
            self._state(str(line.get("outcome")), request_id),
            ref,
            request_id=request_id,
            image=_text(line.get("image")),
            model_id=self.model_id,
            cost_usd=_number(line.get("cost_usd")),
            earlier_usd=sum(filter(None, earlier)),
            created_at=_text(line.get("created_at")),
            finished_at=_text(line.get("finished_at")),
            error=_text(line.get("error")),
            videos=(CardVideo(uri, ref, verdict=verdict, defect=defect),) if uri else (),
            record=f"{(self.journal or '').rstrip('/')}/{fingerprint}.json" if record else None,
        )

    def _state(self, outcome: str, request_id: str | None) -> CardState:
        state = _STATE_OF_OUTCOME.get(outcome, CardState.FAILED)
        if self.is_over and state in (CardState.LEFT, CardState.OPEN, CardState.WAITING):
            # The task has ended: its requests are paid for, and only a rerun lands them.
            return CardState.NOT_LANDED if request_id else CardState.LEFT
        return state


def batches_of(
    entries: Iterable[Entry], tasks: Iterable[RunTask] = (), *, run_is_over: bool = False
) -> list[BatchStatus]:
    """Find the batches of a run.

    :param run_is_over: whether no task of the run can run any more.
    """
    over = {task.task for task in tasks if task.state in TASK_OVER}
    found: dict[TaskInstanceKey, BatchStatus] = {}
    for key, name in FILE_KEYS.items():
        for entry in entries:
            value = mapping_or_empty(entry.value)
            uri, progress = _gs_uri(value.get(name)), progress_of(value) if key == "progress" else ""
            if entry.key != key or not (uri or progress):
                continue
            is_over = key == "summary" or entry.task in over or run_is_over
            found[entry.task] = BatchStatus(
                *entry.task, uri, _gs_uri(value.get("journal")), "" if is_over else progress, is_over
            )
    return [found[task] for task in sorted(found)]


def progress_of(value: Any) -> str:
    """Return how far a batch is, from its XCom ``progress``; empty if that has another form."""
    given: dict[str, Any] = {field.name: mapping_or_empty(value).get(field.name) for field in fields(Progress)}
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in given.values()):
        return ""
    return Progress(**given).line()


def problems_of(batches: Iterable[BatchStatus], entries: Iterable[Entry]) -> list[str]:
    """Return why batches of a run failed."""
    tasks = {batch.task for batch in batches}
    return sorted(
        f"{task_name(entry.task)}: {mapping_or_empty(entry.value).get('error') or 'failed'}"
        for entry in entries
        if entry.key == "failed" and entry.task in tasks
    )


def with_record(card: Card, record: Mapping[str, Any] | None) -> Card:
    """Return a card completed from the journal's record: inputs, model and times."""
    if record is None or record.get("request_id") != card.request_id:
        return card
    facts = facts_of(record)
    if card.cost_usd is not None:
        facts["cost_usd"] = card.cost_usd
    landed = {video.get("uri"): video for video in record.get("videos") or () if isinstance(video, Mapping)}
    videos = [CardVideo.of(landed[video.uri], video.ref) if video.uri in landed else video for video in card.videos]
    return replace(card, videos=tuple(videos), **facts)


def _gs_uri(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith("gs://") else None


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _number(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None
