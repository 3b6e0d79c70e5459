# SPDX-License-Identifier: Apache-2.0
"""The images of a batch in the tab, from its status file while it runs and from its manifest afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_wan.batch.results import Outcome, Progress
from airflow_provider_wan.gallery.card_list import PAGE_SIZE, CardList, PageQuery, RunView
from airflow_provider_wan.gallery.cards import FILTERS, LIVE, Card, CardState
from airflow_provider_wan.gallery.pages import render_page
from airflow_provider_wan.gallery.run_cards import (
    MANIFEST,
    BatchStatus,
    Entry,
    RunTask,
    batches_of,
    cards_of,
    problems_of,
    progress_of,
    with_record,
)
from tests.gallery.entries import IMAGE, MODEL, failed, request_id

MANIFEST_URI = "gs://videos/_journal/_manifests/a.jsonl"
STATUS_URI = "gs://videos/_journal/_notes/a.jsonl"
JOURNAL = "gs://videos/_journal"
RUNNING = BatchStatus("batch", 3, STATUS_URI, JOURNAL)
ENDED = BatchStatus("batch", 3, MANIFEST_URI, JOURNAL, is_over=True)
FINGERPRINT = "ab" * 32
ALL = PageQuery("dag", "run")


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
    return {**figures.as_dict(), "standing": STATUS_URI, "journal": JOURNAL, **more}


def summary() -> dict[str, Any]:
    return {"total": 30, "manifest": MANIFEST_URI, "journal": JOURNAL}


def images(values: Iterable[Any], status: BatchStatus = RUNNING) -> CardList:
    return CardList.of_lines(status, [json.dumps(value) for value in values])


def cards(values: Iterable[Any], status: BatchStatus = RUNNING) -> list[Card]:
    return images(values, status).cards(ALL)


def test_running_batch_is_read_from_its_status_file() -> None:
    (batch,) = batches_of([Entry("batch", 3, "progress", progress())])
    assert (batch.uri, batch.journal, batch.task) == (STATUS_URI, JOURNAL, ("batch", 3))
    assert batch.progress.startswith("4 of 30 done")
    assert not batch.is_over


def test_ended_batch_is_read_from_its_manifest() -> None:
    entries = [Entry("batch", 3, "summary", summary()), Entry("batch", 3, "progress", progress())]
    assert batches_of(entries) == [ENDED]


def test_batch_whose_task_died_has_ended() -> None:
    (batch,) = batches_of(
        [Entry("batch", 3, "progress", progress())], [RunTask("batch", 3, "failed", "WanBatchOperator")]
    )
    assert (batch.uri, batch.progress, batch.is_over) == (STATUS_URI, "", True)


def test_chunks_are_in_the_order_of_map_indexes() -> None:
    entries = [Entry("batch", number, "progress", progress()) for number in (10, 2, 0)]
    assert [batch.map_index for batch in batches_of(entries)] == [0, 2, 10]


@pytest.mark.parametrize(
    ("key", "value", "uri"),
    [
        ("summary", {"manifest": MANIFEST_URI}, MANIFEST_URI),
        ("progress", {"standing": STATUS_URI}, STATUS_URI),
        ("return_value", {"manifest": MANIFEST_URI}, None),
        ("progress", {"manifest": MANIFEST_URI}, None),
        ("summary", {"manifest": "/etc/passwd"}, None),
        ("summary", {"chunks": 4}, None),
        ("summary", None, None),
    ],
)
def test_file_is_read_only_if_a_batch_names_it(key: str, value: object, uri: str | None) -> None:
    assert [batch.uri for batch in batches_of([Entry("batch", -1, key, value)])] == ([uri] if uri else [])


@pytest.mark.parametrize("value", [None, 5, {}, {"total": 3}, progress(total="<b>"), progress(done=float("nan"))])
def test_progress_of_another_shape_is_not_shown(value: object) -> None:
    assert progress_of(value) == ""


@pytest.mark.parametrize(
    ("outcome", "running", "ended"),
    [
        ("landed", CardState.LANDED, CardState.LANDED),
        ("reused", CardState.LANDED, CardState.LANDED),
        ("rejected", CardState.REJECTED, CardState.REJECTED),
        ("failed", CardState.FAILED, CardState.FAILED),
        ("unknown", CardState.UNKNOWN, CardState.UNKNOWN),
        ("not_landed", CardState.NOT_LANDED, CardState.NOT_LANDED),
        ("cancelled", CardState.CANCELLED, CardState.CANCELLED),
        ("refused", CardState.REFUSED, CardState.REFUSED),
        ("left", CardState.LEFT, CardState.NOT_LANDED),
        ("in_flight", CardState.OPEN, CardState.NOT_LANDED),
        ("to_do", CardState.WAITING, CardState.NOT_LANDED),
    ],
)
def test_image_with_a_request_has_a_card(outcome: str, running: CardState, ended: CardState) -> None:
    line = {"image": IMAGE, "outcome": outcome, "request_id": request_id(), "uri": "gs://videos/a.mp4"}
    (card,) = cards([line])
    assert (card.state, card.image, card.ref.key, card.ref.map_index) == (running, IMAGE, MANIFEST, 3)
    assert card.videos[0].uri == "gs://videos/a.mp4"
    assert [card.state for card in cards([line], ENDED)] == [ended]


def test_image_that_an_ended_batch_never_submitted_is_left_undone() -> None:
    values = [{"outcome": "left"}, {"outcome": "to_do"}]
    assert [card.state for card in cards(values, ENDED)] == [CardState.LEFT] * 2


def test_every_outcome_has_a_state_and_every_state_one_filter() -> None:
    for outcome in Outcome:
        assert len(cards([{"outcome": str(outcome)}])) == 1
    for state in CardState:
        assert sum(state in states for name, states in FILTERS.items() if name != "all") == 1


def test_ended_states_do_not_keep_a_page_polling() -> None:
    assert {CardState.OPEN, CardState.SUCCEEDED, CardState.WAITING} == LIVE


@pytest.mark.parametrize("line", [None, 5, "text", {"image": {"a": 1}, "cost_usd": "much", "request_id": ["x"]}])
def test_line_of_another_shape_breaks_nothing(line: object) -> None:
    run = RunView([], [(RUNNING, images([line], RUNNING))])
    query = PageQuery("dag", "run")
    shown, total = run.page(query)
    assert "<html" in render_page(run, shown, query=query, total=total, nonce="n")


def test_only_the_lines_of_a_page_are_parsed_again() -> None:
    values = [
        {"image": f"gs://in/{n:06d}.jpg", "outcome": "failed" if n % 1000 == 7 else "to_do", "error": "no"}
        for n in range(20_000)
    ]
    run = RunView([], [(RUNNING, images(values[:5_000])), (RUNNING, images(values[5_000:]))])
    names = {number: [card.title for card in run.page(PageQuery("d", "r", page=number))[0]] for number in (1, 209, 834)}
    assert names[1] == [f"{n:06d}.jpg" for n in range(PAGE_SIZE)]
    assert names[209] == [f"{n:06d}.jpg" for n in range(208 * PAGE_SIZE, 209 * PAGE_SIZE)]  # over both files
    assert names[834] == [f"{n:06d}.jpg" for n in range(833 * PAGE_SIZE, 20_000)]
    assert [card.title for card in run.page(PageQuery("d", "r", "failed"))[0]] == [
        f"{n:06d}.jpg" for n in range(7, 20_000, 1000)
    ]
    assert [card.title for card in run.page(PageQuery("d", "r", name="19999"))[0]] == ["019999.jpg"]
    assert run.page(PageQuery("d", "r", "failed", name="19999")) == ([], 0)


def test_defects_are_shown_and_the_cost_counts_usable_videos_only() -> None:
    line = {"outcome": "landed", "uri": "gs://videos/a.mp4", "request_id": request_id(), "cost_usd": 0.2}
    bad = {**line, "verdict": "bad", "reasons": ["black", "short"]}
    values = [line, bad, {**bad, "outcome": "rejected"}, {**line, "fingerprint": FINGERPRINT}]
    run = RunView([], [(ENDED, images(values, ENDED))])
    assert run.summary == "3 landed, 1 rejected, 0.80 USD, 0.40 USD per usable video"
    shown, _ = run.page(PageQuery("dag", "run"))
    assert [card.videos[0].defect for card in shown] == ["", "black, short", "black, short", ""]
    verdict = {"status": "bad", "reasons": ["black"], "detail": "its frames are black"}
    record = {"request_id": request_id(), "videos": [{"uri": "gs://videos/a.mp4", "verdict": verdict}]}
    assert [video.defect for video in with_record(shown[1], record).videos] == ["its frames are black"]


def test_rejected_takes_before_a_video_count_in_the_cost() -> None:
    takes = [{"cost_usd": 0.3}, {"cost_usd": 0.4}, {"cost_usd": None}, 5]
    line = {"outcome": "landed", "uri": "gs://videos/a.mp4", "cost_usd": 0.2, "takes": takes}
    run = RunView([], [(ENDED, images([line, {**line, "takes": 7}], ENDED))])
    assert run.summary == "2 landed, 1.10 USD, 0.55 USD per usable video"
    shown, total = run.page(ALL)
    page = render_page(run, shown, query=ALL, total=total, nonce="n")
    assert page.count("<dt>rejected takes</dt><dd>0.7 USD</dd>") == 1


def test_batches_of_several_models_are_joined_by_image() -> None:
    values = [{"image": f"gs://in/{name}.jpg", "outcome": "landed", "cost_usd": 0.2} for name in "abc"]
    batches = [
        (
            replace(ENDED, map_index=number, model_id=model),
            images(values[number:], replace(ENDED, map_index=number, model_id=model)),
        )
        for number, model in enumerate(["a/one", "a/two"])
    ]
    run = RunView([], batches)
    shown, total = run.page(PageQuery("dag", "run"))
    assert total == 3
    assert [(card.title, card.model_id) for card in shown] == [
        ("a.jpg", "a/one"),
        ("b.jpg", "a/one"),
        ("b.jpg", "a/two"),
        ("c.jpg", "a/one"),
        ("c.jpg", "a/two"),
    ]
    assert run.page(PageQuery("dag", "run", view="cards"))[1] == 5


def test_record_of_a_request_adds_its_inputs_and_times() -> None:
    line = {"outcome": "landed", "request_id": request_id(), "fingerprint": FINGERPRINT, "cost_usd": 0.2}
    (card,) = cards([line])
    assert card.record == f"{JOURNAL}/{FINGERPRINT}.json"
    record = {
        "request_id": request_id(),
        "inputs": {"prompt": "a slow wave", "seed": 7},
        "model_id": MODEL,
        "created_at": "2026-01-15T00:00:01+00:00",
        "finished_at": "2026-01-15T00:02:15+00:00",
    }
    full = with_record(card, record)
    assert (full.inputs["prompt"], full.inputs["seed"]) == ("a slow wave", 7)
    assert (full.model_id, full.seconds, full.cost_usd) == (MODEL, 134.0, 0.2)


@pytest.mark.parametrize("record", [None, {}, {"request_id": request_id(9), "inputs": {"prompt": "another"}}])
def test_record_of_another_request_adds_nothing(record: dict[str, Any] | None) -> None:
    (card,) = cards([{"outcome": "landed", "request_id": request_id(), "fingerprint": FINGERPRINT}])
    assert with_record(card, record) == card


@pytest.mark.parametrize("fingerprint", [None, 5, "", "../../secret", "AB" * 32])
def test_malformed_fingerprint_names_no_record(fingerprint: object) -> None:
    (card,) = cards([{"outcome": "landed", "fingerprint": fingerprint}])
    assert card.record is None
    assert cards([{"fingerprint": FINGERPRINT}], replace(RUNNING, journal=None))[0].record is None


def test_failure_of_a_batch_is_shown_above_its_cards_and_is_no_card() -> None:
    entries = [Entry("batch", 3, "summary", summary()), failed(3, task="batch"), failed(0, task="wait")]
    (batch,) = batches_of(entries)
    assert [card.ref.task_id for card in cards_of(entries, batches={batch.task})] == ["wait"]
    assert problems_of([batch], entries) == ["batch [3]: it shows too much"]


def test_unreadable_file_is_named() -> None:
    (problem,) = RunView([], [(ENDED, None)]).problems
    assert MANIFEST_URI in problem


def test_progress_of_all_batches_is_shown_above_the_cards() -> None:
    batches = batches_of([Entry("batch", number, "progress", progress()) for number in (0, 1)])
    run = RunView([], [(batch, None) for batch in batches])
    assert [line.partition(":")[0] for line in run.progress] == ["batch [0]", "batch [1]"]
    page = render_page(run, [], query=PageQuery("dag", "run"), total=0, nonce="n")
    assert "batch [1]: 4 of 30 done" in page


def test_rare_filters_are_shown_if_they_select_something() -> None:
    run = RunView([], [(RUNNING, images([{"outcome": "to_do"}] * 3 + [{"outcome": "landed"}], RUNNING))])
    query = PageQuery("dag", "run", "to do")
    shown, total = run.page(query)
    assert len(shown) == total == 3
    page = render_page(run, shown, query=query, total=total, nonce="n")
    assert "to do (3)" in page
    assert "left undone" not in page
