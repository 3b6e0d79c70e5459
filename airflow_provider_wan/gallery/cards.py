# SPDX-License-Identifier: Apache-2.0
"""One card for each requested video, made from the XComs, task states and batch files of a run. No database, no HTML.

XComs are recognized by their shape, not by the class of the task that pushed them. So subclasses, ``@task.wan`` and
functions that use the hooks are shown too. A batch names a file in the bucket with a line for each of its images: the
status file while it runs, then its manifest.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_wan.batch.results import Progress
from airflow_provider_wan.durable.record import QUARANTINE
from airflow_provider_wan.gallery import BUYS_NOTHING, LANDERS, SUBMITTERS


class CardState(StrEnum):
    """The state of a card's video, the filter that selects it, its style, and the text in place of a video."""

    group: str
    css_class: str
    without_video: str

    def __new__(cls, text: str, group: str, css_class: str, without_video: str = "no video") -> Self:
        """Add the facts to the text."""
        state = str.__new__(cls, text)
        state._value_ = text
        state.group, state.css_class, state.without_video = group, css_class, without_video
        return state

    LANDED = "landed", "landed", "good"
    #: Landed in quarantine: a check found something wrong.
    REJECTED = "rejected", "rejected", "bad"
    SUCCEEDED = "succeeded", "in progress", "good", "not landed yet"
    OPEN = "in progress", "in progress", "wait", "not finished yet"
    #: Of a running batch: no request was sent for it yet.
    WAITING = "to do", "to do", "dim", "not submitted yet"
    #: Charged, or about to be, and no task of this run lands it.
    NOT_LANDED = "paid but not landed", "paid but not landed", "bad", "paid for, not landed"
    #: A submit without a usable answer: it may have been charged, and a person has to settle it.
    UNKNOWN = "may have been bought", "may have been bought", "bad", "may have been bought"
    FAILED = "generation failed", "failed", "bad"
    TASK_FAILED = "task failed", "failed", "bad"
    TIMED_OUT = "timed out", "failed", "bad"
    CANCELLED = "cancelled", "failed", "bad", "cancelled, not charged"
    REFUSED = "refused", "refused", "bad", "nothing was bought"
    #: Of a batch that ended: a limit, a deadline or an empty balance came first, and nothing was bought.
    LEFT = "left undone", "left undone", "wait", "a rerun continues with it"


#: Filters by name: a choice of states. Each state is in exactly one of them, besides ``all``.
FILTERS: Mapping[str, frozenset[CardState]] = {"all": frozenset(CardState)} | {
    group: frozenset(state for state in CardState if state.group == group)
    for group in dict.fromkeys(state.group for state in CardState)
}
#: Filters that are shown only where they select something.
RARE_FILTERS = frozenset({"rejected", "to do", "paid but not landed", "may have been bought", "left undone"})
#: A page of a run that has one of these is updated while it is open.
LIVE = FILTERS["in progress"] | FILTERS["to do"]

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

TaskInstanceKey = tuple[str, int]


class OfTask:
    """Something of one task instance."""

    __slots__ = ()
    task_id: str
    map_index: int

    @property
    def task(self) -> TaskInstanceKey:
        """The task instance."""
        return self.task_id, self.map_index


@dataclass(frozen=True, slots=True)
class XComRef(OfTask):
    """Where in a run a value is: an XCom, and an index into it where that is a list."""

    task_id: str
    map_index: int = -1
    key: str = "return_value"
    index: int = 0


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


@dataclass(frozen=True, slots=True)
class CardVideo:
    """A landed video.

    :param ref: where it is in the run, for a page in Airflow.
    :param src: its address on the page.
    :param poster: its poster frame: the name of the object, then the address on the page; empty: none.
    :param download: the address that saves it as a file; default: ``src``.
    :param facts: size, length and sound, in words.
    :param verdict: ``good``, ``bad``, or empty: not checked.
    :param defect: what its checks found wrong, in words.
    """

    uri: str
    ref: XComRef | None = None
    src: str = ""
    poster: str = ""
    download: str = ""
    facts: str = ""
    verdict: str = ""
    defect: str = ""

    @classmethod
    def of(cls, plain: Mapping[str, Any], ref: XComRef | None = None) -> CardVideo:
        """Read a landed video from an XCom or a record."""
        facts, verdict = _mapping(plain.get("facts")), _mapping(plain.get("verdict"))
        status = str(verdict.get("status") or "")
        return cls(
            str(plain["uri"]),
            ref,
            poster=str(facts.get("poster") or ""),
            facts=_facts_text(facts),
            verdict=status,
            defect=str(verdict.get("detail") or "") if status == "bad" else "",
        )

    @property
    def name(self) -> str:
        """Its file name."""
        return file_name(self.uri)

    @property
    def is_rejected(self) -> bool:
        """Whether it is in quarantine."""
        return self.uri.split("/")[-2:-1] == [QUARANTINE]


@dataclass(frozen=True, slots=True)
class Card:
    """What a page shows of one requested video.

    :param ref: the XCom that names the inputs.
    :param image: address of the source image, without signature.
    :param earlier_usd: what earlier takes of the video cost, which were rejected.
    :param thumbnail: address of a small picture of the image on the page.
    :param record: address of the journal's record, if that has not been read yet.
    :param failed_in: the task instance that failed, where it is not the one of ``ref``.
    """

    state: CardState
    ref: XComRef
    request_id: str | None = None
    image: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    model_id: str | None = None
    variation: str | None = None
    cost_usd: float | None = None
    earlier_usd: float = 0.0
    submitted_at: str | None = None
    created_at: str | None = None
    finished_at: str | None = None
    error: str | None = None
    videos: tuple[CardVideo, ...] = ()
    thumbnail: str = ""
    record: str | None = None
    failed_in: TaskInstanceKey | None = None

    @property
    def image_key(self) -> str:
        """A text that cards of the same source image share; a card without an image has its own."""
        return self.image or str(self.ref)

    @property
    def verdict(self) -> str:
        """What its checks found: ``good``, ``bad``, or ``none``: not checked; empty: there is no video."""
        verdicts = {video.verdict or "none" for video in self.videos}
        if self.state is CardState.REJECTED:
            return "bad"
        return next((verdict for verdict in ("bad", "none", "good") if verdict in verdicts), "")

    @property
    def is_usable(self) -> bool:
        """Whether its video landed, and no check found something wrong with it."""
        return self.state is CardState.LANDED and self.verdict != "bad"

    @property
    def title(self) -> str:
        """File name of the source image, else of the video, else the request or the task."""
        name = file_name(self.image) or (file_name(self.videos[0].uri) if self.videos else "")
        return (
            name or (f"request {self.request_id}" if self.request_id else task_name(self.ref.task)) or "video"
        )

    @property
    def names(self) -> str:
        """The file names that a search looks at."""
        return "\t".join([file_name(self.image), *(video.name for video in self.videos)]).casefold()

    @property
    def tasks(self) -> list[tuple[str, TaskInstanceKey]]:
        """Its task instances, with a label for each."""
        tasks = (("task", self.ref.task), ("failed in", self.failed_in))
        return [(label, task) for label, task in tasks if task and task[0]]

    @property
    def seconds(self) -> float | None:
        """Seconds from submit to finish at RunComfy."""
        first = self.created_at or self.submitted_at
        try:
            if first and self.finished_at:
                took = datetime.fromisoformat(self.finished_at) - datetime.fromisoformat(first)
                return took.total_seconds()
        except (ValueError, TypeError):
            pass
        return None


def facts_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts in a request's XCom or record as fields of a :class:`Card`."""
    names = ("model_id", "variation", "cost_usd", "submitted_at", "created_at", "finished_at")
    return {"inputs": dict(_mapping(plain.get("inputs"))), **{name: plain.get(name) for name in names}}


def state_of_videos(videos: Collection[CardVideo]) -> CardState:
    """Return the state of a request by its videos in the bucket."""
    return CardState.REJECTED if all(video.is_rejected for video in videos) else CardState.LANDED


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _facts_text(facts: Mapping[str, Any]) -> str:
    """Return the size, length and sound of a video in words, as far as they are known."""
    width, height, seconds = facts.get("width"), facts.get("height"), facts.get("duration_s")
    parts = [f"{width} x {height}"] if width and height else []
    if isinstance(seconds, int | float):
        parts.append(f"{seconds:g} s")
    if facts.get("has_audio"):
        parts.append("with sound")
    return ", ".join(parts)


def split_address(address: str | None) -> SplitResult:
    """Split an address from anywhere; one that is malformed has no parts."""
    try:
        return urlsplit(address or "")
    except ValueError:
        return urlsplit("")


def file_name(address: str | None) -> str:
    """Return the file name in an address, readable."""
    if address and address.startswith("gs://"):
        return posixpath.basename(address)  # names of objects are not quoted, and may have ? and #
    return unquote(posixpath.basename(split_address(address).path))


def task_name(task: TaskInstanceKey) -> str:
    """Return how pages name a task instance."""
    task_id, map_index = task
    return task_id if map_index < 0 else f"{task_id} [{map_index}]"


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
    value = _mapping(value)
    found = value.get("image") or value.get("img_url") or _image_of_inputs(_mapping(value.get("inputs")))
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
        uri, request_id, fingerprint = (
            _text(line.get(name)) for name in ("uri", "request_id", "fingerprint")
        )
        verdict, reasons = str(line.get("verdict") or ""), line.get("reasons")
        # The record has more about the defect than the names of the checks that found it.
        defect = ", ".join(map(str, reasons)) if verdict == "bad" and isinstance(reasons, list) else ""
        takes = line.get("takes")
        earlier = (
            [_number(_mapping(take).get("cost_usd")) for take in takes] if isinstance(takes, list) else []
        )
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
            value = _mapping(entry.value)
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
    given: dict[str, Any] = {field.name: _mapping(value).get(field.name) for field in fields(Progress)}
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in given.values()):
        return ""
    return Progress(**given).line()


def problems_of(batches: Iterable[BatchStatus], entries: Iterable[Entry]) -> list[str]:
    """Return why batches of a run failed."""
    tasks = {batch.task for batch in batches}
    return sorted(
        f"{task_name(entry.task)}: {_mapping(entry.value).get('error') or 'failed'}"
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
    videos = [
        CardVideo.of(landed[video.uri], video.ref) if video.uri in landed else video for video in card.videos
    ]
    return replace(card, videos=tuple(videos), **facts)


def _gs_uri(value: Any) -> str | None:
    return value if isinstance(value, str) and value.startswith("gs://") else None


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _number(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None
