# SPDX-License-Identifier: Apache-2.0
"""A card: what a page shows of one requested video, and where in a run it comes from."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_wan.durable.record import QUARANTINE


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
        facts, verdict = mapping_or_empty(plain.get("facts")), mapping_or_empty(plain.get("verdict"))
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
        return name or (f"request {self.request_id}" if self.request_id else task_name(self.ref.task)) or "video"

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
    return {
        "inputs": dict(mapping_or_empty(plain.get("inputs"))),
        **{name: plain.get(name) for name in names},
    }


def state_of_videos(videos: Collection[CardVideo]) -> CardState:
    """Return the state of a request by its videos in the bucket."""
    return CardState.REJECTED if all(video.is_rejected for video in videos) else CardState.LANDED


def mapping_or_empty(value: Any) -> Mapping[str, Any]:
    """Return a value from outside that should be a mapping, or an empty mapping if it is not one."""
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
