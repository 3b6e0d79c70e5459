# SPDX-License-Identifier: Apache-2.0
"""The page in Airflow's tab, rendered on the server: a page of cards, filters, and links that are all relative."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from urllib.parse import urlencode

from airflow_provider_wan.gallery.cards import FILTERS, LIVE, Card, Film, Notes, Place
from airflow_provider_wan.gallery.html import escaped, render_card, summary
from airflow_provider_wan.gallery.style import CSS, SCRIPT

PAGE_SIZE = 24
_LABELS = {"open": "in progress", "todo": "to do", "left": "left undone"}
#: Filters that stand there only where they show something: most runs have none of it.
_RARE = frozenset({"todo", "left"})


@dataclass(frozen=True, slots=True)
class Asked:
    """Which part of a run was asked for.

    :param number: of the page, from 1.
    """

    run_id: str
    state: str = "all"
    number: int = 1

    def query(self, *, state: str | None = None, number: int = 1) -> str:
        """Give the query of the address of another part of the same run."""
        return "?" + urlencode({"run_id": self.run_id, "state": state or self.state, "page": number})


def chosen(cards: list[Card], asked: Asked) -> tuple[list[Card], int]:
    """Give the cards of the page that was asked for, and how many pages there are."""
    matching = [card for card in cards if card.look in FILTERS[asked.state]]
    pages = max(1, -(-len(matching) // PAGE_SIZE))
    first = (min(asked.number, pages) - 1) * PAGE_SIZE
    return matching[first : first + PAGE_SIZE], pages


def version_of(cards: list[Card]) -> str:
    """Give a word that changes when the page should be read again."""
    counts = [sum(1 for card in cards if card.look in looks) for looks in FILTERS.values()]
    known = sum(1 for card in cards if card.request_id)
    return "-".join(map(str, [*counts, known]))


def render_page(
    cards: list[Card],
    shown: list[Card],
    *,
    asked: Asked,
    pages: int,
    nonce: str,
    notes: Notes | None = None,
) -> str:
    """Render the page.

    :param cards: of the whole run.
    :param shown: of this page, in full.
    :param nonce: allows the page's own style and script, and no other.
    :param notes: what is said above the cards.
    """
    body = "".join(
        render_card(
            card,
            film_address=lambda film: _film_address(film, asked),
            thumbnail_address=lambda card: _thumbnail_address(card, asked),
        )
        for card in shown
    )
    is_live = any(card.look in LIVE for card in cards)
    notes = notes or Notes()
    troubles = "".join(f'<p class="error">{escaped(one)}</p>' for one in notes.troubles)
    live = "live" + asked.query(number=asked.number) if is_live else ""
    return (
        "<!doctype html>"
        '<html lang="en"><head><meta charset="utf-8"><title>Videos</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<style nonce="{nonce}">{CSS}</style><script nonce="{nonce}">{SCRIPT}</script></head>'
        f'<body data-live="{escaped(live)}" data-version="{escaped(version_of(cards))}">'
        f'<h1>Videos</h1><p class="sum">{escaped(summary(cards))}</p>'
        f'<p class="figures">{escaped(notes.figures)}</p>{troubles}'
        f"{_navigation(cards, asked, pages)}"
        f'<ul class="cards">{body}</ul>{"" if shown else _nothing(asked)}</body></html>'
    )


def _navigation(cards: list[Card], asked: Asked, pages: int) -> str:
    items = []
    for name, looks in FILTERS.items():
        count = sum(1 for card in cards if card.look in looks)
        if name in _RARE and not count and name != asked.state:
            continue
        label = f"{_LABELS.get(name, name)} ({count})"
        items.append(_choice(label, asked.query(state=name), here=name == asked.state))
    number = min(asked.number, pages)
    if pages > 1:
        items.append('<span class="gap"></span>')
        if number > 1:
            items.append(_choice("previous", asked.query(number=number - 1)))
        items.append(f'<span class="here">page {number} of {pages}</span>')
        if number < pages:
            items.append(_choice("next", asked.query(number=number + 1)))
    return f"<nav>{''.join(items)}</nav>"


def _choice(label: str, address: str, *, here: bool = False) -> str:
    return (
        f'<span class="here" aria-current="true">{escaped(label)}</span>'
        if here
        else f'<a href="{escaped(address)}">{escaped(label)}</a>'
    )


def _nothing(asked: Asked) -> str:
    what = "No video yet." if asked.state == "all" else f"None is {_LABELS.get(asked.state, asked.state)}."
    return f"<p>{escaped(what)} Tasks of the Wan provider show here what they submit and land.</p>"


def _address(route: str, place: Place, asked: Asked) -> str:
    return f"{route}?" + urlencode({"run_id": asked.run_id, **asdict(place)})


def _film_address(film: Film, asked: Asked) -> str:
    return _address("video", film.place, asked) if film.place else ""


def _thumbnail_address(card: Card, asked: Asked) -> str:
    return _address("image", card.place, asked) if card.image else ""
