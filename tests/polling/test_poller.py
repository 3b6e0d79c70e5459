# SPDX-License-Identifier: Apache-2.0
"""Polling many requests with few calls, against simulated accounts."""

from __future__ import annotations

import json
import statistics

import pytest

from airflow_provider_wan.exceptions import WanAuthError, WanNotFoundError, WanTransientError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus
from airflow_provider_wan.polling.poller import RequestPoller
from airflow_provider_wan.polling.schedule import DurationEstimate, PollPolicy
from tests.polling.simulation import (
    GOALS,
    OUTAGE_GOAL_S,
    OUTAGES_S,
    UNPOLLED_GOAL_S,
    Account,
    Goal,
    poll_after_outage,
    poll_all,
    poll_for,
)

KNOWN = DurationEstimate(count=50, mean=4.7, variance=0.01)
WAITS = pytest.mark.parametrize("single_waits", [False, True], ids=["batch", "single waits"])


@WAITS
@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.requests} at {goal.concurrency}, {goal.order}")
def test_ends_are_noticed_soon_with_few_polls(goal: Goal, single_waits: bool) -> None:
    outcome = poll_all(goal.account(), single_waits=single_waits)
    assert goal.is_met(outcome), (outcome.polls_a_request, outcome.median_delay, outcome.delay_95)


@WAITS
@pytest.mark.parametrize(("requests", "concurrency"), [(1000, 100), (300, 20), (100, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_running_request_of_a_queue_without_order_is_unpolled_for_longer_than_a_minute(
    requests: int, concurrency: int, seed: int, single_waits: bool
) -> None:
    account = Account(requests, concurrency, usual_s=100.0, order="random", seed=seed)
    assert poll_all(account, single_waits=single_waits).unpolled_s <= UNPOLLED_GOAL_S


@WAITS
@pytest.mark.parametrize("others", [1, 4, 9])
def test_no_running_request_between_those_of_others_is_unpolled_for_longer_than_a_minute(
    others: int, single_waits: bool
) -> None:
    outcome = poll_all(Account(300, 10, usual_s=100.0, others=others), single_waits=single_waits)
    assert outcome.unpolled_s <= UNPOLLED_GOAL_S
    assert outcome.polls_a_request <= 12


@pytest.mark.parametrize(
    ("account", "median", "delay_95"),
    [
        (Account(600, 20, usual_s=6.0, in_flight=50), 0.15, 0.3),
        (Account(600, 100, usual_s=6.0, in_flight=150), 0.3, 0.6),  # polled as often as a batch may
        (Account(300, 20, usual_s=1.0, in_flight=50), 1.0, 2.0),
        (Account(300, 10, usual_s=100.0, in_flight=30), 0.1, 0.25),
        (Account(300, 10, usual_s=100.0, in_flight=30, others=3), 0.1, 0.25),
        (Account(300, 10, usual_s=100.0, in_flight=30, order="random"), 0.1, 0.25),
    ],
    ids=lambda value: str(value) if isinstance(value, Account) else "",
)
def test_requests_submitted_while_others_run_are_noticed_as_soon(
    account: Account, median: float, delay_95: float
) -> None:
    outcome = poll_all(account)
    assert outcome.median_delay <= median
    assert outcome.delay_95 <= delay_95
    assert outcome.unpolled_s <= UNPOLLED_GOAL_S


@WAITS
@pytest.mark.parametrize("outage_s", OUTAGES_S)
def test_an_outage_teaches_no_generation_time(outage_s: float, single_waits: bool) -> None:
    outcome = poll_after_outage(outage_s, single_waits=single_waits)
    assert outcome.total_s <= OUTAGE_GOAL_S
    assert 80 < outcome.poller.durations.usual_s < 120


@pytest.mark.parametrize(
    ("account", "polls"),
    [
        (Account(requests=1000, concurrency=100, first_position=1), 8),
        (Account(requests=1000, concurrency=100, usual_s=30.0), 8),
        (Account(requests=1000, concurrency=100, spread=0.02), 8),
        (Account(requests=1000, concurrency=100, spread=0.5), 9),
        (Account(requests=40, concurrency=1, first_position=1), 15),
        (Account(requests=500, concurrency=50, others=1), 8),
        (Account(requests=100, concurrency=4, others=3), 12),
        (Account(requests=1000, concurrency=100, overtaking=8), 8),
        (Account(requests=100, concurrency=5, overtaking=8), 10),
    ],
    ids=lambda value: str(value) if isinstance(value, Account) else "",
)
def test_other_accounts_take_few_polls_too(account: Account, polls: float) -> None:
    outcome = poll_all(account)
    assert outcome.median_delay <= 0.10
    assert outcome.polls_a_request <= polls
    assert outcome.unpolled_s <= UNPOLLED_GOAL_S


def test_positions_are_not_needed() -> None:
    outcome = poll_all(Account(requests=1000, concurrency=100), with_position=False)
    assert outcome.median_delay <= 0.10
    assert outcome.polls_a_request <= 20
    assert outcome.unpolled_s <= UNPOLLED_GOAL_S


@pytest.mark.parametrize("order", ["newest first", "random"])
def test_each_request_of_a_queue_without_order_is_polled(order: str) -> None:
    outcome = poll_all(Account(requests=300, concurrency=20, order=order))  # type: ignore[arg-type]
    assert outcome.median_delay <= 0.10
    assert max(outcome.delays) < 2


@pytest.mark.parametrize("failing", [0.1, 0.5])
def test_failing_polls_cost_time_but_lose_nothing(failing: float) -> None:
    outcome = poll_all(Account(requests=300, concurrency=30), failing=failing)
    assert len(outcome.delays) == 300
    assert outcome.median_delay <= 0.10 + failing / 2


@pytest.mark.parametrize("order", ["in order", "random"])
def test_polls_never_exceed_their_rate(order: str) -> None:
    account = Account(requests=1000, concurrency=200, order=order)  # type: ignore[arg-type]
    outcome = poll_all(account, polls_per_second=2.0)
    assert outcome.busiest_second <= 4  # two a second, and the two saved up
    assert len(outcome.delays) == 1000


@pytest.mark.parametrize("seed", range(12))
def test_every_end_is_noticed_whatever_the_account_does(seed: int) -> None:
    account = Account(
        requests=1 + 37 * seed,
        concurrency=1 + seed * seed,
        spread=0.1 * seed,
        order=("in order", "random", "newest first")[seed % 3],  # type: ignore[arg-type]
        others=seed % 2,
        first_position=seed // 2 % 2,
        seed=seed,
    )
    outcome = poll_all(account, failing=0.05 * (seed % 4), with_position=seed % 5 != 0)
    assert len(outcome.delays) == account.requests
    assert min(outcome.delays) >= 0


def test_another_process_polls_nothing_before_it_can_be_ready() -> None:
    account = Account(requests=200, concurrency=50, in_flight=100)
    poller = RequestPoller()
    names = [f"r{number}" for number in range(100)]
    for name in names:
        poller.add(name, 0.0)
    poll_for(poller, account, 0.0, 60.0)
    learned = {**json.loads(json.dumps(poller.learned())), "durations": KNOWN.as_dict()}
    resumed = RequestPoller.resume(PollPolicy(), learned, names, poller.started(), 60.0)
    assert resumed.queued == poller.queued == 50
    assert resumed.started() == poller.started()
    assert len(resumed.due(61.0)) <= 1, "one poll of the queue"


def test_of_many_that_run_a_few_look_for_the_first_end_also_at_a_fixed_interval() -> None:
    poller = RequestPoller()
    for number in range(300):
        poller.add(str(number), 0.0, interval_s=4.0)
    now, polls = 0.0, 0
    while now < 40.0:
        for name in poller.due(now):
            polls += 1
            poller.on_status(RequestStatus(name, State.RUNNING, "in_progress"), now)
        now += 0.1
    assert 300 + 16 * 40 / 4 < polls < 300 * 40 / 4 / 2


def test_what_another_process_needs_to_know_stays_small() -> None:
    poller = RequestPoller()
    names = [str(number) for number in range(5000)]
    for name in names:
        poller.add(name, 0.0)
        poller.on_status(queued(name, int(name)), 1.0)
    learned = poller.learned()
    assert len(json.dumps(learned)) < 10_000
    again = RequestPoller.resume(PollPolicy(), learned, names, {}, 2.0)
    assert again.learned()["positions"] == learned["positions"], "the first in the queue"


def test_invalid_learned_durations_are_ignored() -> None:
    for nonsense in (None, {}, {"count": "x"}, {"count": 1, "mean": None, "variance": 0}):
        assert not DurationEstimate.from_dict(nonsense).is_known  # type: ignore[arg-type]


def queued(request_id: str, position: int) -> RequestStatus:
    return RequestStatus(request_id, State.QUEUED, "in_queue", position)


def test_one_request_is_gone_only_when_the_api_says_so_for_a_minute() -> None:
    poller = RequestPoller(PollPolicy(gone_after_s=60))
    poller.add("a", 0.0)
    now = 0.0
    for _ in range(3):
        now = max(now, poller.next_at(now))
        assert poller.due(now) == ["a"]
        assert not poller.gone
        poller.on_error("a", WanNotFoundError("no such request", code=404001), now)
    assert now >= 60
    assert poller.gone == ["a"]
    assert len(poller) == 0


def test_an_outage_ends_a_row_of_not_founds() -> None:
    poller = RequestPoller(PollPolicy(gone_after_s=60))
    poller.add("a", 0.0)
    gone = WanNotFoundError("no such request", code=404001)
    now = 0.0
    for error in (gone, gone, None, gone, gone):
        now = max(now + 0.01, poller.next_at(now))
        assert poller.due(now) == ["a"]
        if error:
            poller.on_error("a", error, now)
        else:
            poller.on_status(queued("a", 0), now)
    assert poller.gone == []


def test_a_retry_after_holds_for_its_request_and_for_all_once_another_is_asked_to_wait() -> None:
    poller = RequestPoller()
    for name in "abc":
        poller.add(name, 0.0)
    first, second, third = poller.due(0.0)
    poller.on_status(queued(third, 2), 0.5)
    poller.on_error(first, WanTransientError("429", retry_after_s=45.0), 1.0)
    assert first not in poller.due(44.0)
    poller.on_error(second, WanTransientError("429", retry_after_s=45.0), 1.0)
    assert poller.next_at(1.0) >= 46.0
    assert poller.due(45.9) == []
    assert poller.due(50.0)


def test_a_retry_after_goes_on_in_another_process() -> None:
    poller = RequestPoller()
    for name in "ab":
        poller.add(name, 0.0)
    for name in poller.due(0.0):
        poller.on_error(name, WanTransientError("429", retry_after_s=45.0), 1.0)
    learned = json.loads(json.dumps(poller.learned()))
    poller = RequestPoller.resume(PollPolicy(), learned, "ab", {}, 2.0)
    assert poller.next_at(2.0) >= 46.0
    worker = RequestPoller.resume(PollPolicy(), learned, (), {}, 2.0)
    assert worker.learned()["not_before"] == learned["not_before"], "a worker without polls hands it on"


def test_a_model_that_becomes_faster_is_noticed_late_only_until_that_is_learned() -> None:
    slow = poll_all(Account(requests=200, concurrency=50, usual_s=200.0)).poller
    account = Account(requests=400, concurrency=20, usual_s=20.0)
    account.advance_to_start(10_000.0)
    fast = poll_all(account, poller=slow, start=10_000.0)
    assert max(fast.delays) * 20.0 <= 70.0, "never left alone for longer than a minute"
    assert statistics.median(fast.delays[-100:]) * 20.0 <= 25.0


def test_failing_polls_in_a_row_pause_them_all_ever_longer() -> None:
    poller = RequestPoller()
    for name in "abc":
        poller.add(name, 0.0)
    now, pauses = 0.0, []
    for _ in range(30):
        for name in poller.due(now):
            poller.on_error(name, WanAuthError("no"), now)
        pauses.append(poller.next_at(now) - now)
        now = poller.next_at(now)
    assert max(pauses) == pytest.approx(60.0)
    assert poller.gone == []


def over(request_id: str) -> RequestStatus:
    return RequestStatus(request_id, State.UNKNOWN, "completed")


def test_request_finished_only_by_its_status_is_polled_on_and_teaches_nothing() -> None:
    poller = RequestPoller()
    for name in "abc":
        poller.add(name, 0.0, started_at=0.0)
    poller.due(2.0)
    for name in "abc":
        poller.on_status(over(name), 100.0)
    learned = poller.learned()
    for name in "abc":
        poller.forget(name)
    # The call for the result fails, or says that the request is not finished: the batch then continues like
    # this.
    poller.add("queued", 100.0)
    poller.add_apart("a", 100.0, poll_at=103.0)
    assert poller.queued == 1
    assert list(poller.started()) == ["a"]
    assert "a" in poller.due(103.0)
    poller.on_status(over("a"), 103.0)
    assert list(poller.ready) == ["a"]
    assert poller.learned() == learned


def test_answer_for_a_removed_request_is_ignored() -> None:
    poller = RequestPoller()
    poller.add("a", 0.0)
    assert poller.due(0.0) == ["a"]
    poller.forget("a")
    poller.on_status(queued("a", 0), 1.0)
    poller.on_error("a", WanTransientError("late"), 1.0)
    assert poller.next_at(1.0) == float("inf")


def test_requests_that_were_removed_while_they_ran_do_not_stretch_the_pauses_of_others() -> None:
    def pause_after(removed: int) -> float:
        poller = RequestPoller(PollPolicy())
        for number in range(removed):
            poller.add(str(number), 0.0)
            poller.on_status(RequestStatus(str(number), State.RUNNING, "in_progress"), 1.0)
            poller.forget(str(number))
        poller.add("last", 0.0, interval_s=20.0, now=1.0)
        poller.on_status(RequestStatus("last", State.RUNNING, "in_progress"), 1.0)
        return poller.next_at(1.0) - 1.0

    assert pause_after(64) == pytest.approx(pause_after(0), rel=0.11)  # pauses vary by a tenth
