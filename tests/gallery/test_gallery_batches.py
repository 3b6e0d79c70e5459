# SPDX-License-Identifier: Apache-2.0
"""A batch in the tab: told by a file in the bucket, while it is under way and when it is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_wan.batch.report import Outcome, Progress
from airflow_provider_wan.gallery.batch_cards import (
    MANIFEST,
    Sheet,
    cards_of_lines,
    figures_of,
    file_of,
    notes_of,
    sheets_of,
    with_record,
)
from airflow_provider_wan.gallery.cards import FILTERS, LIVE, Entry, Look, cards_of
from airflow_provider_wan.gallery.page import Asked, chosen, render_page
from tests.gallery.gallery_entries import IMAGE, MODEL, failed, request_id

MANIFEST_URI = "gs://videos/_journal/_manifests/a.jsonl"
STANDING_URI = "gs://videos/_journal/_notes/a.jsonl"
JOURNAL = "gs://videos/_journal"
SHEET = Sheet("batch", 3, MANIFEST_URI, JOURNAL)
FINGERPRINT = "ab" * 32


def progress(**more: Any) -> dict[str, Any]:
    figures = Progress(
        total=30,
        done=4,
        before=1,
        failed=1,
        running=2,
        queued=6,
        ready=0,
        to_submit=17,
        cost_usd=0.8,
        cost_is_exact=True,
        elapsed_s=60.0,
    )
    return {**figures.as_dict(), "standing": STANDING_URI, "journal": JOURNAL, **more}


def summary() -> dict[str, Any]:
    return {"total": 30, "manifest": MANIFEST_URI, "journal": JOURNAL}


def test_a_batch_under_way_is_told_by_what_it_last_wrote() -> None:
    (sheet,) = sheets_of([Entry("batch", 3, "progress", progress())])
    assert (sheet.uri, sheet.journal, sheet.task) == (STANDING_URI, JOURNAL, ("batch", 3))
    assert sheet.figures.startswith(
        "4 of 30 done (1 were there); 1 failed; 2 running, 6 queued, 17 to submit"
    )


def test_a_batch_that_is_over_is_told_by_its_manifest() -> None:
    entries = [Entry("batch", 3, "summary", summary()), Entry("batch", 3, "progress", progress())]
    assert sheets_of(entries) == [SHEET]


def test_chunks_stand_in_their_order() -> None:
    entries = [Entry("batch", number, "progress", progress()) for number in (10, 2, 0)]
    assert [sheet.map_index for sheet in sheets_of(entries)] == [0, 2, 10]


@pytest.mark.parametrize(
    ("key", "value", "uri"),
    [
        ("summary", {"manifest": MANIFEST_URI}, MANIFEST_URI),
        ("progress", {"standing": STANDING_URI}, STANDING_URI),
        ("return_value", {"manifest": MANIFEST_URI}, None),
        ("progress", {"manifest": MANIFEST_URI}, None),
        ("summary", {"manifest": "/etc/passwd"}, None),
        ("summary", {"chunks": 4}, None),
        ("summary", None, None),
    ],
)
def test_a_file_is_read_only_where_a_batch_names_one(key: str, value: object, uri: str | None) -> None:
    assert file_of(key, value) == uri
    assert [sheet.uri for sheet in sheets_of([Entry("batch", -1, key, value)])] == ([uri] if uri else [])


@pytest.mark.parametrize(
    "value", [None, 5, {}, {"total": 3}, progress(total="<b>"), progress(done=float("nan"))]
)
def test_figures_of_somebody_else_are_not_shown(value: object) -> None:
    assert figures_of(value) == ""


@pytest.mark.parametrize(
    ("outcome", "look"),
    [
        ("landed", Look.LANDED),
        ("reused", Look.LANDED),
        ("failed", Look.FAILED),
        ("unknown", Look.FAILED),
        ("not_landed", Look.FAILED),
        ("cancelled", Look.CANCELLED),
        ("refused", Look.REFUSED),
        ("left", Look.LEFT),
        ("in_flight", Look.OPEN),
        ("to_do", Look.WAITING),
    ],
)
def test_each_image_has_a_card(outcome: str, look: Look) -> None:
    line = {"image": IMAGE, "outcome": outcome, "request_id": request_id(), "uri": "gs://videos/a.mp4"}
    (card,) = cards_of_lines(SHEET, [line])
    assert (card.look, card.image, card.place.key, card.place.map_index) == (look, IMAGE, MANIFEST, 3)
    assert card.films[0].uri == "gs://videos/a.mp4"


def test_every_outcome_of_a_batch_has_a_look_and_every_look_a_filter() -> None:
    for outcome in Outcome:
        assert len(cards_of_lines(SHEET, [{"outcome": str(outcome)}])) == 1
    for look in Look:
        assert sum(look in looks for name, looks in FILTERS.items() if name != "all") == 1


def test_what_is_left_undone_is_not_asked_about_for_ever() -> None:
    assert Look.LEFT not in LIVE
    assert {Look.OPEN, Look.WAITING} <= LIVE


@pytest.mark.parametrize(
    "line", [None, 5, "text", {"image": {"a": 1}, "cost_usd": "much", "request_id": ["x"]}]
)
def test_a_line_of_somebody_else_breaks_nothing(line: object) -> None:
    cards = cards_of_lines(SHEET, [line])
    page = render_page(cards, cards, asked=Asked("run"), pages=1, nonce="n")
    assert "<html" in page


def test_the_record_of_a_request_tells_what_it_was_made_from() -> None:
    line = {"outcome": "landed", "request_id": request_id(), "fingerprint": FINGERPRINT, "cost_usd": 0.2}
    (card,) = cards_of_lines(SHEET, [line])
    assert card.record == f"{JOURNAL}/{FINGERPRINT}.json"
    record = {
        "request_id": request_id(),
        "inputs": {"prompt": "a slow wave", "seed": 7},
        "model_id": MODEL,
        "created_at": "2026-01-15T00:00:01+00:00",
        "finished_at": "2026-01-15T00:02:15+00:00",
    }
    full = with_record(card, record)
    assert (full.prompt, full.seed, full.model_id, full.seconds) == ("a slow wave", "7", MODEL, 134.0)


@pytest.mark.parametrize("record", [None, {}, {"request_id": request_id(9), "inputs": {"prompt": "another"}}])
def test_the_record_of_another_request_tells_nothing(record: dict[str, Any] | None) -> None:
    line = {"outcome": "landed", "request_id": request_id(), "fingerprint": FINGERPRINT}
    (card,) = cards_of_lines(SHEET, [line])
    assert with_record(card, record) == card


@pytest.mark.parametrize("fingerprint", [None, 5, "", "../../secret", "AB" * 32])
def test_a_fingerprint_that_is_none_leads_nowhere(fingerprint: object) -> None:
    (card,) = cards_of_lines(SHEET, [{"outcome": "landed", "fingerprint": fingerprint}])
    assert card.record is None
    assert cards_of_lines(replace(SHEET, journal=None), [{"fingerprint": FINGERPRINT}])[0].record is None


def test_how_a_batch_failed_is_said_above_its_cards_and_is_no_card() -> None:
    entries = [Entry("batch", 3, "summary", summary()), failed(3, task="batch"), failed(0, task="wait")]
    (sheet,) = sheets_of(entries)
    assert [card.place.task_id for card in cards_of(entries, [], {sheet.task})] == ["wait"]
    assert notes_of([sheet], entries).troubles == ("batch [3]: it shows too much",)


def test_a_file_that_cannot_be_read_is_named() -> None:
    (trouble,) = notes_of([SHEET], [], [SHEET]).troubles
    assert MANIFEST_URI in trouble


def test_figures_of_all_batches_stand_above_the_cards() -> None:
    entries = [Entry("batch", number, "progress", progress()) for number in (0, 1)]
    sheets = sheets_of(entries)
    notes = notes_of(sheets, entries)
    assert [line.partition(":")[0] for line in notes.figures.splitlines()] == ["batch [0]", "batch [1]"]
    page = render_page([], [], asked=Asked("run"), pages=1, nonce="n", notes=notes)
    assert "batch [1]: 4 of 30 done" in page


def test_filters_that_few_runs_need_show_where_there_is_something() -> None:
    lines = [{"outcome": "to_do"}] * 3 + [{"outcome": "landed"}]
    cards = cards_of_lines(SHEET, lines)
    asked = Asked("run", "todo")
    shown, pages = chosen(cards, asked)
    assert len(shown) == 3
    with_them = render_page(cards, shown, asked=asked, pages=pages, nonce="n")
    assert "to do (3)" in with_them
    assert "left undone" not in with_them
