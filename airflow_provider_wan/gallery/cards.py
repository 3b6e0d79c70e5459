# SPDX-License-Identifier: Apache-2.0
"""One card a wanted video, made from what a run's tasks have left behind. Pure: no database, no HTML.

XComs are known by their shape, not by the class of the task that pushed them: so subclasses, ``@task.wan`` and
functions that use the hooks are shown too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any


class Look(StrEnum):
    """What a card says about its video."""

    LANDED = "landed"
    SUCCEEDED = "succeeded"
    OPEN = "in progress"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    #: Of a batch that is under way: nothing was bought for it yet.
    WAITING = "to do"
    #: Of a batch that is over: a limit, a deadline or an empty wallet came first.
    LEFT = "left undone"


#: What can be chosen to be shown: the name in the address, and which looks it stands for.
FILTERS: Mapping[str, frozenset[Look]] = {
    "all": frozenset(Look),
    "landed": frozenset({Look.LANDED}),
    "open": frozenset({Look.OPEN, Look.SUCCEEDED}),
    "todo": frozenset({Look.WAITING}),
    "left": frozenset({Look.LEFT}),
    "failed": frozenset({Look.FAILED, Look.CANCELLED}),
    "refused": frozenset({Look.REFUSED}),
}
#: A page with one of these is read again when something has changed.
LIVE = FILTERS["open"] | FILTERS["todo"]

#: XCom keys that cards are made from.
KEYS = ("return_value", "request", "failed", "refused", "progress", "summary")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run something stands: an XCom, and a place in it where that is a list."""

    task_id: str
    map_index: int = -1
    key: str = "return_value"
    place: int = 0

    @property
    def task(self) -> tuple[str, int]:
        """The task instance."""
        return self.task_id, self.map_index


@dataclass(frozen=True, slots=True)
class Entry:
    """An XCom of the run."""

    task_id: str
    map_index: int
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Submitter:
    """A task instance that submits requests.

    :param state: its state in Airflow; None: not yet scheduled.
    """

    task_id: str
    map_index: int
    state: str | None


@dataclass(frozen=True, slots=True)
class Film:
    """One landed video.

    :param src: its address in a page that is a file; a page of Airflow's makes one from ``place``.
    """

    uri: str
    size_bytes: int | None = None
    place: Place | None = None
    src: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What a page shows of one wanted video.

    :param place: of the XCom that says what was wanted.
    :param image: address of the source image, without signature.
    :param thumbnail: address of a small picture of it, in a page that is a file.
    :param record: address of the journal's record, where that is yet to be read.
    """

    look: Look
    place: Place
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
    films: tuple[Film, ...] = ()
    thumbnail: str = ""
    record: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt, or nothing."""
        return str(self.inputs.get("prompt") or "")

    @property
    def seed(self) -> str:
        """The seed, or nothing."""
        seed = self.inputs.get("seed")
        return "" if seed is None else str(seed)

    @property
    def seconds(self) -> float | None:
        """How long it took at RunComfy, from submit to finish."""
        first = self.created_at or self.submitted_at
        try:
            if first and self.finished_at:
                took = datetime.fromisoformat(self.finished_at) - datetime.fromisoformat(first)
                return took.total_seconds()
        except (ValueError, TypeError):
            pass
        return None


@dataclass(frozen=True, slots=True)
class Notes:
    """What is said above the cards of a run.

    :param figures: how far its batches are, a line each.
    :param troubles: why batches ended as they did.
    """

    figures: str = ""
    troubles: tuple[str, ...] = ()


def cards_of(
    entries: Iterable[Entry],
    submitters: Iterable[Submitter],
    batches: Collection[tuple[str, int]] = (),
) -> list[Card]:
    """Make the cards of a run, in the order of its tasks and map indexes.

    :param entries: its XComs under :data:`KEYS`.
    :param submitters: the task instances that submit; one that has left no XCom yet gets a card of its own.
    :param batches: task instances whose videos are told elsewhere: how such a task failed is no card.
    """
    entries = sorted(entries, key=lambda entry: (entry.task_id, entry.map_index, entry.key != "return_value"))
    about: dict[str, Card] = {}
    others: list[Card] = []
    for entry in entries:
        if entry.key in ("return_value", "request"):
            _take_request(about, entry)
    for entry in entries:
        if entry.key == "return_value":
            _take_videos(about, entry)
    for entry in entries:
        if entry.key == "failed" and (entry.task_id, entry.map_index) not in batches:
            _take_failure(about, others, entry)
        elif entry.key == "refused":
            others += _refused(entry)
    cards = [*about.values(), *others]
    told = {(card.place.task_id, card.place.map_index) for card in cards}
    told |= {(entry.task_id, entry.map_index) for entry in entries}
    cards += [
        _silent(one) for one in submitters if (one.task_id, one.map_index) not in told and _is_shown(one)
    ]
    return sorted(cards, key=lambda card: (card.place.task_id, card.place.map_index, card.place.place))


def image_at(value: Any, place: int) -> str | None:
    """Give the address of the source image that stands in an XCom's value."""
    if isinstance(value, list):
        value = value[place] if place < len(value) else None
    if not isinstance(value, Mapping):
        return None
    inputs = value.get("inputs")
    named = inputs.get("img_url") if isinstance(inputs, Mapping) else None
    found = value.get("image") or value.get("img_url") or named
    return str(found) if found else None


def film_at(value: Any, place: int) -> Mapping[str, Any] | None:
    """Give the landed video that stands in an XCom's value."""
    if isinstance(value, list) and 0 <= place < len(value) and _is_video(value[place]):
        found: Mapping[str, Any] = value[place]
        return found
    return None


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


def _take_request(about: dict[str, Card], entry: Entry) -> None:
    """Add what one task says about a request to what earlier ones have said."""
    value = entry.value
    if not _is_request(value):
        return
    place = Place(entry.task_id, entry.map_index, entry.key)
    card = about.get(value["request_id"]) or Card(Look.OPEN, place, value["request_id"])
    about[value["request_id"]] = replace(
        card,
        look=Look.SUCCEEDED if value.get("state") == "succeeded" else card.look,
        # The card belongs where its inputs stand: with the task that submitted.
        place=place if value.get("inputs") and not card.inputs else card.place,
        image=card.image or image_at(value, 0),
        inputs=card.inputs or dict(value.get("inputs") or {}),
        model_id=card.model_id or value.get("model_id"),
        variation=card.variation or value.get("variation"),
        cost_usd=card.cost_usd if card.cost_usd is not None else value.get("cost_usd"),
        submitted_at=card.submitted_at or value.get("submitted_at"),
        created_at=card.created_at or value.get("created_at"),
        finished_at=card.finished_at or value.get("finished_at"),
    )


def _take_videos(about: dict[str, Card], entry: Entry) -> None:
    if not isinstance(entry.value, list):
        return
    for number, video in enumerate(entry.value):
        if not _is_video(video):
            continue
        place = Place(entry.task_id, entry.map_index, entry.key, number)
        card = about.get(video["request_id"]) or Card(Look.LANDED, place, video["request_id"])
        if video["uri"] not in {film.uri for film in card.films}:
            film = Film(video["uri"], video.get("size_bytes"), place)
            card = replace(card, look=Look.LANDED, films=(*card.films, film))
        about[video["request_id"]] = card


def _take_failure(about: dict[str, Card], others: list[Card], entry: Entry) -> None:
    if not isinstance(entry.value, Mapping):
        return
    request_id, text = entry.value.get("request_id"), str(entry.value.get("error") or "")
    look = Look.CANCELLED if entry.value.get("kind") == "WanCancelledError" else Look.FAILED
    known = about.get(str(request_id))
    if known is None:
        place = Place(entry.task_id, entry.map_index, entry.key)
        others.append(Card(look, place, request_id, error=text))
    elif known.look is not Look.LANDED:
        about[str(request_id)] = replace(known, look=look, error=text)


def _refused(entry: Entry) -> list[Card]:
    rows = entry.value if isinstance(entry.value, list) else [entry.value]
    return [
        Card(
            Look.REFUSED,
            Place(entry.task_id, entry.map_index, entry.key, number),
            image=image_at(entry.value, number),
            error=str(row.get("rule") or row.get("error") or ""),
        )
        for number, row in enumerate(rows)
        if isinstance(row, Mapping)
    ]


_NEVER_SHOWN = frozenset({"success", "skipped", "removed"})


def _is_shown(one: Submitter) -> bool:
    return one.state not in _NEVER_SHOWN


def _silent(one: Submitter) -> Card:
    """Make the card of a task instance that has said nothing: it has not come to it, or died."""
    place = Place(one.task_id, one.map_index, "")
    if one.state in ("failed", "upstream_failed"):
        return Card(Look.FAILED, place, error=f"The task is {one.state}; its log says more.")
    return Card(Look.OPEN, place)
