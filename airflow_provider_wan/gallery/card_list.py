# SPDX-License-Identifier: Apache-2.0
"""The cards of a run: filtered, sorted, counted and cut into pages.

A batch may have 200,000 images. So cards are kept in a temporary SQLite database, which stays on disk, and only the
cards of a page are made again from their lines.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlencode

from airflow_provider_wan.gallery.cards import FILTERS, LIVE, Card, CardState, task_name
from airflow_provider_wan.gallery.run_cards import BatchStatus

PAGE_SIZE = 24
#: What a page can be sorted by, with its column; a minus sign before it reverses the order.
SORTS = {
    "name": "name",
    "state": "state",
    "model": "model_id",
    "checks": "verdict",
    "cost": "cost_usd",
    "time": "seconds",
}
#: Choices of the checks' results.
VERDICTS = {"good": "good", "bad": "with a defect", "none": "not checked"}


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which part of a run to show.

    :param state: a name in :data:`FILTERS`.
    :param page: its number, from 1.
    :param name: part of the name of an image or video.
    :param view: ``cards``, ``table``, ``models`` (side by side), or empty: side by side if the run uses several models,
        else cards.
    :param verdict: a name in :data:`VERDICTS`; empty: all.
    :param cost: least cost in US dollars.
    :param seconds: least time from submit to finish, in seconds.
    :param sort: a name in :data:`SORTS`, with a minus sign to reverse it; empty: the order of the run.
    """

    dag_id: str
    run_id: str
    state: str = "all"
    page: int = 1
    name: str = ""
    view: str = ""
    model: str = ""
    verdict: str = ""
    cost: float = 0.0
    seconds: float = 0.0
    sort: str = ""

    def parameters(self, *without: str, **changes: Any) -> dict[str, Any]:
        """Return the query parameters of this page, with changes, without those that have their default."""
        defaults = {known.name: known.default for known in fields(self)}
        asked = asdict(replace(self, **changes))
        return {
            name: value
            for name, value in asked.items()
            if name not in ("dag_id", *without) and value not in ("", defaults[name])
        }

    def address(self, **changes: Any) -> str:
        """Return the relative address of another part of the same run; without a page: its first page."""
        return "?" + urlencode(self.parameters(**{"page": 1, **changes}))

    @property
    def is_narrow(self) -> bool:
        """Whether more than the state selects the cards."""
        return bool(self.name or self.model or self.verdict or self.cost or self.seconds)


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

    @classmethod
    def of(cls, cards: Iterable[Card]) -> Totals:
        """Add up cards."""
        counts, cost_usd, requests, usable, models = Counter[CardState](), 0.0, 0, 0, dict[str, None]()
        for card in cards:
            counts[card.state] += 1
            cost_usd += (card.cost_usd or 0.0) + card.earlier_usd
            requests += bool(card.request_id)
            usable += card.is_usable
            if card.model_id:
                models[card.model_id] = None
        return cls(counts, cost_usd, requests, usable, tuple(models))

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.counts + other.counts,
            self.cost_usd + other.cost_usd,
            self.requests + other.requests,
            self.usable + other.usable,
            tuple(dict.fromkeys((*self.models, *other.models))),
        )

    @property
    def costs(self) -> list[str]:
        """The costs, and those of a usable video; nothing while no cost is known."""
        if not self.cost_usd:
            return []
        per_video = [f"{self.cost_usd / self.usable:,.2f} USD per usable video"] if self.usable else []
        return [f"{self.cost_usd:,.2f} USD", *per_video]


class CardList:
    """Many cards, which do not change.

    :param entries: number, text and card of each, in order.
    :param read: makes a card again from its number and text.
    """

    def __init__(self, entries: Iterable[tuple[int, str, Card]], read: Callable[[int, str], Card]) -> None:
        self._read = read
        self._lock = threading.Lock()
        # An empty name: a database of this connection, in a temporary file that has no name either.
        self._db = sqlite3.connect("", check_same_thread=False)
        weakref.finalize(self, self._db.close)
        self._db.execute(
            "CREATE TABLE card (number INTEGER PRIMARY KEY, text, image, name, names, state, model_id, verdict,"
            " cost_usd, seconds)"
        )
        self.totals = Totals.of(self._insert(entries))

    @classmethod
    def of_cards(cls, cards: Sequence[Card]) -> CardList:
        """Return a list of cards that are in memory."""
        return cls(((number, "", card) for number, card in enumerate(cards)), lambda number, _: cards[number])

    @classmethod
    def of_lines(cls, batch: BatchStatus, lines: Iterable[bytes | str]) -> CardList:
        """Return the images of a batch, from the lines of the file that it names; they are read once."""
        return cls(batch.cards(lines), batch.card)

    def _insert(self, entries: Iterable[tuple[int, str, Card]]) -> Iterable[Card]:
        for number, text, card in entries:
            row: list[Any] = [number, text, card.image_key, card.title.casefold(), card.names, card.state]
            row += [card.model_id, card.verdict or None, card.cost_usd, card.seconds]
            self._db.execute(f"INSERT INTO card VALUES ({', '.join('?' * len(row))})", row)
            yield card

    def find(self, query: PageQuery, *, with_images: bool = False) -> list[tuple[Any, int, str | None]]:
        """Return the sort key, the number and, if asked for, the image key of each card that the query selects."""
        column = SORTS.get(query.sort.removeprefix("-"), "NULL")
        states = FILTERS.get(query.state, FILTERS["all"])
        select = (
            f"SELECT {column}, number, {'image' if with_images else 'NULL'} FROM card "
            "WHERE state IN (SELECT value FROM json_each(:states)) AND instr(names, :name)"
            " AND :model IN ('', model_id) AND :verdict IN ('', verdict)"
            " AND (:cost <= 0 OR cost_usd >= :cost) AND (:seconds <= 0 OR seconds >= :seconds) ORDER BY number"
        )
        values = {**asdict(query), "states": json.dumps(sorted(states)), "name": query.name.casefold()}
        with self._lock:
            return self._db.execute(select, values).fetchall()

    def card(self, number: int) -> Card | None:
        """Return a card by its number, or None if no card has it."""
        with self._lock:
            found = self._db.execute("SELECT text FROM card WHERE number = ?", (number,)).fetchone()
        return self._read(number, found[0]) if found else None

    def cards(self, query: PageQuery) -> list[Card]:
        """Return all cards that the query selects."""
        return [card for _, number, _ in self.find(query) if (card := self.card(number))]


class RunView:
    """The cards of a run, and the messages about the run as a whole.

    :param cards: those that are not of a batch.
    :param batches: with the images in their file; None: not read.
    :param is_over: whether the run has ended.
    :param problems: why batches failed.
    :param uses_provider: whether the run has tasks of this provider.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        batches: Sequence[tuple[BatchStatus, CardList | None]] = (),
        *,
        is_over: bool = False,
        problems: Sequence[str] = (),
        uses_provider: bool = True,
    ) -> None:
        self._sources = [CardList.of_cards(cards), *(images for _, images in batches if images)]
        self.totals = sum((source.totals for source in self._sources), Totals())
        self.is_over = is_over
        self.uses_provider = uses_provider
        #: How far the running batches are, a line each.
        self.progress = [f"{task_name(batch.task)}: {batch.progress}" for batch, _ in batches if batch.progress]
        self.problems = [*problems]
        for batch, images in batches:
            if batch.uri and not images:
                self.problems.append(f"{task_name(batch.task)}: nothing could be read in {batch.uri}.")

    @property
    def version(self) -> str:
        """A text that changes when an open page should be loaded again."""
        counts = [self.count(name) for name in FILTERS]
        return "-".join(map(str, [*counts, self.totals.requests, self.is_over]))

    @property
    def is_live(self) -> bool:
        """Whether anything can still change."""
        return any(self.totals.counts[state] for state in LIVE)

    def count(self, filter_name: str) -> int:
        """Return the number of cards in the states of a filter."""
        return sum(self.totals.counts[state] for state in FILTERS[filter_name])

    @property
    def summary(self) -> str:
        """The counts of all filters and the known costs, as one line."""
        counts = [f"{self.count(name):,} {name}" for name in FILTERS if name != "all" and self.count(name)]
        return ", ".join([*counts, *self.totals.costs])

    def view(self, query: PageQuery) -> str:
        """Return which view a page has: ``cards``, ``table``, or ``models`` side by side."""
        return query.view or ("models" if len(self.totals.models) > 1 else "cards")

    def page(self, query: PageQuery) -> tuple[list[Card], int]:
        """Return the cards of a page, and the number of matching cards; side by side, that of their images."""
        by_image = self.view(query) == "models"
        found = [
            (key, image, source, number)
            for source in self._sources
            for key, number, image in source.find(query, with_images=by_image)
        ]
        if query.sort:
            known = [row for row in found if row[0] is not None]
            known.sort(key=lambda row: row[0], reverse=query.sort.startswith("-"))
            found = known + [row for row in found if row[0] is None]
        if by_image:
            images: dict[str | None, list[Any]] = {}
            for row in found:
                images.setdefault(row[1], []).append(row)
            total = len(images)
            found = [row for rows in list(images.values())[_of_page(query, total)] for row in rows]
        else:
            total = len(found)
            found = found[_of_page(query, total)]
        return [card for _, _, source, number in found if (card := source.card(number))], total


def pages_of(total: int) -> int:
    """Return the number of pages for so many cards or images."""
    return max(1, -(-total // PAGE_SIZE))


def _of_page(query: PageQuery, total: int) -> slice:
    last = min(query.page, pages_of(total)) * PAGE_SIZE
    return slice(last - PAGE_SIZE, last)
