# SPDX-License-Identifier: Apache-2.0
"""What a run's XComs and task states say about each of its videos."""

from __future__ import annotations

import pytest

from airflow_provider_wan.gallery.cards import Entry, Look, Submitter, cards_of
from tests.gallery.gallery_entries import IMAGE, MODEL, failed, landed, refused, request_id, submitted, waited


@pytest.mark.parametrize(
    ("entries", "look"),
    [
        ([submitted()], Look.OPEN),
        ([submitted(), waited()], Look.SUCCEEDED),
        ([submitted(), waited(), landed()], Look.LANDED),
        ([landed()], Look.LANDED),
        ([submitted(), failed()], Look.FAILED),
        ([submitted(), failed(kind="WanCancelledError")], Look.CANCELLED),
        ([submitted(), waited(), failed(task="land")], Look.FAILED),
        ([submitted(), waited(), landed(), failed(task="notify")], Look.LANDED),
        ([refused()], Look.REFUSED),
        ([failed(task="submit")], Look.FAILED),
        ([Entry("submit", 0, "request", submitted().value)], Look.OPEN),
    ],
)
def test_a_card_says_how_far_its_video_has_come(entries: list[Entry], look: Look) -> None:
    assert [card.look for card in cards_of(entries, [])] == [look]


def test_a_card_joins_what_three_tasks_say() -> None:
    (card,) = cards_of([landed(), waited(), submitted()], [])

    assert (card.prompt, card.seed, card.model_id, card.image) == ("a slow wave", "7", MODEL, IMAGE)
    assert (card.cost_usd, card.seconds, card.request_id) == (0.2, 134.0, request_id())
    assert [film.uri for film in card.films] == ["gs://videos/0.mp4"]
    assert card.films[0].place is not None
    assert (card.films[0].place.task_id, card.place.task_id) == ("land", "submit")


def test_a_video_that_two_tasks_return_is_shown_once() -> None:
    collected = Entry("collect", -1, "return_value", landed().value)
    (card,) = cards_of([submitted(), landed(), collected], [])
    assert len(card.films) == 1


def test_a_mapped_run_is_shown_in_its_order() -> None:
    entries = [submitted(number) for number in (11, 2, 0)]
    assert [card.place.map_index for card in cards_of(entries, [])] == [0, 2, 11]


@pytest.mark.parametrize(
    ("state", "looks"),
    [
        (None, [Look.OPEN]),
        ("scheduled", [Look.OPEN]),
        ("deferred", [Look.OPEN]),
        ("failed", [Look.FAILED]),
        ("upstream_failed", [Look.FAILED]),
        ("skipped", []),
        ("removed", []),
    ],
)
def test_a_task_that_has_said_nothing_is_shown_by_its_state(state: str | None, looks: list[Look]) -> None:
    assert [card.look for card in cards_of([], [Submitter("submit", 0, state)])] == looks


def test_a_task_that_has_spoken_gets_no_second_card() -> None:
    assert len(cards_of([submitted()], [Submitter("submit", 0, "success")])) == 1
    assert len(cards_of([refused()], [Submitter("submit", 0, "skipped")])) == 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "text",
        [],
        {},
        [1, None, {"uri": 5}],
        {"request_id": 7},
        {"request_id": "x"},
        [{"uri": "gs://a/b"}],
    ],
)
def test_xcoms_of_other_tasks_are_passed_over(value: object) -> None:
    assert cards_of([Entry("other", -1, "return_value", value), Entry("other", 0, "failed", value)], []) in (
        [],
        # A mapping under the key of failures is one, whoever pushed it.
        cards_of([Entry("other", 0, "failed", value)], []),
    )
