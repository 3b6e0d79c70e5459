# SPDX-License-Identifier: Apache-2.0
"""When a single wait polls and when it ends, in simulated time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanCancelledError,
    WanError,
    WanGenerationFailedError,
    WanNotFoundError,
    WanRefusedError,
    WanTimeoutError,
    WanTransientError,
)
from airflow_provider_wan.model_api.states import State, state_of_result_word, state_of_status_word
from airflow_provider_wan.model_api.values import RequestResult, RequestStatus
from airflow_provider_wan.polling.poller import RequestPoller
from airflow_provider_wan.polling.wait import Call, Outcome, Over, RequestWait, WaitSet
from tests.model_api.model_api_replies import STEADY

Answer = RequestStatus | RequestResult | WanError
URL = ("https://files.runcomfy.net/a.mp4",)


def status(word: str, position: int | None = None) -> RequestStatus:
    return RequestStatus("r-1", state_of_status_word(word), word, position)


def result(word: str, error: str | None = None) -> RequestResult:
    return RequestResult("r-1", state_of_result_word(word, True), word, URL, URL, error=error)


@dataclass
class Run:
    """A whole wait: what was asked when, how it ended, what was logged."""

    over: Over
    ended_at: float
    asked: list[tuple[float, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def pauses(self) -> list[float]:
        times = [at for at, _ in self.asked]
        return [b - a for a, b in itertools.pairwise(times)]


def run(
    answers: Iterable[Answer],
    *,
    deadline: float = 3600.0,
    interval_s: float | None = None,
    start: float = 0.0,
    takes_s: float = 0.0,
    **options: Any,
) -> Run:
    """Carry out a wait; the last answer is given for ever. A word for the other call is used for this one."""
    wait = RequestWait("r-1", deadline=deadline, poll_interval_s=interval_s, **options)
    waits, script, now = WaitSet(RequestPoller()), list(answers), start
    waits.add(wait, now)
    done = Run(Over("timeout"), now)
    for _ in range(100_000):
        due = waits.due(now, 1)
        if wait.over is not None:
            done.over, done.ended_at = wait.over, now
            return done
        if not due:
            now = max(now + 1e-6, waits.next_at(now))
            assert now <= max(deadline, start) + 1e-3
            continue
        done.asked.append((now, due[0][1]))
        now += takes_s
        answer(waits, due[0][1], script.pop(0) if len(script) > 1 else script[0], now)
        done.lines += wait.messages.drain()
    raise AssertionError("this wait does not end")


def answer(waits: WaitSet, call: Call, given: Answer, now: float) -> None:
    if isinstance(given, WanError):
        waits.on_error("r-1", call, given, now)
    elif call == "status":
        waits.on_status(given if isinstance(given, RequestStatus) else status(given.word), now)
    else:
        waits.on_result(given if isinstance(given, RequestResult) else result(given.word), now)


@pytest.mark.parametrize(
    ("there", "outcome", "error"),
    [
        ("succeeded", "succeeded", None),
        ("completed", "succeeded", None),
        ("failed", "failed", WanGenerationFailedError),
        ("cancelled", "cancelled", WanCancelledError),
    ],
)
@pytest.mark.parametrize("here", ["completed", "succeeded", "failed", "cancelled", "CANCELED"])
def test_result_alone_decides_after_any_final_status(
    here: str, there: str, outcome: Outcome, error: type[WanError] | None
) -> None:
    done = run([status("in_queue", 2), status("in_progress"), status(here), result(there, "why")])
    assert done.over.outcome == outcome
    assert done.over.result == result(there, "why")
    assert [call for _, call in done.asked] == ["status", "status", "status", "result"]
    assert done.pauses[-1] == 0
    found = done.over.error
    assert (type(found) if found else None) is error
    assert found is None or "r-1" in str(found)


def test_failure_contains_its_reason() -> None:
    error = run([status("completed"), result("failed", "nsfw")]).over.error
    assert "nsfw" in str(error)


@pytest.mark.parametrize("late", ["in_queue", "in_progress"])
def test_result_that_is_still_running_is_polled_again_later(late: str) -> None:
    done = run([status("completed"), result(late), result(late), result(late), result("succeeded")])
    assert done.over.outcome == "succeeded"
    assert [call for _, call in done.asked[1:]] == ["result"] * 4
    assert done.pauses[1] >= 1.8
    assert done.pauses[1] < done.pauses[2] < done.pauses[3] <= 30


def test_result_that_is_not_ready_is_not_an_unknown_state() -> None:
    not_ready = RequestResult("r-1", State.UNKNOWN, "not_ready")
    done = run([status("completed"), not_ready, result("succeeded")])
    assert done.over.outcome == "succeeded"
    assert not any("not_ready" in note for note in done.lines)


@pytest.mark.parametrize("where", ["status", "result"])
def test_unknown_state_is_logged_once_and_polled_until_the_deadline(where: str) -> None:
    first: list[Answer] = [status("completed")] if where == "result" else []
    done = run([*first, result("archived") if where == "result" else status("archived")])
    assert done.over.outcome == "timeout"
    assert done.ended_at == 3600.0
    assert sum("archived" in note for note in done.lines) == 1
    assert "archived" in str(done.over.error)


def test_errors_do_not_end_a_paid_wait() -> None:
    errors: list[Answer] = [
        WanTransientError("out"),
        WanAuthError("no"),
        WanRefusedError("no", code=403001),
        WanNotFoundError("gone"),
    ]
    done = run([*errors * 3, status("completed"), *errors, result("succeeded")])
    assert done.over.outcome == "succeeded"


def test_errors_back_off_and_a_recovery_is_logged() -> None:
    done = run([*[WanTransientError("out")] * 25, status("in_progress"), status("completed"), result("succeeded")])
    assert done.pauses[:5] == [1.5, 3.0, 6.0, 12.0, 24.0]
    assert max(done.pauses) <= 60
    assert sum("out" in note for note in done.lines) == 3  # the first, the 10th, the 20th
    assert any("25 failed" in note for note in done.lines)


def test_missing_needs_several_404s_in_a_row_over_some_time() -> None:
    gone = WanNotFoundError("404001", request_id="r-1")
    done = run([status("in_progress"), gone])
    assert done.over.outcome == "gone"
    assert isinstance(done.over.error, WanNotFoundError)
    first = next(at for at, _ in done.asked[1:])
    assert done.ended_at - first >= 60
    assert len(done.asked) - 1 >= 3


@pytest.mark.parametrize("other", [WanTransientError("out"), WanRefusedError("plain 404"), status("in_queue")])
def test_other_answer_resets_the_count_of_404s(other: Answer) -> None:
    gone = WanNotFoundError("404001")
    done = run([gone, gone, other] * 400, deadline=1000.0)
    assert done.over.outcome == "timeout"


def test_few_404s_do_not_make_a_request_missing_whatever_the_time() -> None:
    gone = WanNotFoundError("404001")
    done = run([gone, gone, status("completed"), result("succeeded")], takes_s=100.0)
    assert done.over.outcome == "succeeded"


def test_a_timeout_names_the_request_and_its_last_state() -> None:
    done = run([status("in_queue", 7)])
    error = done.over.error
    assert isinstance(error, WanTimeoutError)
    assert error.retry_helps
    assert error.request_id == "r-1"
    for part in ("r-1", "queued", "7"):
        assert part in str(error)


def test_timeout_in_an_outage_names_the_last_error_and_may_be_retried() -> None:
    error = run([status("in_progress"), WanTransientError("HTTP 503: busy.")]).over.error
    assert isinstance(error, WanTimeoutError)
    assert "HTTP 503: busy." in str(error)
    assert "running" in str(error)


def test_last_poll_is_made_at_the_deadline() -> None:
    done = run([status("in_progress")], deadline=100.0, interval_s=80.0)
    assert [at for at, _ in done.asked] == [0.0, 80.0, 100.0]
    done = run([status("in_progress"), status("completed"), result("succeeded")], deadline=10.0, interval_s=80.0)
    assert done.over.outcome == "succeeded"


def test_wait_that_wakes_after_its_deadline_polls_once() -> None:
    late = 100.0
    assert len(run([status("in_progress")], deadline=late, start=5000.0).asked) == 1
    assert len(run([WanTransientError("x")], deadline=late, start=5000.0).asked) == 1
    assert run([status("completed"), result("succeeded")], deadline=late, start=5000.0).over.outcome == "succeeded"
    assert len(run([status("completed"), result("in_progress")], deadline=late, start=5000.0).asked) == 2


@pytest.mark.parametrize("asked_s", [200.0, 31_536_000.0])
def test_a_retry_after_beyond_the_deadline_is_kept_and_the_wait_ends_at_its_deadline(asked_s: float) -> None:
    done = run([WanTransientError("busy", retry_after_s=asked_s)], deadline=100.0)
    assert done.over.outcome == "timeout"
    assert done.ended_at == 100.0
    assert len(done.asked) == 1


def test_the_interval_grows_with_the_time_waited_while_no_generation_time_is_known() -> None:
    pauses = run([status("in_progress")]).pauses
    assert pauses[0] == pytest.approx(2.0)
    assert pauses[20] > pauses[0]
    assert max(pauses) == pytest.approx(30.0)


def test_a_fixed_interval_is_kept() -> None:
    for word in ("in_queue", "in_progress"):
        done = run([status(word, 50)], interval_s=300.0)
        assert done.pauses[:-1] == pytest.approx([300.0] * len(done.pauses[:-1]))


def test_a_retry_after_from_before_the_wait_holds_for_its_first_poll() -> None:
    done = run([status("completed"), result("succeeded")], not_before=45.0)
    assert done.asked[0][0] >= 45.0
    assert done.over.outcome == "succeeded"


def test_only_changes_are_logged() -> None:
    done = run(
        [status("in_queue", 3)] * 3
        + [status("in_queue", 2)] * 3
        + [status("in_progress")] * 3
        + [status("completed"), result("succeeded")]
    )
    assert [note.removeprefix("Request r-1: ") for note in done.lines] == [
        "queued, at position 3.",
        "queued, at position 2.",
        "running.",
        "ended, its result still to come.",
        "succeeded.",
    ]


def test_a_long_queue_is_a_few_lines_in_the_log() -> None:
    answers = [status("in_queue", place) for place in range(4000, -1, -1)]
    done = run([*answers, status("in_progress"), status("completed"), result("succeeded")], deadline=1e9)
    places = [note for note in done.lines if "position" in note]
    assert len(places) < 40
    assert places[0] == "Request r-1: queued, at position 4000."
    assert places[-1] == "Request r-1: queued, at position 0."


def test_moving_back_in_the_queue_is_logged() -> None:
    done = run([status("in_queue", place) for place in (40, 39, 50)] + [status("completed"), result("failed")])
    assert [note for note in done.lines if "position" in note] == [
        "Request r-1: queued, at position 40.",
        "Request r-1: queued, at position 50.",
    ]


def test_timeout_names_the_last_queue_position_although_it_was_not_logged() -> None:
    done = run([status("in_queue", 40), status("in_queue", 39)])
    assert "position 39" in str(done.over.error)


ANSWERS = st.one_of(
    st.builds(
        status,
        st.sampled_from(["in_queue", "in_progress", "completed", "weird"]),
        st.none() | st.integers(0, 99),
    ),
    st.builds(result, st.sampled_from(["in_queue", "in_progress", "weird"])),
    st.builds(lambda s: WanTransientError("x", retry_after_s=s), st.none() | st.floats(0, 1e9)),
    st.sampled_from([WanAuthError("a"), WanRefusedError("r"), WanNotFoundError("n")]),
    st.builds(result, st.sampled_from(["succeeded", "failed", "cancelled"])),
)


@STEADY
@given(
    st.lists(ANSWERS, min_size=1, max_size=12),
    st.floats(1, 2000),
    st.none() | st.floats(1, 500),
    st.sampled_from([0.0, 0.3, 15.0]),
    st.floats(0, 1e9),
)
def test_every_wait_ends_in_time_and_undercuts_no_retry_after(
    answers: list[Answer], length_s: float, interval_s: float | None, takes_s: float, start: float
) -> None:
    deadline = start + length_s
    wait = RequestWait("r-1", deadline=deadline, poll_interval_s=interval_s)
    waits = WaitSet(RequestPoller())
    waits.add(wait, start)
    now, not_before, polls_after_deadline, script = start, start, 0, list(answers)
    for _ in range(10_000):
        due = waits.due(now, 1)
        if wait.over is not None:
            break
        if not due:
            now = max(math.nextafter(now, math.inf), waits.next_at(now))
            continue
        assert now >= not_before
        polls_after_deadline += now >= deadline
        now += takes_s
        given_answer = script.pop(0) if len(script) > 1 else script[0]
        answer(waits, due[0][1], given_answer, now)
        if isinstance(given_answer, WanTransientError):
            not_before = max(not_before, now + (given_answer.retry_after_s or 0.0))
    else:
        raise AssertionError("this wait does not end")
    assert polls_after_deadline <= 2
    assert now <= deadline + 2 * takes_s + 1.0


# -- several waits together --------------------------------------------------------------------------------


def test_two_waits_for_one_request_end_with_the_same_call() -> None:
    waits = WaitSet(RequestPoller())
    both = [RequestWait("r-1", deadline=1e6), RequestWait("r-1", deadline=1e6)]
    for wait in both:
        waits.add(wait, 0.0)
    assert waits.due(0.0, 10) == [("r-1", "status")]
    waits.on_status(status("completed"), 0.1)
    assert waits.due(0.1, 10) == [("r-1", "result")]
    waits.remove(both[0])
    waits.on_result(result("succeeded"), 0.2)
    assert both[0].over is None
    assert both[1].over is not None


def test_one_request_that_always_fails_does_not_delay_the_others() -> None:
    """Its Retry-After is a year, it is rate-limited or belongs to another account; the others are polled as usual."""
    for error in (WanTransientError("429", retry_after_s=1.0), WanTransientError("500"), WanAuthError("no")):
        waits, now = WaitSet(RequestPoller()), 0.0
        for name in ("bad", "good"):
            waits.add(RequestWait(name, deadline=1e6, poll_interval_s=5.0), now)
        polled: list[float] = []
        while now < 300.0:
            for request_id, call in waits.due(now, 10):
                if request_id == "bad":
                    waits.on_error("bad", call, error, now)
                else:
                    polled.append(now)
                    waits.on_status(RequestStatus("good", State.RUNNING, "in_progress"), now)
            now = max(now + 0.01, waits.next_at(now))
        assert max(b - a for a, b in itertools.pairwise(polled)) < 6.0, error


def test_a_wait_that_was_removed_does_not_come_back_at_its_deadline() -> None:
    waits = WaitSet(RequestPoller())
    removed, other = RequestWait("r-1", deadline=10.0), RequestWait("r-2", deadline=100.0)
    waits.add(removed, 0.0)
    waits.add(other, 0.0)
    waits.remove(removed)
    waits.due(11.0, 10)
    assert removed.over is None
    assert not waits.changed
