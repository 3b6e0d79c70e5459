# SPDX-License-Identifier: Apache-2.0
"""Watching many requests with few looks, against simulated accounts."""

from __future__ import annotations

import pytest

from airflow_provider_wan.exceptions import WanAuthError, WanNotFoundError, WanTransientError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus
from airflow_provider_wan.polling.durations import DurationEstimate
from airflow_provider_wan.polling.polled_request import PollPolicy
from airflow_provider_wan.polling.poller import RequestPoller
from tests.polling.queue_simulation import Account, watch_all

#: A submit and a result are two of the eight calls that a video may take.
STATUS_CALLS = 6.0


@pytest.mark.parametrize(
    ("account", "looks"),
    [
        (Account(requests=1000, concurrency=100), STATUS_CALLS),
        (Account(requests=1000, concurrency=100, first_position=1), STATUS_CALLS),
        (Account(requests=1000, concurrency=100, usual_s=30.0), STATUS_CALLS),
        (Account(requests=1000, concurrency=100, spread=0.02), STATUS_CALLS),
        (Account(requests=300, concurrency=10), STATUS_CALLS + 0.5),
        # One or two at a time take a probe for each, and what is learned comes late.
        (Account(requests=100, concurrency=2), STATUS_CALLS + 1.5),
        (Account(requests=40, concurrency=1, first_position=1), STATUS_CALLS + 3),
        (Account(requests=500, concurrency=50, others=1), STATUS_CALLS + 1),
        (Account(requests=1000, concurrency=100, overtaking=8), STATUS_CALLS),
        (Account(requests=100, concurrency=5, overtaking=5), STATUS_CALLS + 3),
        (Account(requests=1000, concurrency=100, spread=0.5), STATUS_CALLS + 3),
    ],
    ids=lambda value: str(value) if isinstance(value, Account) else "",
)
def test_ends_are_noticed_soon_with_few_looks(account: Account, looks: float) -> None:
    outcome = watch_all(account)
    assert outcome.median_delay <= 0.10
    assert outcome.looks_a_request() <= looks
    assert outcome.watch.in_order


@pytest.mark.parametrize("with_position", [True, False], ids=["with positions", "without"])
def test_positions_are_not_needed(with_position: bool) -> None:
    outcome = watch_all(Account(requests=1000, concurrency=100), with_position=with_position)
    assert outcome.median_delay <= 0.10
    assert outcome.looks_a_request() <= STATUS_CALLS


@pytest.mark.parametrize("order", ["newest first", "random"])
def test_a_queue_without_order_is_noticed_and_each_is_looked_at(order: str) -> None:
    outcome = watch_all(Account(requests=300, concurrency=20, order=order))  # type: ignore[arg-type]
    assert not outcome.watch.in_order
    assert outcome.median_delay <= 0.10
    assert max(outcome.delays) < 2


@pytest.mark.parametrize("failing", [0.1, 0.5])
def test_failing_looks_cost_time_but_lose_nothing(failing: float) -> None:
    outcome = watch_all(Account(requests=300, concurrency=30), failing=failing)
    assert len(outcome.delays) == 300
    assert outcome.median_delay <= 0.10 + failing / 2


@pytest.mark.parametrize("order", ["in order", "random"])
def test_looks_never_exceed_their_rate(order: str) -> None:
    account = Account(requests=1000, concurrency=200, order=order)  # type: ignore[arg-type]
    outcome = watch_all(account, looks_per_second=2.0)
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
    outcome = watch_all(account, failing=0.05 * (seed % 4), with_position=seed % 5 != 0)
    assert len(outcome.delays) == account.requests
    assert min(outcome.delays) >= 0


def test_what_was_learned_goes_on_in_another_process() -> None:
    first = watch_all(Account(requests=200, concurrency=50))
    account = Account(requests=200, concurrency=50, seed=1)
    account.advance(60.0)
    started = {one: int(account.start[one]) for one in account.start if one.startswith("r")}
    ids = [f"r{number}" for number in range(200)]
    watch = RequestPoller.resume(PollPolicy(), first.watch.learned(), ids, started, 60.0)
    assert watch.queued == 200 - len(started)
    assert watch.started() == started
    # Nothing is looked at before it can be ready, but for one probe of the queue.
    assert len(watch.due(60.0)) <= 1 + sum(at + 60 > 110 * 0.75 for at in started.values())


def test_nonsense_instead_of_experience_is_none() -> None:
    for nonsense in (None, {}, {"count": "x"}, {"count": 1, "mean": None, "variance": 0}):
        assert not DurationEstimate.from_dict(nonsense).is_known  # type: ignore[arg-type]


def queued(request_id: str, position: int) -> RequestStatus:
    return RequestStatus(request_id, State.QUEUED, "in_queue", position)


def test_one_request_is_gone_only_when_the_api_says_so_for_a_minute() -> None:
    watch = RequestPoller(PollPolicy(gone_after_s=60))
    watch.add("a", 0.0)
    now = 0.0
    for _ in range(3):
        now = max(now, watch.next_at(now))
        assert watch.due(now) == ["a"]
        assert not watch.gone
        watch.on_error("a", WanNotFoundError("no such request", code=404001), now)
    assert now >= 60
    assert watch.gone == ["a"]
    assert len(watch) == 0


def test_an_outage_ends_a_row_of_not_founds() -> None:
    watch = RequestPoller(PollPolicy(gone_after_s=60))
    watch.add("a", 0.0)
    gone = WanNotFoundError("no such request", code=404001)
    now = 0.0
    for error in (gone, gone, None, gone, gone):
        now = max(now + 0.01, watch.next_at(now))
        assert watch.due(now) == ["a"]
        if error:
            watch.on_error("a", error, now)
        else:
            watch.on_status(queued("a", 0), now)
    assert watch.gone == []


def test_a_retry_after_stops_all_looks_until_then() -> None:
    watch = RequestPoller()
    for name in "abc":
        watch.add(name, 0.0)
    (probe,) = watch.due(0.0)
    watch.on_error(probe, WanTransientError("429", retry_after_s=45.0), 1.0)
    assert watch.next_at(1.0) >= 46.0
    assert watch.due(45.9) == []
    assert watch.due(46.1)


def test_looks_that_fail_in_a_row_pause_them_all_ever_longer() -> None:
    watch = RequestPoller()
    for name in "abc":
        watch.add(name, 0.0)
    now, pauses = 0.0, []
    for _ in range(12):
        (probe,) = watch.due(now)
        watch.on_error(probe, WanAuthError("no"), now)
        pauses.append(watch.next_at(now) - now)
        now = watch.next_at(now)
    assert pauses[4:] == sorted(pauses[4:])
    assert pauses[-1] == 60.0
    assert watch.gone == []


def over(request_id: str) -> RequestStatus:
    return RequestStatus(request_id, State.UNKNOWN, "completed")


def test_one_that_is_over_only_by_its_status_is_watched_on_and_teaches_nothing() -> None:
    watch = RequestPoller()
    for name in "abc":
        watch.add(name, 0.0, started_at=0.0)
    watch.due(2.0)
    for name in "abc":
        watch.on_status(over(name), 100.0)
    learned = watch.learned()
    for name in "abc":
        watch.forget(name)
    # Nobody answers to a call for the result, or it says that it is not over: as the batch goes on then.
    watch.add("queued", 100.0)
    watch.add_apart("a", 100.0, look_at=103.0)
    assert watch.queued == 1
    assert list(watch.started()) == ["a"]
    assert "a" in watch.due(103.0)
    watch.on_status(over("a"), 103.0)
    assert list(watch.ready) == ["a"]
    assert watch.learned() == learned
    assert watch.in_order


def test_an_answer_about_a_request_that_is_forgotten_is_passed_over() -> None:
    watch = RequestPoller()
    watch.add("a", 0.0)
    assert watch.due(0.0) == ["a"]
    watch.forget("a")
    watch.on_status(queued("a", 0), 1.0)
    watch.on_error("a", WanTransientError("late"), 1.0)
    assert watch.next_at(1.0) == float("inf")
