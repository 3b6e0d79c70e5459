# SPDX-License-Identifier: Apache-2.0
"""One card for each requested video, made from the XComs and task states of a run. Pure: no database, no HTML.

XComs are recognized by their shape, not by the class of the task that pushed them. So subclasses, ``@task.wan`` and
functions that use the hooks are shown too.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_wan.durable.record import QUARANTINE


class CardState(StrEnum):
    """The state of a card's video: its text, its filter, its style, and the text in place of a video."""

    filter_name: str
    css_class: str
    without_video: str

    def __new__(cls, text: str, filter_name: str, css_class: str, without_video: str = "no video") -> Self:
        """Add the facts to the text."""
        state = str.__new__(cls, text)
        state._value_ = text
        state.filter_name, state.css_class, state.without_video = filter_name, css_class, without_video
        return state

    LANDED = "landed", "landed", "good"
    #: Landed in quarantine: a check found something wrong.
    REJECTED = "rejected", "rejected", "bad"
    SUCCEEDED = "succeeded", "open", "good", "not landed yet"
    OPEN = "in progress", "open", "wait", "not finished yet"
    #: Of a running batch: no request was sent for it yet.
    WAITING = "to do", "todo", "dim", "not submitted yet"
    #: Charged, or about to be, and no task of this run lands it.
    NOT_LANDED = "paid but not landed", "not_landed", "bad", "paid for, not landed"
    #: A submit without a usable answer: it may have been charged, and a person has to settle it.
    UNKNOWN = "may have been bought", "unknown", "bad", "may have been bought"
    FAILED = "generation failed", "failed", "bad"
    TASK_FAILED = "task failed", "failed", "bad"
    TIMED_OUT = "timed out", "failed", "bad"
    CANCELLED = "cancelled", "failed", "bad", "cancelled, not charged"
    REFUSED = "refused", "refused", "bad", "nothing was bought"
    #: Of a batch that ended: a limit, a deadline or an empty balance came first, and nothing was bought.
    LEFT = "left undone", "left", "wait", "a rerun continues with it"


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice of cards. The summary counts the same groups under the same labels.

    :param is_rare: shown only where it selects something.
    """

    label: str
    states: frozenset[CardState]
    is_rare: bool


_LABELS = {
    "all": "all",
    "landed": "landed",
    "rejected": "rejected",
    "open": "in progress",
    "todo": "to do",
    "not_landed": "paid but not landed",
    "unknown": "may have been bought",
    "failed": "failed",
    "refused": "refused",
    "left": "left undone",
}
_RARE = {"rejected", "todo", "not_landed", "unknown", "left"}
#: Filters by their name in the address of a page. Each state is in exactly one of them, besides ``all``.
FILTERS: Mapping[str, Filter] = {
    name: Filter(
        label, frozenset(state for state in CardState if name in ("all", state.filter_name)), name in _RARE
    )
    for name, label in _LABELS.items()
}
#: A page of a run that has one of these is updated while it is open.
LIVE = FILTERS["open"].states | FILTERS["todo"].states

#: XCom keys that cards are made from.
KEYS = ("return_value", "request", "failed", "refused", "progress", "summary")

#: Operators that submit requests; a task of theirs that has pushed nothing yet gets a card too.
SUBMITTERS = frozenset({"WanSubmitOperator", "WanDecoratedOperator", "WanBatchOperator"})
LANDERS = frozenset({"WanToGCSOperator"})
#: Operators that buy nothing: their failures are never refusals of an image.
BUYS_NOTHING = LANDERS | {
    "WanRequestSensor",
    "WanCancelOperator",
    "WanContactSheetOperator",
    "WanPrepareImagesOperator",
}
TASK_OVER = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
RUN_OVER = frozenset({"success", "failed"})

_STATE_OF_ERROR = {
    "WanCancelledError": CardState.CANCELLED,
    "WanTimeoutError": CardState.TIMED_OUT,
    "WanUnknownSubmissionError": CardState.UNKNOWN,
    "WanGenerationFailedError": CardState.FAILED,
}
_REFUSALS = frozenset({"WanInputError", "WanRefusedError", "WanBalanceError", "WanAuthError"})
#: Names of inputs that take an image, such as ``image_url``, ``start_image_url`` and ``first_frame``.
_IMAGE_INPUT = re.compile(r"img|image|frame")
_NO_LANDING = "No task of this run lands this request."

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
    :param src: its relative address, for a page that is a file.
    :param facts: size, length and sound, in words.
    :param defect: what its checks found wrong, in words.
    """

    uri: str
    ref: XComRef | None = None
    src: str = ""
    facts: str = ""
    defect: str = ""

    @classmethod
    def of(cls, plain: Mapping[str, Any], ref: XComRef | None = None, src: str = "") -> CardVideo:
        """Read a landed video from an XCom or a record."""
        facts, verdict = _mapping(plain.get("facts")), _mapping(plain.get("verdict"))
        defect = str(verdict.get("detail") or "") if verdict.get("status") == "bad" else ""
        return cls(str(plain["uri"]), ref, src, _facts_text(facts), defect)

    @property
    def is_rejected(self) -> bool:
        """Whether it is in quarantine."""
        return self.uri.split("/")[-2:-1] == [QUARANTINE]


@dataclass(frozen=True, slots=True)
class Card:
    """What a page shows of one requested video.

    :param ref: the XCom that names the inputs.
    :param image: address of the source image, without signature.
    :param thumbnail: small picture of the image as a ``data:`` address, for a page that is a file.
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
    submitted_at: str | None = None
    created_at: str | None = None
    finished_at: str | None = None
    error: str | None = None
    videos: tuple[CardVideo, ...] = ()
    thumbnail: str = ""
    record: str | None = None
    failed_in: TaskInstanceKey | None = None

    @property
    def name(self) -> str:
        """File name of the source image, else of the video; empty if there is neither."""
        return file_name(self.image) or (file_name(self.videos[0].uri) if self.videos else "")

    @property
    def is_usable(self) -> bool:
        """Whether its video landed, and no check found something wrong with it."""
        return self.state is CardState.LANDED and not any(video.defect for video in self.videos)

    @property
    def title(self) -> str:
        """The name, else the request or the task."""
        request = f"request {self.request_id}" if self.request_id else ""
        return self.name or request or task_name(self.ref.task) or "video"

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


def image_key(card: Card) -> int:
    """Return a number that cards of the same source image share; a card without an image has its own."""
    return hash(card.image or card.ref)


def facts_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts in a request's XCom or record as fields of a :class:`Card`."""
    inputs = plain.get("inputs")
    return {
        "inputs": dict(inputs) if isinstance(inputs, Mapping) else {},
        **{
            name: plain.get(name)
            for name in ("model_id", "variation", "cost_usd", "submitted_at", "created_at", "finished_at")
        },
    }


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


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures about many cards.

    :param counts: the number of cards in each state.
    :param cost_usd: the known costs.
    :param requests: the number of cards with a request id.
    :param usable: the number of usable videos.
    :param models: the ids of the models, in order.
    """

    counts: Counter[CardState] = field(default_factory=Counter)
    cost_usd: float = 0.0
    requests: int = 0
    usable: int = 0
    models: tuple[str, ...] = ()

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.counts + other.counts,
            self.cost_usd + other.cost_usd,
            self.requests + other.requests,
            self.usable + other.usable,
            tuple(dict.fromkeys((*self.models, *other.models))),
        )

    @classmethod
    def of(cls, cards: Collection[Card]) -> Totals:
        """Add up cards."""
        return cls(
            Counter(card.state for card in cards),
            sum(card.cost_usd or 0.0 for card in cards),
            sum(bool(card.request_id) for card in cards),
            sum(card.is_usable for card in cards),
            tuple(dict.fromkeys(card.model_id for card in cards if card.model_id)),
        )


class CardList:
    """Cards in memory, as one source of a page."""

    def __init__(self, cards: Sequence[Card]) -> None:
        self._cards = cards
        self.totals = Totals.of(cards)

    def find(self, states: Collection[CardState], name: str = "") -> Sequence[int]:
        """Return the numbers of the cards in these states whose image or video has a name that contains ``name``."""
        name = name.casefold()
        return [n for n, card in enumerate(self._cards) if card.state in states and _has_name(card, name)]

    def cards(self, numbers: Iterable[int]) -> list[Card]:
        """Return cards by their numbers."""
        return [self._cards[number] for number in numbers]

    def image_key(self, number: int) -> int:
        """Return a number that cards of the same source image share."""
        return image_key(self._cards[number])


def _has_name(card: Card, name: str) -> bool:
    names = (file_name(card.image), *(file_name(video.uri) for video in card.videos))
    return not name or any(name in shown.casefold() for shown in names)


def cards_of(
    entries: Iterable[Entry],
    tasks: Sequence[RunTask] = (),
    *,
    batches: Collection[TaskInstanceKey] = (),
    run_is_over: bool = False,
) -> list[Card]:
    """Make the cards of a run, in the order of its tasks and map indexes.

    :param entries: its XComs under :data:`KEYS`.
    :param tasks: its task instances of this provider.
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
    if run_is_over or _landings_are_over(tasks):
        cards = [_not_landing(card) for card in cards]
    return sorted(cards, key=lambda card: (card.ref.task_id, card.ref.map_index, card.ref.index))


class _JoinedCards:
    """Cards by request id, joined from the XComs of several tasks about the same request.

    :param operators: class names by task instance.
    """

    def __init__(self, operators: Mapping[TaskInstanceKey, str]) -> None:
        self._operators = operators
        self.by_request: dict[str, Card] = {}
        self.others: list[Card] = []

    def add_request(self, entry: Entry) -> None:
        value = entry.value
        if not _is_request(value):
            return
        ref = XComRef(entry.task_id, entry.map_index, entry.key)
        card = self.by_request.get(value["request_id"]) or Card(CardState.OPEN, ref, value["request_id"])
        facts = {name: fact for name, fact in facts_of(value).items() if _is_unset(getattr(card, name))}
        self.by_request[value["request_id"]] = replace(
            card,
            state=CardState.SUCCEEDED if value.get("state") == "succeeded" else card.state,
            # The card belongs to the task that submitted: the one that names the inputs.
            ref=ref if value.get("inputs") and not card.inputs else card.ref,
            image=card.image or image_at(value, 0),
            **facts,
        )

    def add_videos(self, entry: Entry) -> None:
        if not isinstance(entry.value, list):
            return
        for number, video in enumerate(entry.value):
            if not _is_video(video):
                continue
            ref = XComRef(entry.task_id, entry.map_index, entry.key, number)
            request_id = video["request_id"]
            card = self.by_request.get(request_id) or Card(CardState.LANDED, ref, request_id)
            if video["uri"] not in {known.uri for known in card.videos}:
                shown = CardVideo.of(video, ref)
                videos = (*card.videos, shown)
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


def _is_unset(value: Any) -> bool:
    return value is None or value == {}


def _is_request(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("request_id"), str)
        and ("fingerprint" in value or "state" in value)
    )


def _is_video(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("request_id"), str)
        and str(value.get("uri", "")).startswith("gs://")
    )


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
    ref = XComRef(task.task_id, task.map_index, "")
    match task.state:
        case "failed":
            return Card(CardState.TASK_FAILED, ref, error="The task failed. Its log has the reason.")
        case "upstream_failed":
            text = "A task before this one failed. Nothing was bought."
            return Card(CardState.TASK_FAILED, ref, error=text)
    return Card(CardState.OPEN, ref)


def _landings_are_over(tasks: Iterable[RunTask]) -> bool:
    """Return whether the run has landing tasks and none of them can run any more."""
    landings = [task.state in TASK_OVER for task in tasks if task.operator in LANDERS]
    return bool(landings) and all(landings)


def _not_landing(card: Card) -> Card:
    """Return the card of a request that no task is going to land."""
    if card.state in (CardState.SUCCEEDED, CardState.OPEN) and card.request_id:
        return replace(card, state=CardState.NOT_LANDED, error=card.error or _NO_LANDING)
    return card


def image_at(value: Any, index: int) -> str | None:
    """Return the address of the source image that an XCom's value names."""
    if isinstance(value, list):
        value = value[index] if index < len(value) else None
    if not isinstance(value, Mapping):
        return None
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
    if isinstance(value, list) and 0 <= index < len(value) and _is_video(value[index]):
        found: Mapping[str, Any] = value[index]
        return found
    return None
