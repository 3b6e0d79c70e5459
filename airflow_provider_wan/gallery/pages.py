# SPDX-License-Identifier: Apache-2.0
"""The tab in Airflow and the contact sheet, rendered from the same templates. All markup is in ``templates/``."""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib.resources import files
from statistics import median
from typing import Any
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from airflow_provider_wan.gallery.card_list import SORTS, VERDICTS, PageQuery, RunView, Totals, pages_of
from airflow_provider_wan.gallery.cards import (
    FILTERS,
    RARE_FILTERS,
    Card,
    CardState,
    CardVideo,
    TaskInstanceKey,
    XComRef,
    facts_of,
    split_address,
    state_of_videos,
    task_name,
)
from airflow_provider_wan.gallery.run_cards import BatchStatus, image_at

_REVERSED = {"-cost": "cost, highest first", "-time": "time, longest first"}
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
    found.filters |= {"duration": duration, "link": outside_link, "task_name": task_name}
    templates = files("airflow_provider_wan.gallery") / "templates"
    script = (templates / "gallery.js").read_text(encoding="utf-8")
    found.globals |= {
        "css": Markup((templates / "gallery.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "sorts": [("", "order of the run"), *((name, name) for name in SORTS), *_REVERSED.items()],
        "verdicts": [("", "all"), *VERDICTS.items()],
    }
    return found


def render_message(text: str) -> str:
    """Render a page with one message."""
    return _environment().get_template("message.html").render(text=text)


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


# -- models side by side -----------------------------------------------------------------------------------


def comparison_of(
    cards: Sequence[Card],
) -> tuple[list[tuple[str, str]], list[tuple[Card, str, list[list[Card]]]]]:
    """Sort cards into a table: images in the order of their first card, models by id.

    :return: a column for each model: its id, empty where it is not known, and its figures; and a row for each image:
        one of its cards, the prompt that all of them share, and the cards of each column.
    """
    by_model: dict[str, list[Card]] = {}
    by_image: dict[str, list[Card]] = {}
    for card in cards:
        by_model.setdefault(card.model_id or "", []).append(card)
        by_image.setdefault(card.image_key, []).append(card)
    models = sorted(by_model, key=lambda model: (not model, model))
    rows = []
    for row in by_image.values():
        prompts = {str(prompt) for card in row if (prompt := card.inputs.get("prompt"))}
        cells = [[card for card in row if (card.model_id or "") == model] for model in models]
        rows.append((row[0], prompts.pop() if len(prompts) == 1 else "", cells))
    return [(model, figures_of(by_model[model])) for model in models], rows


def figures_of(cards: Sequence[Card]) -> str:
    """Return how many of these videos are usable, their cost, and how long one took."""
    totals = Totals.of(cards)
    seconds = [card.seconds for card in cards if card.seconds is not None]
    took = [f"{duration(median(seconds))} each"] if seconds else []
    return ", ".join([f"{totals.usable:,} of {len(cards):,} usable", *totals.costs, *took])


# -- the tab -----------------------------------------------------------------------------------------------


def render_page(run: RunView, shown: Sequence[Card], *, query: PageQuery, total: int, nonce: str) -> str:
    """Render the tab.

    :param shown: the cards of this page, in full.
    :param total: number of cards that match the query.
    :param nonce: allows the page's own style and script, and no other.
    """

    def address_of(task: TaskInstanceKey) -> str:
        task_id, map_index = task
        parts = (query.dag_id, "runs", query.run_id, "tasks", task_id)
        path = "/".join(quote(part, safe="") for part in parts)
        return f"../../../dags/{path}" + (f"/mapped/{map_index}" if map_index >= 0 else "")

    pages, view = pages_of(total), run.view(query)
    shown = [_with_routes(card, query.run_id) for card in shown]
    filters = [name for name in FILTERS if name not in RARE_FILTERS or run.count(name) or name == query.state]
    return (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            cards=shown,
            view=view,
            views=["cards", "table", *(["models"] if view == "models" or len(run.totals.models) > 1 else [])],
            comparison=comparison_of(shown) if view == "models" else None,
            address_of=address_of,
            filters=filters,
            query=query,
            number=min(query.page, pages),
            pages=pages,
            total=total,
            nonce=nonce,
            live="live" + query.address(page=query.page) if run.is_live else "",
        )
    )


def _with_routes(card: Card, run_id: str) -> Card:
    """Return a card of the tab with the addresses of its picture and its videos: routes of the gallery."""

    def route(name: str, ref: XComRef | None, **more: Any) -> str:
        return f"{name}?" + urlencode({"run_id": run_id, **asdict(ref), **more}) if ref else ""

    videos = [
        replace(
            video,
            src=route("video", video.ref),
            poster=route("poster", video.ref) if video.poster else "",
            download=route("video", video.ref, download=1),
        )
        for video in card.videos
    ]
    return replace(card, thumbnail=route("image", card.ref) if card.image else "", videos=tuple(videos))


# -- the contact sheet -------------------------------------------------------------------------------------


def render_contact_sheet(cards: Sequence[Card], *, title: str) -> str:
    """Render cards as a page that needs only the videos next to it: no server, relative links.

    :param cards: with ``videos[].src`` relative to the page, and ``thumbnail`` as a ``data:`` address or empty.
    """
    run = RunView(cards, is_over=True)
    models = len(run.totals.models) > 1
    return (
        _environment()
        .get_template("contact_sheet.html")
        .render(
            run=run,
            cards=cards,
            title=title,
            view="models" if models else "cards",
            views=["models" if models else "cards", "table"],
            comparison=comparison_of(cards) if models else None,
            address_of=None,
            filters=[name for name in FILTERS if name == "all" or run.count(name)],
            query=PageQuery("", ""),
        )
    )


def card_of_record(record: Mapping[str, Any], *, page: str) -> Card:
    """Return the card of a video from the record next to it.

    :param record: the JSON object of ``{object_name}.json``.
    :param page: object name of the page, to which the links are relative.
    """
    videos = []
    for plain in record.get("videos") or ():
        if isinstance(plain, Mapping):
            video = CardVideo.of(plain)
            src = relative_address(str(plain["object_name"]), page=page)
            poster = relative_address(video.poster, page=page) if video.poster else ""
            videos.append(replace(video, src=src, poster=poster))
    return Card(
        state_of_videos(videos) if videos else CardState.FAILED,
        XComRef(""),
        request_id=record.get("request_id"),
        image=image_at(record, 0),
        error=record.get("error"),
        videos=tuple(videos),
        **facts_of(record),
    )


def with_thumbnail(card: Card, jpeg: bytes | None) -> Card:
    """Return a card that carries its picture."""
    if not jpeg:
        return card
    return replace(card, thumbnail="data:image/jpeg;base64," + base64.b64encode(jpeg).decode())


def relative_address(object_name: str, *, page: str) -> str:
    """Return the address of an object relative to a page in the same bucket or folder."""
    path = posixpath.relpath("/" + object_name, posixpath.dirname("/" + page))
    return "./" + quote(path)


def cards_without_video(manifest: bytes, model_id: str | None = None) -> list[Card]:
    """Return the cards of those images of an ended batch that have no video.

    :param manifest: a JSON object for each image, on a line each.
    :param model_id: its model, if that is known.
    """
    batch = BatchStatus(is_over=True, model_id=model_id)
    cards = (card for _, _, card in batch.cards(manifest.splitlines()))
    with_video = (CardState.LANDED, CardState.REJECTED)
    return [replace(card, videos=()) for card in cards if card.state not in with_video]
