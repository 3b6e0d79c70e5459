# SPDX-License-Identifier: Apache-2.0
"""When to look again and when a wait is over, driven by a clock that costs no time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
from airflow_provider_wan.model_api.calls import RequestResult, RequestStatus
from airflow_provider_wan.model_api.states import State, state_of_result_word, state_of_status_word
from airflow_provider_wan.polling.request_wait import (
    Ask,
    Outcome,
    Over,
    RequestWait,
    WaitPolicy,
    error_of_outcome,
)
from tests.model_api.model_api_replies import STEADY

Answer = RequestStatus | RequestResult | WanError
URL = ("https://files.runcomfy.net/a.mp4",)


def status(word: str, position: int | None = None) -> RequestStatus:
    return RequestStatus("r-1", state_of_status_word(word), word, position)


def result(word: str, error: str | None = None) -> RequestResult:
    return RequestResult("r-1", state_of_result_word(word, True), word, URL, URL, error=error)


@dataclass
class Run:
    """A whole wait: who was asked when, how it ended, what was noted."""

    over: Over
    ended_at: float
    asked: list[tuple[float, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fresh_connections: int = 0

    @property
    def pauses(self) -> list[float]:
        times = [at for at, _ in self.asked]
        return [b - a for a, b in itertools.pairwise(times)]


def run(
    answers: Iterable[Answer],
    policy: WaitPolicy | None = None,
    *,
    rnd: Callable[[], float] = lambda: 0.5,
    start: float = 0.0,
    takes_s: float = 0.0,
) -> Run:
    """Carry out a wait; the last answer is given for ever. An answer of the wrong call is put off."""
    wait = RequestWait("r-1", policy or WaitPolicy(deadline=3600.0), rnd)
    script, now = list(answers), start
    done = Run(Over("timeout"), now)
    for _ in range(100_000):
        step = wait.next_step(now)
        if isinstance(step, Over):
            done.over, done.ended_at = step, now
            assert wait.next_step(now + 1e6) == step
            return done
        assert step.at <= wait.policy.deadline
        if step.at > now:
            now = step.at
            continue
        done.asked.append((now, step.call))
        now += takes_s
        answer = script.pop(0) if len(script) > 1 else script[0]
        _tell(wait, step, answer, now)
        done.fresh_connections += wait.wants_fresh_connection
        done.notes += wait.notes()
    raise AssertionError("this wait does not end")


def _tell(wait: RequestWait, step: Ask, answer: Answer, now: float) -> None:
    if isinstance(answer, WanError):
        wait.on_error(answer, now)
    elif step.call == "status":
        word = answer.word if isinstance(answer, RequestResult) else None
        wait.on_status(answer if isinstance(answer, RequestStatus) else status(word or ""), now)
    else:
        wait.on_result(answer if isinstance(answer, RequestResult) else result(answer.word), now)


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
def test_any_end_in_status_leads_to_the_result_which_alone_decides(
    here: str, there: str, outcome: Outcome, error: type[WanError] | None
) -> None:
    done = run([status("in_queue", 2), status("in_progress"), status(here), result(there, "why")])
    assert done.over.outcome == outcome
    assert done.over.result == result(there, "why")
    assert [call for _, call in done.asked] == ["status", "status", "status", "result"]
    assert done.pauses[-1] == 0
    found = error_of_outcome(done.over, "r-1")
    assert found is done.over.error
    assert (type(found) if found else None) is error
    assert found is None or "r-1" in str(found)


def test_a_failure_says_why() -> None:
    error = run([status("completed"), result("failed", "nsfw")]).over.error
    assert "nsfw" in str(error)


@pytest.mark.parametrize("late", ["in_queue", "in_progress"])
def test_a_result_that_still_says_running_is_asked_again_a_little_later(late: str) -> None:
    done = run([status("completed"), result(late), result(late), result(late), result("succeeded")])
    assert done.over.outcome == "succeeded"
    assert [call for _, call in done.asked[1:]] == ["result"] * 4
    assert done.pauses[1] >= 1.8
    assert done.pauses[1] < done.pauses[2] < done.pauses[3] <= 30


def test_a_result_that_is_not_ready_is_no_unknown_word() -> None:
    not_ready = RequestResult("r-1", State.UNKNOWN, "not_ready")
    done = run([status("completed"), not_ready, result("succeeded")])
    assert done.over.outcome == "succeeded"
    assert not any("not_ready" in note for note in done.notes)


@pytest.mark.parametrize("where", ["status", "result"])
def test_an_unknown_word_is_noted_once_and_looked_at_until_the_deadline(where: str) -> None:
    first: list[Answer] = [status("completed")] if where == "result" else []
    done = run([*first, result("archived") if where == "result" else status("archived")])
    assert done.over.outcome == "timeout"
    assert done.ended_at == 3600.0
    assert sum("archived" in note for note in done.notes) == 1
    assert "archived" in str(done.over.error)


def test_errors_do_not_end_a_wait_that_is_paid_for() -> None:
    errors: list[Answer] = [
        WanTransientError("out"),
        WanAuthError("no"),
        WanRefusedError("no", code=403001),
        WanNotFoundError("gone"),
    ]
    done = run([*errors * 3, status("completed"), *errors, result("succeeded")])
    assert done.over.outcome == "succeeded"


def test_errors_back_off_and_a_recovery_is_noted() -> None:
    done = run(
        [*[WanTransientError("out")] * 25, status("in_progress"), status("completed"), result("succeeded")]
    )
    assert done.pauses[:5] == [1.5, 3.0, 6.0, 12.0, 24.0]
    assert max(done.pauses) <= 60
    assert sum("out" in note for note in done.notes) == 3  # the first, the 10th, the 20th
    assert any("25 failed" in note for note in done.notes)


def test_each_auth_error_asks_for_a_fresh_connection_and_a_rotated_token_loses_nothing() -> None:
    done = run(
        [
            WanAuthError("no"),
            WanAuthError("no"),
            WanTransientError("x"),
            status("completed"),
            result("succeeded"),
        ]
    )
    assert done.over.outcome == "succeeded"
    assert done.fresh_connections == 2


def test_gone_needs_several_answers_in_a_row_over_some_time() -> None:
    gone = WanNotFoundError("404001", request_id="r-1")
    done = run([status("in_progress"), gone])
    assert done.over.outcome == "gone"
    assert isinstance(done.over.error, WanNotFoundError)
    first = next(at for at, _ in done.asked[1:])
    assert done.ended_at - first >= 60
    assert len(done.asked) - 1 >= 3


@pytest.mark.parametrize(
    "other", [WanTransientError("out"), WanRefusedError("plain 404"), status("in_queue")]
)
def test_anything_else_between_breaks_the_row(other: Answer) -> None:
    gone = WanNotFoundError("404001")
    done = run([gone, gone, other] * 400, WaitPolicy(deadline=1000.0))
    assert done.over.outcome == "timeout"


def test_few_answers_do_not_make_it_gone_however_long_they_take() -> None:
    gone = WanNotFoundError("404001")
    done = run([gone, gone, status("completed"), result("succeeded")], takes_s=100.0)
    assert done.over.outcome == "succeeded"


def test_a_timeout_names_the_request_the_last_state_and_how_to_resume() -> None:
    done = run([status("in_queue", 7)])
    error = done.over.error
    assert isinstance(error, WanTimeoutError)
    assert error.retry_helps
    assert error.request_id == "r-1"
    for part in ("r-1", "queued", "7", 'request="r-1"'):
        assert part in str(error)


def test_a_timeout_in_an_outage_tells_the_last_error_and_may_be_retried() -> None:
    error = run([status("in_progress"), WanTransientError("HTTP 503: busy.")]).over.error
    assert isinstance(error, WanTimeoutError)
    assert "HTTP 503: busy." in str(error)
    assert "running" in str(error)


def test_a_last_look_is_made_at_the_deadline() -> None:
    done = run([status("in_progress")], WaitPolicy(deadline=100.0, poll_interval_s=80.0))
    assert [at for at, _ in done.asked] == [0.0, 80.0, 100.0]
    done = run([status("in_progress"), status("completed"), result("succeeded")], WaitPolicy(10.0, 80.0))
    assert done.over.outcome == "succeeded"


def test_a_wait_that_wakes_after_its_deadline_looks_once() -> None:
    late = WaitPolicy(deadline=100.0)
    assert len(run([status("in_progress")], late, start=5000.0).asked) == 1
    assert len(run([WanTransientError("x")], late, start=5000.0).asked) == 1
    assert run([status("completed"), result("succeeded")], late, start=5000.0).over.outcome == "succeeded"
    assert len(run([status("completed"), result("in_progress")], late, start=5000.0).asked) == 2


@pytest.mark.parametrize("asked_s", [200.0, 31_536_000.0])
def test_a_retry_after_beyond_the_deadline_is_kept_and_the_wait_ends_at_its_deadline(asked_s: float) -> None:
    done = run([WanTransientError("busy", retry_after_s=asked_s)], WaitPolicy(deadline=100.0))
    assert done.over.outcome == "timeout"
    assert done.ended_at == 100.0
    assert len(done.asked) == 1


def test_the_adaptive_interval_grows_with_the_time_waited() -> None:
    pauses = run([status("in_progress")]).pauses
    assert 1.8 <= pauses[0] <= 2.2
    assert pauses[20] > pauses[0]
    assert max(pauses) == pytest.approx(30.0)
    capped = run([status("in_progress")], WaitPolicy(3600.0, max_interval_s=10.0))
    assert max(capped.pauses) == pytest.approx(10.0)


def test_deep_in_the_queue_is_looked_at_less_often() -> None:
    assert run([status("in_queue", 8)]).pauses[0] > run([status("in_queue", 1)]).pauses[0] > 2.0
    assert run([status("in_queue", 500)]).pauses[0] == 30.0


@pytest.mark.parametrize(("rnd", "pause_s"), [(0.0, 36.0), (0.5, 40.0), (1.0, 44.0)])
def test_a_given_interval_is_kept_within_a_tenth(rnd: float, pause_s: float) -> None:
    done = run([status("in_queue", 50)], WaitPolicy(3600.0, poll_interval_s=40.0), rnd=lambda: rnd)
    assert done.pauses[0] == pytest.approx(pause_s)


def test_only_changes_are_noted() -> None:
    done = run(
        [status("in_queue", 3)] * 3
        + [status("in_queue", 2)] * 3
        + [status("in_progress")] * 3
        + [status("completed"), result("succeeded")]
    )
    assert [note.removeprefix("Request r-1: ") for note in done.notes] == [
        "queued, at position 3.",
        "queued, at position 2.",
        "running.",
        "ended, its result still to come.",
        "succeeded.",
    ]


def test_a_long_queue_is_a_few_lines_in_the_log() -> None:
    answers = [status("in_queue", place) for place in range(4000, -1, -1)]
    done = run([*answers, status("in_progress"), status("completed"), result("succeeded")], WaitPolicy(1e9))
    places = [note for note in done.notes if "position" in note]
    assert len(places) < 40
    assert places[0] == "Request r-1: queued, at position 4000."
    assert places[-1] == "Request r-1: queued, at position 0."


def test_falling_back_in_the_queue_is_noted() -> None:
    done = run(
        [status("in_queue", place) for place in (40, 39, 50)] + [status("completed"), result("failed")]
    )
    assert [note for note in done.notes if "position" in note] == [
        "Request r-1: queued, at position 40.",
        "Request r-1: queued, at position 50.",
    ]


def test_a_timeout_tells_the_last_place_though_it_was_not_worth_a_line() -> None:
    done = run([status("in_queue", 40), status("in_queue", 39)])
    assert "position 39" in str(done.over.error)


def test_the_end_of_a_wait_that_was_told_elsewhere_has_a_full_message_too() -> None:
    expected: dict[Outcome, type[WanError] | None] = {
        "succeeded": None,
        "failed": WanGenerationFailedError,
        "cancelled": WanCancelledError,
        "timeout": WanTimeoutError,
        "gone": WanNotFoundError,
    }
    for outcome, error in expected.items():
        found = error_of_outcome(Over(outcome), "r-9")
        assert (type(found) if found else None) is error
        assert found is None or ("r-9" in str(found) and found.request_id == "r-9")


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
    st.floats(0, 1),
    st.sampled_from([0.0, 0.3, 15.0]),
    st.floats(0, 1e9),
)
def test_every_wait_ends_in_time_and_undercuts_no_retry_after(
    answers: list[Answer], length_s: float, interval_s: float | None, rnd: float, takes_s: float, start: float
) -> None:
    policy = WaitPolicy(start + length_s, interval_s)
    wait = RequestWait("r-1", policy, lambda: rnd)
    now, not_before, looks_after_deadline, script = start, start, 0, list(answers)
    for _ in range(10_000):
        step = wait.next_step(now)
        if isinstance(step, Over):
            break
        assert step.at <= policy.deadline
        if step.at > now:
            now = step.at
            continue
        assert now >= not_before
        looks_after_deadline += now >= policy.deadline
        now += takes_s
        answer = script.pop(0) if len(script) > 1 else script[0]
        _tell(wait, step, answer, now)
        if isinstance(answer, WanTransientError):
            not_before = max(not_before, now + (answer.retry_after_s or 0.0))
    else:
        raise AssertionError("this wait does not end")
    assert looks_after_deadline <= 2
    assert now <= policy.deadline + 2 * takes_s
