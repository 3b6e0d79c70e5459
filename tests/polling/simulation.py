# SPDX-License-Identifier: Apache-2.0
"""An account that runs some requests at a time and queues the rest, in simulated time."""

from __future__ import annotations

import heapq
import math
import random
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

from airflow_provider_wan.exceptions import WanTransientError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus
from airflow_provider_wan.polling.poller import RequestPoller
from airflow_provider_wan.polling.schedule import PollPolicy

Order = Literal["in order", "newest first", "random"]


@dataclass
class Account:
    """Our requests ``r0``, ``r1``, ..., and those of others in between.

    :param in_flight: how many of ours are submitted at first; another one follows when one is noticed to be over. None:
        all are submitted at once.
    """

    requests: int
    concurrency: int
    usual_s: float = 110.0
    spread: float = 0.25
    order: Order = "in order"
    others: int = 0
    first_position: int = 0
    overtaking: int = 0
    in_flight: int | None = None
    seed: int = 0
    name: str = "r"
    start: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)
    _time: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.queue: list[str] = []
        self.submitted = 0
        self.submit(self.requests if self.in_flight is None else self.in_flight)
        for place in range(0, len(self.queue) - self.overtaking, self.overtaking + 1):
            some = self.queue[place : place + self.overtaking + 1]
            self.random.shuffle(some)
            self.queue[place : place + self.overtaking + 1] = some
        self._running: list[tuple[float, str]] = []

    def submit(self, count: int) -> list[str]:
        """Submit so many more of ours, each with its others, and return their names."""
        numbers = range(self.submitted, min(self.submitted + count, self.requests))
        self.queue += [f"{who}{i}" for i in numbers for who in [self.name, *["x"] * self.others]]
        self.submitted = numbers.stop
        return [f"{self.name}{i}" for i in numbers]

    def advance(self, now: float) -> None:
        while True:
            while len(self._running) < self.concurrency and self.queue:
                self._start(self.queue.pop(self._next()))
            if not self._running or self._running[0][0] > now:
                self._time = now
                return
            self._time, _ = heapq.heappop(self._running)

    def advance_to_start(self, at: float) -> None:
        """Start at a time other than 0."""
        self._time = at

    def _next(self) -> int:
        last = len(self.queue) - 1
        return {"in order": 0, "newest first": last}.get(self.order, self.random.randrange(last + 1))

    def _start(self, request_id: str) -> None:
        ends_at = self._time + self.usual_s * self.random.lognormvariate(0, self.spread)
        self.start[request_id], self.end[request_id] = self._time, ends_at
        heapq.heappush(self._running, (ends_at, request_id))

    def status(self, request_id: str, now: float, *, with_position: bool = True) -> RequestStatus:
        if self.end.get(request_id, float("inf")) <= now:
            return RequestStatus(request_id, State.UNKNOWN, "completed")
        if request_id in self.start:
            return RequestStatus(request_id, State.RUNNING, "in_progress")
        place = self.queue.index(request_id) + self.first_position if with_position else None
        return RequestStatus(request_id, State.QUEUED, "in_queue", place)


@dataclass
class Outcome:
    """What the polls cost, and how late they noticed ends, as shares of the usual time.

    :param unpolled_s: the longest time that a running request was not polled.
    """

    polls: int
    delays: list[float]
    busiest_second: int
    total_s: float
    unpolled_s: float
    poller: RequestPoller

    @property
    def polls_a_request(self) -> float:
        return self.polls / len(self.delays)

    @property
    def median_delay(self) -> float:
        return statistics.median(self.delays)

    @property
    def delay_95(self) -> float:
        return sorted(self.delays)[math.ceil(0.95 * len(self.delays)) - 1]


def poll_all(
    account: Account,
    *,
    single_waits: bool = False,
    polls_per_second: float | None = None,
    failing: float = 0.0,
    answer_s: float = 0.05,
    with_position: bool = True,
    poller: RequestPoller | None = None,
    start: float = 0.0,
) -> Outcome:
    """Poll until everything of ours is over.

    :param single_waits: whether each request is waited for by a trigger of its own: they join in any order.
    :param failing: the share of polls that fail.
    :param answer_s: how long polls take.
    """
    rate = polls_per_second or (2000.0 if single_waits else 50.0)
    if poller is None:
        poller = RequestPoller(PollPolicy(polls_per_second=rate))
    names = [f"r{number}" for number in range(account.submitted)]
    if single_waits:
        account.random.shuffle(names)
    for name in names:
        poller.add(name, start)
    now, polls, seen_at, seconds = start, 0, dict[str, float](), dict[int, int]()
    polled_at, unpolled_s = dict[str, float](), 0.0
    while len(seen_at) < account.requests:
        asked = poller.due(now)
        seconds[int(now)] = seconds.get(int(now), 0) + len(asked)
        if not asked:
            next_at = poller.next_at(now)
            assert next_at < float("inf"), f"{len(poller)} requests are never polled again"
            now = max(now + 0.001, next_at)
            continue
        now += answer_s
        account.advance(now)
        for request_id in asked:
            polls += 1
            if request_id in account.start:
                since = max(account.start[request_id], polled_at.get(request_id, 0.0))
                unpolled_s = max(unpolled_s, now - since)
            polled_at[request_id] = now
            if account.random.random() < failing:
                poller.on_error(request_id, WanTransientError("no answer"), now)
            else:
                poller.on_status(account.status(request_id, now, with_position=with_position), now)
        for request_id in list(poller.ready):
            poller.forget(request_id)
            if request_id.startswith(account.name):
                seen_at[request_id] = now
                for name in account.submit(1):
                    names.append(name)
                    poller.add(name, now)
    delays = [(seen_at[name] - account.end[name]) / account.usual_s for name in names]
    return Outcome(polls, delays, max(seconds.values()), now - start, unpolled_s, poller)


@dataclass(frozen=True)
class Goal:
    """The most polls a request and the longest delays, median and 95th percentile, on one account."""

    requests: int
    concurrency: int
    order: Order
    polls: float
    median: float
    delay_95: float

    def account(self, seed: int = 0) -> Account:
        return Account(self.requests, self.concurrency, usual_s=100.0, order=self.order, seed=seed)

    def is_met(self, *outcomes: Outcome) -> bool:
        """Compare the mean of the outcomes with the goal."""
        return (
            statistics.fmean(outcome.polls_a_request for outcome in outcomes) <= self.polls
            and statistics.fmean(outcome.median_delay for outcome in outcomes) <= self.median
            and statistics.fmean(outcome.delay_95 for outcome in outcomes) <= self.delay_95
        )


GOALS = (
    Goal(1000, 100, "in order", 8, 0.10, 0.25),
    Goal(300, 10, "in order", 9, 0.10, 0.25),
    Goal(100, 2, "in order", 10, 0.10, 0.25),
    Goal(300, 20, "random", 30, 0.10, 0.25),
    Goal(1000, 100, "random", 65, 0.10, 0.25),
    Goal(20, 2, "in order", 12, 0.10, 0.20),
)
#: Accounts without a goal of polls, by what they are.
OTHER_ACCOUNTS: dict[str, dict[str, Any]] = {
    "300 at 10, 1 of others after each": {"requests": 300, "concurrency": 10, "usual_s": 100.0, "others": 1},
    "300 at 10, 9 of others after each": {"requests": 300, "concurrency": 10, "usual_s": 100.0, "others": 9},
    "300 at 10, 30 in flight": {"requests": 300, "concurrency": 10, "usual_s": 100.0, "in_flight": 30},
    "600 at 20, 50 in flight, 6 s a generation": {
        "requests": 600,
        "concurrency": 20,
        "usual_s": 6.0,
        "in_flight": 50,
    },
    "600 at 20, 50 in flight, 1 s a generation": {
        "requests": 600,
        "concurrency": 20,
        "usual_s": 1.0,
        "in_flight": 50,
    },
    "200 at 5, 600 s a generation": {"requests": 200, "concurrency": 5, "usual_s": 600.0},
    "300 at 10, 30 in flight, random order": {
        "requests": 300,
        "concurrency": 10,
        "usual_s": 100.0,
        "in_flight": 30,
        "order": "random",
    },
}
#: 60 new requests, 10 at a time, after an outage: their generations alone take 600 s.
OUTAGES_S = (600.0, 3600.0, 8 * 3600.0)
OUTAGE_GOAL_S = 800.0
#: A request that may be running is polled within a minute; polls themselves take a moment.
UNPOLLED_GOAL_S = 61.0


def poll_after_outage(outage_s: float, *, single_waits: bool = False, seed: int = 0) -> Outcome:
    """Poll ten requests, stop for the outage, then poll the remaining ones and 60 new ones."""
    before = Account(10, 10, usual_s=100.0, seed=seed, name="old")
    poller = RequestPoller(PollPolicy())
    names = [f"old{number}" for number in range(10)]
    for name in names:
        poller.add(name, 0.0)
    poll_for(poller, before, 0.0, 20.0)
    poller = RequestPoller.resume(PollPolicy(), poller.learned(), names, poller.started(), outage_s)
    after = Account(60, 10, usual_s=100.0, seed=seed, start=dict(before.start), end=dict(before.end))
    after.advance_to_start(outage_s)
    return poll_all(after, single_waits=single_waits, poller=poller, start=outage_s)


def poll_for(poller: RequestPoller, account: Account, now: float, until: float) -> None:
    """Poll until the given time."""
    while now < until:
        account.advance(now)
        for request_id in poller.due(now):
            poller.on_status(account.status(request_id, now), now)
        now += 0.05
