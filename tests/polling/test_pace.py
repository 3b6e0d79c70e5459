# SPDX-License-Identifier: Apache-2.0
"""Looks are left out where they can tell nothing, and no end is noticed later for it; on a clock that costs no time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from airflow_provider_wan.model_api.calls import RequestResult, RequestStatus
from airflow_provider_wan.model_api.states import State, state_of_result_word, state_of_status_word
from airflow_provider_wan.polling.pace import Experience, nap_s
from airflow_provider_wan.polling.request_wait import Over, RequestWait, WaitPolicy

URL = ("https://files.runcomfy.net/a.mp4",)
#: Whatever is said of an interval holds give or take its jitter of a tenth.
INTERVAL_S = 5.0
BOUND_S = 1.1 * INTERVAL_S


@dataclass(frozen=True)
class Request:
    """How a request goes: its place in the queue by time, when it starts, and how long it runs."""

    starts_at: float = 0.0
    runs_s: float = 120.0
    place: Callable[[float], int | None] = lambda now: None
    ends: str = "succeeded"

    def status(self, now: float) -> RequestStatus:
        if now < self.starts_at:
            return RequestStatus("r-1", State.QUEUED, "in_queue", self.place(now))
        word = "in_progress" if now < self.starts_at + self.runs_s else "completed"
        return RequestStatus("r-1", state_of_status_word(word), word, None)


def in_line(starts_at: float, *, starts_per_s: float) -> Callable[[float], int]:
    """Its place in a queue that moves evenly."""
    return lambda now: int((starts_at - now) * starts_per_s)


def wait_for(
    request: Request, experience: Experience | None = None, *, interval_s: float | None = INTERVAL_S
) -> tuple[list[float], float]:
    """Wait for a request; gives the moments of the looks at its status, and how late its end was noticed."""
    wait = RequestWait("r-1", WaitPolicy(1e6, interval_s), random.Random(4).random, experience=experience)
    now, looks = 0.0, []
    while not isinstance(step := wait.next_step(now), Over):
        if step.at > now:
            now = step.at
        elif step.call == "status":
            looks.append(now)
            wait.on_status(request.status(now), now)
        else:
            state = state_of_result_word(request.ends, True)
            wait.on_result(RequestResult("r-1", state, request.ends, URL, URL), now)
    return looks, looks[-1] - request.starts_at - request.runs_s


def experience_of(*requests: Request) -> Experience:
    """What waits for these have learned."""
    experience = Experience()
    for request in requests:
        wait_for(request, experience)
    return experience


def a_queue(count: int = 20, runs_s: float = 120.0, **more: str) -> list[Request]:
    return [Request(20.0 + n, runs_s * (0.8 + 0.02 * n), **more) for n in range(count)]  # type: ignore[arg-type]


def test_thousands_of_places_back_a_short_interval_is_not_kept() -> None:
    request = Request(1000.0, 120.0, in_line(1000.0, starts_per_s=4.0))
    looks, late_s = wait_for(request)
    in_queue = sum(at < request.starts_at for at in looks)
    assert in_queue < 0.25 * request.starts_at / INTERVAL_S
    assert 0 <= late_s <= BOUND_S


@pytest.mark.parametrize("starts_per_s", [0.02, 0.5, 5.0, 19.0])
@pytest.mark.parametrize("starts_at", [1.0, 30.0, 400.0])
def test_a_start_is_never_missed_by_much(starts_per_s: float, starts_at: float) -> None:
    request = Request(starts_at, 15.0, in_line(starts_at, starts_per_s=starts_per_s))
    looks, late_s = wait_for(request)
    assert any(starts_at <= at < starts_at + 15.0 for at in looks)
    assert 0 <= late_s <= BOUND_S


def test_no_pause_in_the_queue_is_longer_than_a_minute() -> None:
    request = Request(5000.0, 120.0, lambda now: 4000)  # and then all before it are cancelled
    looks, late_s = wait_for(request)
    assert 45.0 <= max(b - a for a, b in itertools.pairwise(looks)) <= 60.0
    assert 0 <= late_s <= BOUND_S


@pytest.mark.parametrize("place", [None, 0, 1])
def test_whoever_may_be_next_is_looked_at_every_interval(place: int | None) -> None:
    looks, _ = wait_for(Request(300.0, 60.0, lambda now: place))
    assert max(b - a for a, b in itertools.pairwise(looks)) <= BOUND_S


def test_a_longer_interval_than_the_longest_adaptive_one_is_kept() -> None:
    looks, _ = wait_for(Request(5000.0, 120.0, lambda now: 4000), interval_s=300.0)
    assert min(b - a for a, b in itertools.pairwise(looks)) >= 270.0


@pytest.mark.parametrize("interval_s", [INTERVAL_S, None])
def test_a_wait_learns_from_others_when_an_end_may_be_near(interval_s: float | None) -> None:
    request = Request(20.0, 120.0)
    alone, _ = wait_for(request, interval_s=interval_s)
    learned, late_s = wait_for(request, experience_of(*a_queue()), interval_s=interval_s)
    assert len(learned) < 0.65 * len(alone)
    assert 0 <= late_s <= (BOUND_S if interval_s else 0.15 * request.runs_s)


def test_nothing_is_learned_from_a_few_or_from_what_was_not_seen_to_start() -> None:
    alone, _ = wait_for(Request(20.0))
    for experience in (experience_of(*a_queue(5)), experience_of(*[Request(0.0)] * 20)):
        assert wait_for(Request(20.0), experience)[0] == alone


def test_a_failure_says_nothing_about_how_long_a_success_takes() -> None:
    experience = experience_of(*a_queue(), *a_queue(runs_s=3.0, ends="failed"))
    assert experience.least_s > 60


def test_what_was_running_already_is_looked_at_every_interval() -> None:
    looks, late_s = wait_for(Request(0.0), experience_of(*a_queue()))
    assert max(b - a for a, b in itertools.pairwise(looks)) <= BOUND_S
    assert 0 <= late_s <= BOUND_S


def test_a_model_that_becomes_quicker_is_noticed_late_only_until_that_is_learned() -> None:
    experience = experience_of(*a_queue())
    quick = Request(20.0, 20.0)
    late = [wait_for(quick, experience)[1] for _ in range(6)]
    assert late[0] <= 30.0, "never by more than the longest pause"
    assert late[-1] <= BOUND_S


def test_who_went_back_to_the_queue_starts_anew() -> None:
    @dataclass(frozen=True)
    class Restarted(Request):
        def status(self, now: float) -> RequestStatus:
            if 40.0 <= now < 70.0:
                return RequestStatus("r-1", State.QUEUED, "in_queue", None)
            return super().status(now)

    experience = experience_of(*a_queue())
    before = experience.least_s
    _, late_s = wait_for(Restarted(20.0, 150.0), experience)
    assert experience.least_s == before
    assert 0 <= late_s <= BOUND_S


def test_waits_that_are_due_at_about_the_same_time_wake_up_together() -> None:
    clock_s = 1234.567
    for due_s in (1.0, 1.04, 4.41, 30.0):
        wakes_at = clock_s + nap_s(due_s, clock_s)
        assert 0 <= wakes_at - (clock_s + due_s) <= 0.05
        assert wakes_at * 20 == pytest.approx(round(wakes_at * 20))
    later_s = clock_s + 0.3
    assert clock_s + nap_s(4.41, clock_s) == pytest.approx(later_s + nap_s(4.1, later_s))


def test_a_wait_that_is_due_at_once_waits_for_nobody() -> None:
    assert [nap_s(ahead_s, 1234.567) for ahead_s in (0.0, 0.02, 0.5)] == [0.0, 0.02, 0.5]
