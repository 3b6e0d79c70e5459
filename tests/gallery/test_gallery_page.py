# SPDX-License-Identifier: Apache-2.0
"""The page as HTML: nothing that came from outside becomes markup, and a thousand videos stay a page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from airflow_provider_wan.gallery.cards import Card, Entry, Place, Submitter, cards_of, image_at
from airflow_provider_wan.gallery.page import PAGE_SIZE, Asked, chosen, render_page, version_of
from tests.gallery.gallery_entries import IMAGE, failed, landed, refused, submitted, waited

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'>&"


class Tags(HTMLParser):
    """Collects the elements of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def page(cards: list[Card], **asked: object) -> Tags:
    what = Asked("run", **asked)  # type: ignore[arg-type]
    shown, pages = chosen(cards, what)
    return Tags(render_page(cards, shown, asked=what, pages=pages, nonce="n0nce"))


def hostile_entries() -> list[Entry]:
    entries = [
        submitted(0, prompt=HOSTILE, variation=HOSTILE, model_id=HOSTILE, image=HOSTILE),
        waited(0, created_at=HOSTILE),
        landed(0, uri=f"gs://videos/{HOSTILE}"),
        submitted(1),
        failed(1),
        refused(2),
    ]
    entries[4].value["error"] = HOSTILE
    entries[5].value[0]["rule"] = HOSTILE
    return entries


def test_markup_in_any_field_shows_as_text() -> None:
    html = page(
        cards_of(hostile_entries(), []),
    )

    assert len(html.all("script")) == 1  # its own
    assert not [
        attributes for _, attributes in html.tags if any(name.startswith("on") for name in attributes)
    ]
    assert html.text.count(HOSTILE) >= 5
    assert all(image["src"] and image["src"].startswith("image?") for image in html.all("img"))
    assert [script.get("nonce") for script in html.all("script")] == ["n0nce"]


def test_a_video_is_fetched_only_when_somebody_plays_it() -> None:
    html = page(cards_of([submitted(), waited(), landed()], []))
    (video,) = html.all("video")
    assert video["preload"] == "none"
    assert "autoplay" not in video
    assert [image["loading"] for image in html.all("img")] == ["lazy"]


def test_all_addresses_are_relative() -> None:
    html = page(
        cards_of([entry for number in range(100) for entry in (submitted(number), landed(number))], [])
    )
    addresses = [tag.get(name) for _, tag in html.tags for name in ("src", "href", "poster") if name in tag]
    assert addresses
    assert [one for one in addresses if not one or "://" in one or one.startswith("/")] == []


def test_a_thousand_videos_come_in_pages() -> None:
    cards = cards_of([entry for number in range(1000) for entry in (submitted(number), landed(number))], [])
    first, last, beyond = page(cards), page(cards, number=42), page(cards, number=900)
    assert len(first.all("video")) == PAGE_SIZE
    assert len(last.all("video")) == len(beyond.all("video")) == 1000 - 41 * PAGE_SIZE
    assert "page 42 of 42" in beyond.text
    assert "all (1000)" in first.text


@pytest.mark.parametrize(
    ("state", "count"), [("all", 4), ("landed", 1), ("open", 1), ("failed", 1), ("refused", 1)]
)
def test_filters_show_what_they_say(state: str, count: int) -> None:
    entries = [submitted(0), landed(0), submitted(1), submitted(2), failed(2), refused(3)]
    html = page(cards_of(entries, []), state=state)
    assert len(html.all("li")) == count
    assert f"{'in progress' if state == 'open' else state} ({count})" in html.text


def test_only_what_is_in_progress_is_asked_about_again() -> None:
    assert page(cards_of([submitted()], [])).all("body")[0]["data-live"]
    assert not page(cards_of([submitted(), landed()], [])).all("body")[0]["data-live"]


def test_an_empty_run_says_so() -> None:
    assert "No video yet." in page([]).text


def test_an_image_is_found_where_the_card_says() -> None:
    place = Place("submit", 2, "refused", 0)
    (card,) = cards_of([refused(2)], [])
    assert card.place == place
    assert image_at(refused(2).value, place.place) == IMAGE
    assert image_at(refused(2).value, 5) is None


def test_the_page_is_read_again_when_anything_it_shows_has_changed() -> None:
    steps = [
        cards_of([], [Submitter("submit", 0, "running")]),
        cards_of([submitted()], []),
        cards_of([submitted(), waited(), landed()], []),
        cards_of([submitted(), failed()], []),
    ]
    versions = [version_of(cards) for cards in steps]
    assert len(set(versions)) == len(versions)
    assert version_of(steps[0]) == version_of(cards_of([], [Submitter("submit", 0, "deferred")]))
