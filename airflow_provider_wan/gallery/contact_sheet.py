# SPDX-License-Identifier: Apache-2.0
"""The same page as one file beside the videos: no server, no script, relative links only."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airflow_provider_wan.gallery.batch_cards import Sheet, cards_of_lines
from airflow_provider_wan.gallery.cards import Card, Film, Look, Place
from airflow_provider_wan.gallery.html import escaped, render_card, summary
from airflow_provider_wan.gallery.style import CSS
from airflow_provider_wan.gallery.thumbnails import data_uri

DEFAULT_TITLE = "Videos"


def render_contact_sheet(cards: Sequence[Card], *, title: str = DEFAULT_TITLE) -> str:
    """Render cards as a page that needs nothing but the videos beside it.

    :param cards: with ``films[].src`` relative to the page, and ``thumbnail`` as a ``data:`` address or empty.
    """
    body = "".join(
        render_card(card, film_address=lambda film: film.src, thumbnail_address=lambda card: card.thumbnail)
        for card in cards
    )
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<style>{CSS}</style></head><body><h1>{escaped(title)}</h1>"
        f'<p class="sum">{escaped(summary(list(cards)))}</p><ul class="cards">{body}</ul></body></html>\n'
    )


def card_of_record(record: Mapping[str, Any], *, beside: str) -> Card:
    """Make the card of a video from the record that lies beside it.

    :param record: the JSON object of ``{object_name}.json``.
    :param beside: object name of the page, to which the links are relative.
    """
    inputs = record.get("inputs")
    videos = [video for video in record.get("videos") or () if isinstance(video, Mapping)]
    return Card(
        Look.LANDED if videos else Look.FAILED,
        Place("", -1),
        request_id=record.get("request_id"),
        image=record.get("image"),
        inputs=dict(inputs) if isinstance(inputs, Mapping) else {},
        model_id=record.get("model_id"),
        variation=record.get("variation"),
        cost_usd=record.get("cost_usd"),
        submitted_at=record.get("submitted_at"),
        created_at=record.get("created_at"),
        finished_at=record.get("finished_at"),
        error=record.get("error"),
        films=tuple(
            Film(
                str(video["uri"]),
                video.get("size_bytes"),
                src=relative_address(str(video["object_name"]), beside=beside),
            )
            for video in videos
        ),
    )


def cards_without_video(lines: Iterable[Any]) -> list[Card]:
    """Make the cards of those images of a batch that have no video.

    :param lines: of its manifest, as JSON values.
    """
    cards = cards_of_lines(Sheet("", -1, None, None), lines)
    return [replace(card, films=()) for card in cards if card.look is not Look.LANDED]


def with_thumbnail(card: Card, jpeg: bytes | None) -> Card:
    """Give a card a picture that it carries itself."""
    return replace(card, thumbnail=data_uri(jpeg)) if jpeg else card


def relative_address(object_name: str, *, beside: str) -> str:
    """Give the address of an object relative to a page in the same bucket, or folder."""
    path = posixpath.relpath("/" + object_name, posixpath.dirname("/" + beside))
    return "./" + quote(path)


def write_contact_sheet(
    folder: Path, cards: Sequence[Card], *, title: str = DEFAULT_TITLE, name: str = "index.html"
) -> Path:
    """Write the page into a folder of downloaded videos, and give its path."""
    path = folder / name
    path.write_text(render_contact_sheet(cards, title=title), encoding="utf-8")
    return path
