# SPDX-License-Identifier: Apache-2.0
"""The tab in Airflow and the contact sheet, rendered from the same templates. All markup is in ``templates/``."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.resources import files
from statistics import median
from typing import Any
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from airflow_provider_wan.gallery.batches import BatchCards, BatchLines, BatchStatus
from airflow_provider_wan.gallery.cards import (
    FILTERS,
    LIVE,
    Card,
    CardList,
    CardState,
    CardVideo,
    TaskInstanceKey,
    Totals,
    XComRef,
    facts_of,
    image_at,
    image_key,
    split_address,
    state_of_videos,
    task_name,
)

PAGE_SIZE = 24
_CONSOLE = "https://console.cloud.google.com/storage/browser/_details/"


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("airflow_provider_wan.gallery"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "duration": duration,
        "link": outside_link,
        "task_name": task_name,
    }
    templates = files("airflow_provider_wan.gallery") / "templates"
    found.globals["css"] = Markup((templates / "gallery.css").read_text(encoding="utf-8"))
    found.globals["script"] = Markup((templates / "gallery.js").read_text(encoding="utf-8"))
    return found


def render_message(text: str) -> str:
    """Render a page with one message."""
    return _environment().get_template("message.html").render(text=text)


# -- what a card shows -------------------------------------------------------------------------------------


class SheetLinks:
    """The addresses on a page that is a file: relative links to videos, embedded pictures, no Airflow."""

    def thumbnail(self, card: Card) -> str:
        """Return the address of a small source image; empty: none."""
        return card.thumbnail

    def video(self, video: CardVideo) -> str:
        """Return the address of a video."""
        return video.src

    def tasks(self, card: Card) -> Iterable[tuple[str, TaskInstanceKey, str]]:
        """Yield the task instances of a card: label, task instance and address."""
        return ()


class TabLinks(SheetLinks):
    """The addresses in the tab: routes of the gallery, and pages of Airflow."""

    def __init__(self, query: PageQuery) -> None:
        self._query = query

    def thumbnail(self, card: Card) -> str:  # noqa: D102
        return self._route("image", card.ref) if card.image else ""

    def video(self, video: CardVideo) -> str:  # noqa: D102
        return self._route("video", video.ref) if video.ref else ""

    def tasks(self, card: Card) -> Iterable[tuple[str, TaskInstanceKey, str]]:  # noqa: D102
        for label, task in (("task", card.ref.task), ("failed in", card.failed_in)):
            if task and task[0]:
                yield label, task, self._page_of(task)

    def _route(self, route: str, ref: XComRef) -> str:
        return f"{route}?" + urlencode({"run_id": self._query.run_id, **asdict(ref)})

    def _page_of(self, task: TaskInstanceKey) -> str:
        task_id, map_index = task
        parts = (self._query.dag_id, "runs", self._query.run_id, "tasks", task_id)
        path = "/".join(quote(part, safe="") for part in parts)
        return f"../../../dags/{path}" + (f"/mapped/{map_index}" if map_index >= 0 else "")


def outside_link(address: str | None) -> str:
    """Return where a person can open an address: objects in the Cloud console, pages as they are; else empty."""
    parts = split_address(address)
    if parts.scheme == "gs" and parts.path.strip("/"):
        # The name of an object may have ? and #, which are no query and no fragment in a gs:// address.
        return _CONSOLE + quote(str(address).removeprefix("gs://"))
    if parts.scheme == "https" and parts.hostname == "storage.googleapis.com":
        return f"{_CONSOLE}{quote(unquote(parts.path).lstrip('/'))}"
    return address or "" if parts.scheme in ("http", "https") and parts.netloc else ""


def duration(seconds: float) -> str:
    """Return a duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# -- the tab -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which part of a run to show.

    :param number: of the page, from 1.
    :param name: part of the name of an image or video.
    :param view: ``cards``, ``models`` (side by side), or empty: side by side if the run uses several models.
    """

    dag_id: str
    run_id: str
    state: str = "all"
    number: int = 1
    name: str = ""
    view: str = ""

    def address(self, *, state: str | None = None, number: int = 1, view: str | None = None) -> str:
        """Return the relative address of another part of the same run."""
        more = {"name": self.name, "view": self.view if view is None else view}
        asked = {"run_id": self.run_id, "state": state or self.state, "page": number}
        return "?" + urlencode(asked | {name: value for name, value in more.items() if value})


@dataclass(frozen=True, slots=True)
class RunView:
    """The cards of a run, and the messages about the run as a whole.

    :param sources: the cards.
    :param is_over: whether the run has ended.
    :param progress: how far its running batches are, a line each.
    :param problems: why batches failed, and which files could not be read.
    """

    sources: Sequence[CardList | BatchCards]
    is_over: bool = False
    progress: Sequence[str] = ()
    problems: Sequence[str] = ()
    totals: Totals = field(default_factory=Totals)

    @classmethod
    def of(
        cls,
        cards: Sequence[Card],
        batches: Iterable[tuple[BatchStatus, BatchLines | None]] = (),
        *,
        is_over: bool = False,
        problems: Iterable[str] = (),
    ) -> RunView:
        """Join cards and batches.

        :param batches: with the lines of their file; None: not read.
        """
        batches = list(batches)
        sources: list[CardList | BatchCards] = [CardList(cards)]
        sources += [
            BatchCards(replace(status, is_over=status.is_over or is_over), lines)
            for status, lines in batches
            if lines
        ]
        totals = sum((source.totals for source in sources), Totals())
        unread = [
            f"{task_name(status.task)}: nothing could be read in {status.uri}."
            for status, lines in batches
            if status.uri and not lines
        ]
        progress = [
            f"{task_name(status.task)}: {status.progress}"
            for status, _ in batches
            if status.progress and not is_over
        ]
        return cls(sources, is_over, progress, [*problems, *unread], totals)

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
        """Return the number of cards that a filter shows."""
        return sum(self.totals.counts[state] for state in FILTERS[filter_name].states)

    @property
    def summary(self) -> str:
        """The counts of all filters and the known costs, as one line."""
        parts = [
            f"{self.count(name):,} {choice.label}"
            for name, choice in FILTERS.items()
            if name != "all" and self.count(name)
        ]
        return ", ".join([*parts, *_costs(self.totals)])

    def is_side_by_side(self, query: PageQuery) -> bool:
        """Return whether the page has a row for each image, with a column for each model."""
        return query.view == "models" or (not query.view and len(self.totals.models) > 1)

    def page(self, query: PageQuery) -> tuple[list[Card], int]:
        """Return the cards of a page, and the number of matching cards; side by side, that of their images."""
        states = FILTERS[query.state].states
        found = [source.find(states, query.name) for source in self.sources]
        if self.is_side_by_side(query):
            return self._page_of_images(query, found)
        total = sum(map(len, found))
        first = (min(query.number, pages_of(total)) - 1) * PAGE_SIZE
        last = first + PAGE_SIZE
        shown: list[Card] = []
        for source, numbers in zip(self.sources, found, strict=True):
            shown += source.cards(numbers[max(0, first) : max(0, last)])
            first, last = first - len(numbers), last - len(numbers)
        return shown, total

    def _page_of_images(self, query: PageQuery, found: Sequence[Sequence[int]]) -> tuple[list[Card], int]:
        images: dict[int, list[tuple[CardList | BatchCards, int]]] = {}
        for source, numbers in zip(self.sources, found, strict=True):
            for number in numbers:
                images.setdefault(source.image_key(number), []).append((source, number))
        first = (min(query.number, pages_of(len(images))) - 1) * PAGE_SIZE
        of_page = list(images.values())[first : first + PAGE_SIZE]
        return [source.cards([n])[0] for places in of_page for source, n in places], len(images)


def pages_of(total: int) -> int:
    """Return the number of pages for so many cards or images."""
    return max(1, -(-total // PAGE_SIZE))


def _costs(totals: Totals) -> list[str]:
    """Return the costs, and those of a usable video; nothing while no cost is known."""
    if not totals.cost_usd:
        return []
    per_video = [f"{totals.cost_usd / totals.usable:,.2f} USD per usable video"] if totals.usable else []
    return [f"{totals.cost_usd:,.2f} USD", *per_video]


# -- models side by side -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cards as a table: a row for each source image, a column for each model.

    :param columns: the models, each with its figures; the id is empty where the model is not known.
    :param rows: a card of the image, the prompt that all its cards share, and the cards of each column.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[Card, str, Sequence[Sequence[Card]]]]


def comparison_of(cards: Sequence[Card]) -> Comparison:
    """Sort cards into a table: images in the order of their first card, models by id."""
    by_model: dict[str, list[Card]] = {}
    by_image: dict[int, list[Card]] = {}
    for card in cards:
        by_model.setdefault(card.model_id or "", []).append(card)
        by_image.setdefault(image_key(card), []).append(card)
    models = sorted(by_model, key=lambda model: (not model, model))
    rows = []
    for row in by_image.values():
        prompts = {str(prompt) for card in row if (prompt := card.inputs.get("prompt"))}
        cells = [[card for card in row if (card.model_id or "") == model] for model in models]
        rows.append((row[0], prompts.pop() if len(prompts) == 1 else "", cells))
    return Comparison([(model, figures_of(by_model[model])) for model in models], rows)


def figures_of(cards: Sequence[Card]) -> str:
    """Return how many of these videos are usable, their cost, and how long one took."""
    totals = Totals.of(cards)
    parts = [f"{totals.usable:,} of {len(cards):,} usable", *_costs(totals)]
    seconds = [card.seconds for card in cards if card.seconds is not None]
    if seconds:
        parts.append(f"{duration(median(seconds))} each")
    return ", ".join(parts)


def render_page(run: RunView, shown: Sequence[Card], *, query: PageQuery, total: int, nonce: str) -> str:
    """Render the tab.

    :param shown: the cards of this page, in full.
    :param total: number of cards that match the query.
    :param nonce: allows the page's own style and script, and no other.
    """
    filters = [
        (choice.label, run.count(name), query.address(state=name), name == query.state)
        for name, choice in FILTERS.items()
        if not choice.is_rare or run.count(name) or name == query.state
    ]
    pages = pages_of(total)
    side_by_side = run.is_side_by_side(query)
    return (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            cards=shown,
            links=TabLinks(query),
            comparison=comparison_of(shown) if side_by_side else None,
            other_view=query.address(view="cards" if side_by_side else "models")
            if len(run.totals.models) > 1
            else "",
            filters=filters,
            query=query,
            here=FILTERS[query.state],
            number=min(query.number, pages),
            pages=pages,
            total=total,
            nonce=nonce,
            live="live" + query.address(number=query.number) if run.is_live else "",
        )
    )


# -- the contact sheet -------------------------------------------------------------------------------------


def render_contact_sheet(cards: Sequence[Card], *, title: str) -> str:
    """Render cards as a page that needs only the videos next to it: no server, no script, relative links.

    :param cards: with ``videos[].src`` relative to the page, and ``thumbnail`` as a ``data:`` address or empty.
    """
    run = RunView.of(cards)
    comparison = comparison_of(cards) if len(run.totals.models) > 1 else None
    template = _environment().get_template("contact_sheet.html")
    return template.render(
        cards=cards, links=SheetLinks(), title=title, summary=run.summary, comparison=comparison
    )


def card_of_record(record: Mapping[str, Any], *, page: str) -> Card:
    """Return the card of a video from the record next to it.

    :param record: the JSON object of ``{object_name}.json``.
    :param page: object name of the page, to which the links are relative.
    """
    videos = [
        CardVideo.of(video, src=relative_address(str(video["object_name"]), page=page))
        for video in record.get("videos") or ()
        if isinstance(video, Mapping)
    ]
    return Card(
        state_of_videos(videos) if videos else CardState.FAILED,
        XComRef(""),
        request_id=record.get("request_id"),
        image=image_at(record, 0),
        error=record.get("error"),
        videos=tuple(videos),
        **facts_of(record),
    )


def cards_without_video(lines: BatchLines, model_id: str | None = None) -> list[Card]:
    """Return the cards of those images of an ended batch that have no video.

    :param lines: of its manifest.
    :param model_id: its model, if that is known.
    """
    source = BatchCards(BatchStatus("", -1, None, None, is_over=True, model_id=model_id), lines)
    numbers = source.find(FILTERS["all"].states - {CardState.LANDED, CardState.REJECTED})
    return [replace(card, videos=()) for card in source.cards(numbers)]


def with_thumbnail(card: Card, jpeg: bytes | None) -> Card:
    """Return a card that carries its picture."""
    if not jpeg:
        return card
    return replace(card, thumbnail="data:image/jpeg;base64," + base64.b64encode(jpeg).decode())


def relative_address(object_name: str, *, page: str) -> str:
    """Return the address of an object relative to a page in the same bucket or folder."""
    path = posixpath.relpath("/" + object_name, posixpath.dirname("/" + page))
    return "./" + quote(path)
