# SPDX-License-Identifier: Apache-2.0
"""An account that runs some requests at a time and queues the rest, in simulated time."""

from __future__ import annotations

import heapq
import random
import statistics
from dataclasses import dataclass, field
from typing import Literal

from airflow_provider_wan.exceptions import WanTransientError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus
from airflow_provider_wan.polling.polled_request import PollPolicy
from airflow_provider_wan.polling.poller import RequestPoller

Order = Literal["in order", "newest first", "random"]


@dataclass
class Account:
    """Our requests ``r0``, ``r1``, ..., and those of others in between."""

    requests: int
    concurrency: int
    usual_s: float = 110.0
    spread: float = 0.25
    order: Order = "in order"
    others: int = 0
    first_position: int = 0
    overtaking: int = 0
    seed: int = 0
    start: dict[str, float] = field(default_factory=dict)
    end: dict[str, float] = field(default_factory=dict)
    _time: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.queue = [f"{who}{i}" for i in range(self.requests) for who in ["r", *["x"] * self.others]]
        for place in range(0, len(self.queue) - self.overtaking, self.overtaking + 1):
            some = self.queue[place : place + self.overtaking + 1]
            self.random.shuffle(some)
            self.queue[place : place + self.overtaking + 1] = some
        self._running: list[tuple[float, str]] = []

    def advance(self, now: float) -> None:
        while True:
            while len(self._running) < self.concurrency and self.queue:
                self._start(self.queue.pop(self._next()))
            if not self._running or self._running[0][0] > now:
                self._time = now
                return
            self._time, _ = heapq.heappop(self._running)

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
    """What watching cost, and how late it noticed, as shares of the usual time."""

    looks: int
    delays: list[float]
    busiest_second: int
    watch: RequestPoller

    @property
    def median_delay(self) -> float:
        return statistics.median(self.delays)

    def looks_a_request(self) -> float:
        return self.looks / len(self.delays)


def watch_all(
    account: Account,
    *,
    looks_per_second: float = 50.0,
    failing: float = 0.0,
    with_position: bool = True,
    watch: RequestPoller | None = None,
) -> Outcome:
    """Watch until everything of ours is over."""
    watch = watch or RequestPoller(PollPolicy(looks_per_second=looks_per_second))
    for number in range(account.requests):
        watch.add(f"r{number}", 0.0)
    now, looks, seen_at, seconds = 0.0, 0, dict[str, float](), dict[int, int]()
    while len(seen_at) < account.requests:
        asked = watch.due(now)
        seconds[int(now)] = seconds.get(int(now), 0) + len(asked)
        if not asked:
            next_at = watch.next_at(now)
            assert next_at < float("inf"), f"{len(watch)} are watched, and none is ever looked at"
            now = max(now + 0.001, next_at)
            continue
        now += 0.05
        account.advance(now)
        for request_id in asked:
            looks += 1
            if account.random.random() < failing:
                watch.on_error(request_id, WanTransientError("no answer"), now)
            else:
                watch.on_status(account.status(request_id, now, with_position=with_position), now)
        for request_id in list(watch.ready):
            seen_at[request_id] = now
            watch.forget(request_id)
    delays = [(seen_at[one] - account.end[one]) / account.usual_s for one in seen_at]
    return Outcome(looks, delays, max(seconds.values()), watch)
