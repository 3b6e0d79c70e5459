# SPDX-License-Identifier: Apache-2.0
"""What a run's XComs and task states say about each of its videos."""

from __future__ import annotations

import pytest

from airflow_provider_wan.gallery.card_list import CardList, PageQuery
from airflow_provider_wan.gallery.cards import CardState
from airflow_provider_wan.gallery.run_cards import Entry, RunTask, cards_of, image_at
from tests.gallery.entries import IMAGE, MODEL, failed, landed, refused, request_id, submitted, waited


@pytest.mark.parametrize(
    ("entries", "state"),
    [
        ([submitted()], CardState.OPEN),
        ([submitted(), waited()], CardState.SUCCEEDED),
        ([submitted(), waited(), landed()], CardState.LANDED),
        ([landed()], CardState.LANDED),
        ([refused()], CardState.REFUSED),
        ([Entry("submit", 0, "request", submitted().value)], CardState.OPEN),
        ([submitted(), waited(), landed(), failed(task="notify")], CardState.LANDED),
    ],
)
def test_card_shows_the_progress_of_its_video(entries: list[Entry], state: CardState) -> None:
    assert [card.state for card in cards_of(entries)] == [state]


FACTS = {"width": 682, "height": 454, "duration_s": 5.0, "has_audio": True}
BAD = {"status": "bad", "reasons": ["short"], "detail": "it lasts 3 s instead of 5 s"}


def test_video_with_a_defect_is_shown_and_is_not_usable() -> None:
    (card,) = cards_of([submitted(), landed(facts=FACTS, verdict=BAD)])
    (video,) = card.videos
    assert (card.state, card.is_usable, video.defect) == (CardState.LANDED, False, BAD["detail"])
    assert video.facts == "682 x 454, 5 s, with sound"
    (card,) = cards_of([submitted(), landed(facts=5, verdict={"status": "good", "detail": ""})])
    assert (card.is_usable, card.videos[0].defect, card.videos[0].facts) == (True, "", "")


def test_video_in_quarantine_is_rejected() -> None:
    rejected = landed(uri="gs://videos/_rejected/a.mp4", verdict=BAD)
    (card,) = cards_of([submitted(), rejected, failed(task="land", kind="WanStorageError")])
    assert (card.state, card.is_usable) == (CardState.REJECTED, False)


@pytest.mark.parametrize(
    ("entries", "state"),
    [
        ([submitted(), failed()], CardState.FAILED),
        ([submitted(), failed(kind="WanCancelledError")], CardState.CANCELLED),
        ([submitted(), failed(kind="WanTimeoutError")], CardState.TIMED_OUT),
        ([submitted(), failed(kind="WanAuthError")], CardState.TASK_FAILED),
        ([submitted(), waited(), failed(kind="WanStorageError", task="land")], CardState.NOT_LANDED),
        ([failed(kind="WanUnknownSubmissionError", task="submit", request=None)], CardState.UNKNOWN),
        ([failed(kind="WanInputError", task="submit", request=None)], CardState.REFUSED),
        ([failed(kind="WanBalanceError", task="submit", request=None)], CardState.REFUSED),
        ([failed(kind="WanTransientError", task="submit", request=None)], CardState.TASK_FAILED),
    ],
)
def test_failures_are_told_apart(entries: list[Entry], state: CardState) -> None:
    (card,) = cards_of(entries)
    assert (card.state, card.error) == (state, "it shows too much")


def test_failure_names_the_task_that_failed() -> None:
    (card,) = cards_of([submitted(2), failed(2)])
    assert (card.ref.task, card.failed_in) == (("submit", 2), ("wait", 2))


def test_landing_task_with_a_wrong_parameter_is_no_refused_image() -> None:
    entries = [failed(kind="WanInputError", task="land", request=None)]
    (card,) = cards_of(entries, [RunTask("land", 0, "failed", "WanToGCSOperator")])
    assert card.state is CardState.TASK_FAILED


def test_card_joins_the_xcoms_of_three_tasks() -> None:
    (card,) = cards_of([landed(), waited(), submitted()])

    assert (card.inputs["prompt"], card.inputs["seed"], card.model_id) == ("a slow wave", 7, MODEL)
    assert (card.image, card.title) == (IMAGE, "a.jpg")
    assert (card.cost_usd, card.seconds, card.request_id) == (0.2, 134.0, request_id())
    assert [video.uri for video in card.videos] == ["gs://videos/0.mp4"]
    assert card.videos[0].ref is not None
    assert (card.videos[0].ref.task_id, card.ref.task_id) == ("land", "submit")


def test_video_returned_by_two_tasks_is_shown_once() -> None:
    collected = Entry("collect", -1, "return_value", landed().value)
    (card,) = cards_of([submitted(), landed(), collected])
    assert len(card.videos) == 1


def test_cards_of_a_mapped_run_are_in_the_order_of_map_indexes() -> None:
    entries = [submitted(number) for number in (11, 2, 0)]
    assert [card.ref.map_index for card in cards_of(entries)] == [0, 2, 11]


@pytest.mark.parametrize(
    ("task_state", "states"),
    [
        (None, [CardState.OPEN]),
        ("scheduled", [CardState.OPEN]),
        ("deferred", [CardState.OPEN]),
        ("failed", [CardState.TASK_FAILED]),
        ("upstream_failed", [CardState.TASK_FAILED]),
        ("skipped", []),
        ("removed", []),
    ],
)
def test_task_without_xcoms_is_shown_by_its_state(task_state: str | None, states: list[CardState]) -> None:
    assert [card.state for card in cards_of([], [RunTask("submit", 0, task_state)])] == states


def test_task_with_xcoms_gets_no_second_card() -> None:
    assert len(cards_of([submitted()], [RunTask("submit", 0, "success")])) == 1
    assert len(cards_of([refused()], [RunTask("submit", 0, "skipped")])) == 1


@pytest.mark.parametrize("entries", [[submitted()], [submitted(), waited()]])
def test_paid_request_of_an_ended_run_is_marked_as_not_landed(entries: list[Entry]) -> None:
    (card,) = cards_of(entries, run_is_over=True)
    assert card.state is CardState.NOT_LANDED
    assert card.error


def test_skipped_landing_of_a_running_run_marks_its_requests_as_not_landed() -> None:
    chain = [RunTask("submit", 0, "success"), RunTask("wait", -1, "skipped", "WanRequestSensor")]
    landing = RunTask("land", -1, "skipped", "WanToGCSOperator")
    states = [card.state for card in cards_of([submitted(0), refused(1)], [*chain, landing])]
    assert states == [CardState.NOT_LANDED, CardState.REFUSED]
    waiting = RunTask("land", -1, None, "WanToGCSOperator")
    assert cards_of([submitted(0)], [*chain, waiting])[0].state is CardState.OPEN


def test_search_finds_names_of_images_and_videos() -> None:
    cards = cards_of([submitted(0, image="https://in.example.com/Ada%20one.PNG"), submitted(1), landed(1), refused(2)])
    listed = CardList.of_cards(cards)

    def find(name: str, state: str = "all") -> list[int]:
        return [number for _, number, _ in listed.find(PageQuery("d", "r", state, name=name))]

    assert find("Ada one") == [0]
    assert find("1.MP4") == [1]
    assert find("a.jpg", "refused") == [2]
    assert find("example.com") == []


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
def test_xcoms_of_other_tasks_are_ignored(value: object) -> None:
    failure = Entry("other", 0, "failed", value)
    # A mapping under the key of failures is one, whoever pushed it.
    expected = cards_of([failure]) if isinstance(value, dict) else []
    assert cards_of([Entry("other", -1, "return_value", value), failure]) == expected


@pytest.mark.parametrize(
    "inputs",
    [
        {"img_url": IMAGE},
        {"end_image_url": "https://images.example.com/b.jpg", "start_image_url": IMAGE, "prompt": "a"},
        {"last_frame": "https://images.example.com/b.jpg", "first_frame": IMAGE},
        {"images": [IMAGE, "https://images.example.com/b.jpg"]},
    ],
)
def test_source_image_is_found_in_the_inputs_of_any_model(inputs: dict[str, object]) -> None:
    entry = submitted(image=None, inputs={"prompt": "a slow wave", **inputs})
    assert [card.image for card in cards_of([entry])] == [IMAGE]
    assert cards_of([submitted(image=None, inputs={"prompt": "no image"})])[0].image is None


def test_image_is_found_by_the_reference_of_its_card() -> None:
    (card,) = cards_of([refused(2)])
    assert (card.ref.task, card.ref.key, card.ref.index) == (("submit", 2), "refused", 0)
    assert image_at(refused(2).value, card.ref.index) == IMAGE
    assert image_at(refused(2).value, 5) is None
