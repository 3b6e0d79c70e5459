# SPDX-License-Identifier: Apache-2.0
"""How often requests are polled: intervals, a rate limit, pauses after errors, and how long a model takes.

Pure: no I/O, no clock. Times are in seconds of the caller's clock.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanError, WanTransientError

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.connection import WanSettings

#: Multiplies every poll interval; for tests and demos against a sandbox whose generations take a second.
SCALE_VARIABLE = "WAN_POLL_INTERVAL_SCALE"
#: Status calls leave the rest of a connection's ``requests_per_second`` to submits and results.
_SHARE_OF_RATE = 0.7
#: One batch asks for no more than this, so that several of them leave room for each other.
BATCH_POLLS_PER_SECOND = 50.0
_OUTAGE_AFTER_ERRORS = 5
_REMEMBERED_DURATIONS = 200
_PRIOR_SPREAD = 0.35
_PRIOR_WEIGHT = 4.0


@dataclass(frozen=True, slots=True)
class PollIntervals:
    """All pauses between polls, in seconds; tests set shorter ones.

    :param shortest_s: no request is polled more often, however quick its model is.
    :param first_s: the first interval while it is not known how long the model takes.
    :param unknown_s: the longest interval while that is not known.
    :param longest_s: a request that may be running is never left unpolled for longer, or for a tenth of the
        usual time if that is longer.
    :param first_error_s: the pause after a first failed poll; it doubles with each further one.
    :param longest_error_s: the longest such pause.
    """

    shortest_s: float = 0.4
    first_s: float = 2.0
    unknown_s: float = 30.0
    longest_s: float = 60.0
    first_error_s: float = 2.0
    longest_error_s: float = 60.0

    def scaled(self, factor: float) -> PollIntervals:
        """Return the same intervals, each multiplied by a factor."""
        return replace(self, **{each.name: factor * getattr(self, each.name) for each in fields(self)})

    @classmethod
    def from_environment(cls) -> PollIntervals:
        """Return the usual intervals, multiplied by ``WAN_POLL_INTERVAL_SCALE`` where that is a number above 0."""
        try:
            factor = float(os.environ.get(SCALE_VARIABLE, "1"))
        except ValueError:
            factor = 1.0
        return cls().scaled(factor) if 0 < factor < math.inf and factor != 1.0 else cls()

    def after_error_s(self, errors: int) -> float:
        """Return the pause after so many failed polls in a row, 1 or more."""
        return min(self.longest_error_s, self.first_error_s * 2.0 ** min(errors - 1, 10))


@dataclass(frozen=True, slots=True)
class PollPolicy:
    """How often to poll.

    :param polls_per_second: the most status calls a second.
    :param gone_after_times: how many 404001 in a row mean that a request is gone.
    :param gone_after_s: over how many seconds they must have come.
    :param intervals: the pauses between polls.
    """

    polls_per_second: float = BATCH_POLLS_PER_SECOND
    gone_after_times: int = 3
    gone_after_s: float = 60.0
    intervals: PollIntervals = PollIntervals()


def policy_of(settings: WanSettings | None, *, polls_per_second: float = BATCH_POLLS_PER_SECOND) -> PollPolicy:
    """Return how often to poll over a connection.

    :param settings: of the connection; None: not known.
    :param polls_per_second: the most that this caller wants, whatever the connection allows.
    """
    intervals = PollIntervals.from_environment()
    if settings is None:
        return PollPolicy(polls_per_second, intervals=intervals)
    if settings.requests_per_second is not None:
        polls_per_second = min(polls_per_second, _SHARE_OF_RATE * settings.requests_per_second)
    return PollPolicy(polls_per_second, gone_after_s=settings.not_found_patience_s, intervals=intervals)


@dataclass(slots=True)
class NotFoundCount:
    """Counts 404001 answers in a row: only several of them over some time mean that a request is gone.

    A new purchase depends on it, and a single such answer can come from a replica that lags behind.

    :param after_times: how many in a row.
    :param after_s: over how many seconds.
    """

    after_times: int = 3
    after_s: float = 60.0
    times: int = 0
    since: float = 0.0

    def on_not_found(self, now: float) -> bool:
        """Count one more; return whether the request is gone."""
        if not self.times:
            self.since = now
        self.times += 1
        return self.times >= self.after_times and now - self.since >= self.after_s

    def reset(self) -> None:
        """Start again: some other answer came in between."""
        self.times = 0

    @property
    def pause_s(self) -> float:
        """How long to wait before asking again."""
        return self.after_s / max(1, self.after_times - 1)


@dataclass(slots=True)
class DurationEstimate:
    """Running mean and spread of the logarithm of generation times.

    :param count: how many were learned.
    :param mean: of the logarithm of seconds.
    :param variance: of the same.
    :param caution: less than 1 after generations that ended before their first poll, so that the next ones are
        polled earlier and seen running; without that a model that became faster would never be noticed.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    caution: float = 1.0

    def learn(self, duration_s: float) -> None:
        """Add one generation time."""
        value = math.log(max(duration_s, 0.01))
        self.count += 1
        weight = 1.0 / min(self.count, _REMEMBERED_DURATIONS)
        delta = value - self.mean
        self.mean += weight * delta
        self.variance = (1 - weight) * (self.variance + weight * delta * delta)

    @property
    def is_known(self) -> bool:
        """Whether any generation time was learned."""
        return self.count > 0

    @property
    def usual_s(self) -> float:
        """The median in seconds; only when known."""
        return math.exp(self.mean)

    @property
    def first_poll_s(self) -> float:
        """The age at which a running request may be over; only when known."""
        prior = _PRIOR_WEIGHT * _PRIOR_SPREAD**2
        spread = math.sqrt((self.count * self.variance + prior) / (self.count + _PRIOR_WEIGHT))
        return self.caution * self.usual_s * math.exp(-spread)

    def on_first_poll(self, *, was_over: bool) -> None:
        """Adapt the caution to what a first poll found."""
        self.caution = max(0.02, 0.8 * self.caution) if was_over else min(1.0, 1.05 * self.caution)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"count": self.count, "mean": round(self.mean, 4), "variance": round(self.variance, 5)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> DurationEstimate:
        """Return the estimate that :meth:`as_dict` wrote; an empty one from any other value."""
        try:
            given = plain or {}
            found = cls(int(given["count"]), float(given["mean"]), float(given["variance"]))
            return found if abs(found.mean) < 20 and 0 <= found.variance < 100 else cls()
        except (KeyError, TypeError, ValueError, OverflowError):
            return cls()


@dataclass(slots=True, eq=False)
class PolledRequest:
    """One request of a poll set.

    :param number: when it was submitted, and a count: its place in the order of submission.
    :param interval_s: a fixed interval while it may be running; None adapts.
    """

    request_id: str
    number: tuple[float, int]
    submitted_at: float | None = None
    interval_s: float | None = None
    missing: NotFoundCount = field(default_factory=NotFoundCount)
    #: Its number in the account's queue, see :class:`.queue_estimate.QueueEstimate`.
    ticket: float | None = None
    #: Whether it is in the queue, as far as is known.
    is_queued: bool = False
    #: Whether the queue estimate decides when to poll it; the schedule decides for all others.
    is_waiting: bool = False
    #: It started between these two moments.
    queued_until: float | None = None
    started_by: float | None = None
    started_at: float | None = None
    #: When it was last seen queued or running, and when it was asked for last.
    alive_at: float | None = None
    next_at: float = 0.0
    is_asked: bool = False
    is_forgotten: bool = False
    #: Nothing is learned from it: its status was wrong before, or the API did not know it.
    is_apart: bool = False
    errors: int = 0
    not_before: float = 0.0

    @property
    def jitter(self) -> float:
        """A number from 0 to 1 that spreads requests which were added together; the same at each call."""
        return self.number[1] * 0.618034 % 1.0


class PollSchedule:
    """Keeps when each request is polled next, a rate, and a pause while the API is out or asks for one.

    :param policy: the rate and the intervals.
    """

    def __init__(self, policy: PollPolicy) -> None:
        self._rate = policy.polls_per_second
        self._intervals = policy.intervals
        self._heap: list[tuple[float, int, PolledRequest]] = []
        self._credit = max(1.0, self._rate)
        self._credit_at: float | None = None
        self._errors = 0
        self._failing: set[str] = set()
        self._asked_to_wait: tuple[str, float] | None = None
        self.pause_until = 0.0

    def use_policy(self, policy: PollPolicy) -> None:
        """Use another rate and other intervals."""
        self._rate, self._intervals = policy.polls_per_second, policy.intervals

    def schedule(self, request: PolledRequest, at: float) -> None:
        """Poll a request at this time instead of the time that was set before."""
        request.next_at = max(at, request.not_before)
        heapq.heappush(self._heap, (request.next_at, request.number[1], request))

    def next_due(self, now: float) -> PolledRequest | None:
        """Remove and return a request that is due."""
        while self._heap and self._heap[0][0] <= now:
            at, _, request = heapq.heappop(self._heap)
            if _is_current(at, request):
                return request
        return None

    def first_at(self) -> float:
        """Return when the first request is due; infinity if none is."""
        while self._heap and not _is_current(self._heap[0][0], self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    # -- rate and outages ----------------------------------------------------------------------------------

    def may_poll(self, now: float) -> bool:
        """Return whether one more poll is allowed now."""
        if self._credit_at is not None:
            more = max(0.0, now - self._credit_at) * self._rate
            self._credit = min(max(1.0, self._rate), self._credit + more)
        self._credit_at = now
        return now >= self.pause_until and self._credit >= 1

    def on_poll(self) -> None:
        """Count a poll."""
        self._credit -= 1

    def not_before(self, at: float, now: float) -> float:
        """Return the first moment, from ``at`` on, at which a poll is allowed."""
        at = max(at, self.pause_until)
        return at if self._credit >= 1 else max(at, now + (1 - self._credit) / self._rate)

    def on_answer(self) -> None:
        """Record that the API answers."""
        self._errors, self._asked_to_wait = 0, None
        self._failing.clear()

    def on_error(self, request: PolledRequest, error: WanError, now: float) -> None:
        """Record a failed poll; pause all polls unless it concerns only this request.

        What ``Retry-After`` asks for always holds for its own request. It holds for all once two requests in a
        row were asked to wait: one request that always answers so must not stop the others.
        """
        self._errors += 1
        self._failing.add(request.request_id)
        if isinstance(error, WanTransientError) and error.retry_after_s:
            request.not_before = max(request.not_before, now + error.retry_after_s)
            other = self._asked_to_wait
            if other and other[0] != request.request_id:
                self.pause_until = max(self.pause_until, min(other[1], request.not_before))
            self._asked_to_wait = (request.request_id, request.not_before)
        if self._errors >= _OUTAGE_AFTER_ERRORS and len(self._failing) > 1:
            pause_s = self._intervals.after_error_s(self._errors - _OUTAGE_AFTER_ERRORS + 1)
            self.pause_until = max(self.pause_until, now + pause_s)


def _is_current(at: float, request: PolledRequest) -> bool:
    return not request.is_forgotten and not request.is_asked and request.next_at == at
