# SPDX-License-Identifier: Apache-2.0
"""Cards as HTML. Every value that came from anywhere goes through :func:`escaped`."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from airflow_provider_wan.gallery.cards import Card, Film, Look

_CLASS_OF = {
    Look.LANDED: "landed",
    Look.SUCCEEDED: "succeeded",
    Look.OPEN: "open",
    Look.FAILED: "bad",
    Look.CANCELLED: "bad",
    Look.REFUSED: "bad",
    Look.WAITING: "dim",
    Look.LEFT: "open",
}

Address = Callable[[Any], str]


def escaped(value: Any) -> str:
    """Give a value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value), quote=True)


def render_card(
    card: Card, *, film_address: Callable[[Film], str], thumbnail_address: Callable[[Card], str]
) -> str:
    """Render one card.

    :param film_address: gives the address of a video.
    :param thumbnail_address: gives the address of a small source image; empty: there is none.
    """
    thumbnail = thumbnail_address(card)
    image = (
        f'<img src="{escaped(thumbnail)}" alt="source image" loading="lazy" decoding="async">'
        if thumbnail
        else '<div class="none small">no image</div>'
    )
    films = "".join(_film(film, film_address(film), thumbnail) for film in card.films)
    films = films or f'<div class="none">{escaped(_why_none(card))}</div>'
    prompt = f'<p class="prompt">{escaped(card.prompt)}</p>' if card.prompt else ""
    error = f'<p class="error">{escaped(card.error)}</p>' if card.error else ""
    return (
        f'<li class="card" data-look="{escaped(card.look)}">'
        f'<div class="media">{image}<div class="films">{films}</div></div>'
        f"{prompt}{error}<dl>{_facts(card)}</dl></li>"
    )


def _film(film: Film, address: str, poster: str) -> str:
    shown = f' poster="{escaped(poster)}"' if poster else ""
    return (
        f'<video controls preload="none" playsinline{shown} src="{escaped(address)}" title="{escaped(film.uri)}">'
        "</video>"
    )


def _why_none(card: Card) -> str:
    return {
        Look.REFUSED: "nothing was bought",
        Look.CANCELLED: "cancelled, not charged",
        Look.OPEN: "not there yet",
        Look.SUCCEEDED: "not landed yet",
        Look.WAITING: "nothing bought yet",
        Look.LEFT: "a rerun goes on with it",
    }.get(card.look, "no video")


def _facts(card: Card) -> str:
    state = (
        f'<span class="state {_CLASS_OF[card.look]}"'
        + (
            f' data-request="{escaped(card.request_id)}"'
            if card.request_id and card.look is Look.OPEN
            else ""
        )
        + f">{escaped(card.look)}</span>"
    )
    rows = [
        ("seed", card.seed),
        ("model", card.model_id),
        ("cost", "" if card.cost_usd is None else f"{card.cost_usd:g} USD"),
        ("took", "" if card.seconds is None else duration(card.seconds)),
        ("file", ", ".join(film.uri for film in card.films)),
        ("request", card.request_id),
        ("take", card.variation),
    ]
    plain = "".join(f"<dt>{name}</dt><dd>{escaped(value)}</dd>" for name, value in rows if value)
    return f"<dt>state</dt><dd>{state}</dd>{plain}"


def duration(seconds: float) -> str:
    """Give a duration as people say it."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def summary(cards: list[Card]) -> str:
    """Count cards by what they say, with their cost, as one line of text."""
    counts = {look: sum(1 for card in cards if card.look is look) for look in Look}
    cost = sum(card.cost_usd or 0.0 for card in cards)
    parts = [f"{number} {look}" for look, number in counts.items() if number]
    return ", ".join([*parts, *([f"{cost:.2f} USD"] if cost else [])]) or "nothing yet"
