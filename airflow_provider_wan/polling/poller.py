# SPDX-License-Identifier: Apache-2.0
"""Which request of a set to poll next, and what each answer means for it. Pure: no I/O, no clock.

Every wait is a set of requests of one account: a batch, all single waits of a connection in a triggerer, one request in
a worker. An account runs a few requests at a time and queues the rest, so:

* **A queued request** is polled once when it is added, and then when its turn has probably come: see
  :mod:`.queue_estimate`. Where the queue is not in order, or positions are missing, each is polled every so often.
* **A running request** is polled first when it may be over, by the generation times learned so far, and then every
  tenth of the usual time. A time is learned only from a generation whose start and end were observed closely: a
  request that is found finished after an outage does not show how long it ran.
* A request that may be running is never left unpolled for longer than 60 s or a tenth of its usual time.
* An error never ends a wait, for the request is paid for: polls back off. The exception is 404001 three times over
  60 s: the request is gone.

A driver does this, with ``now`` in seconds of any monotonic clock: poll all of ``due(now)``, pass each answer to
``on_status`` or ``on_error``, process ``ready`` and ``gone``, sleep until ``next_at(now)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_wan.exceptions import WanError, WanNotFoundError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus
from airflow_provider_wan.polling.queue_estimate import QueueEstimate
from airflow_provider_wan.polling.schedule import (
    DurationEstimate,
    NotFoundCount,
    PolledRequest,
    PollPolicy,
    PollSchedule,
)

#: Between two polls of a running request that may be over, and of a queued one at least, as shares of the usual time.
_RUNNING_SHARE, _QUEUE_SHARE = 0.15, 0.06
#: A request that may be running is polled within this share of the usual time, or ``longest_s`` if that is longer.
_LONGEST_SHARE = 0.1
#: The time between two checks whether the queue is in order, as a share of the usual time.
_CHECK_SHARE = 0.5
#: Without order, the polls of all queued requests are spread over this share of that time, or longer if they are many.
_SPREAD_SHARE = 0.1
#: While no generation time is known, a running request is polled each time its age grows by this share.
_UNKNOWN_SHARE = 0.2
#: Of many such requests this many look for the first end; the others are polled so many times less often.
_UNKNOWN_SCOUTS, _UNKNOWN_STRETCH = 16, 4.0
_MOST_MISSED_ENDS = 8
#: What another process needs is written to logs and the database; it polls requests without a position once more.
_MOST_POSITIONS = 300
#: A start or an end is known well enough to learn from if it lies within this share of the generation time.
_SEEN_WITHIN = 0.5


class RequestPoller:
    """A set of requests of one account that are polled together.

    :param policy: how often.
    :param durations: how long generations take, as far as is known; updated with every observed generation.
    """

    def __init__(self, policy: PollPolicy | None = None, *, durations: DurationEstimate | None = None) -> None:
        self.policy = policy or PollPolicy()
        self.durations = durations or DurationEstimate()
        #: Requests that are over by their status, and when that was noticed; the driver calls :meth:`forget`.
        self.ready: dict[str, float] = {}
        #: Requests that the API does not know, again and again; they are forgotten already.
        self.gone: list[str] = []
        self._intervals = self.policy.intervals
        self._requests: dict[str, PolledRequest] = {}
        self._count = itertools.count()
        self._schedule = PollSchedule(self.policy)
        self._queue = QueueEstimate(self._queue_gap_s, self._check_s)
        self._positions: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._running = 0
        #: Ends that came before any poll, while no generation time is known: each halves the first interval.
        self._missed_ends = 0
        self._began_at = math.inf

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def queued(self) -> int:
        """How many requests are queued, as far as is known."""
        return sum(request.is_queued for request in self._requests.values())

    # -- membership ----------------------------------------------------------------------------------------

    def add(
        self,
        request_id: str,
        submitted_at: float | None,
        *,
        started_at: float | None = None,
        interval_s: float | None = None,
        not_before: float = 0.0,
        now: float | None = None,
    ) -> None:
        """Add a request.

        :param submitted_at: when it was submitted; None: not known.
        :param started_at: when it started, if that is known.
        :param interval_s: a fixed interval while it may be running; None (default) adapts.
        :param not_before: no poll before this time, from an earlier ``Retry-After``.
        :param now: the time now, default ``submitted_at``.
        """
        if request_id in self._requests:
            return
        now = (submitted_at or 0.0) if now is None else now
        self._began_at = min(self._began_at, now)
        request = self._new(request_id, now if submitted_at is None else submitted_at, interval_s)
        request.not_before = max(not_before, self._not_before.pop(request_id, 0.0))
        request.submitted_at = submitted_at
        if started_at is not None:
            request.queued_until = request.started_by = request.started_at = started_at
            self._running += 1
            self._schedule.schedule(request, self._first_poll_at(request, now))
            return
        request.queued_until = submitted_at
        request.is_queued = True
        if request_id in self._positions:
            request.next_at = request.not_before
            self._queue.add(request, self._positions.pop(request_id), now)
        else:
            self._schedule.schedule(request, now)

    def add_apart(self, request_id: str, now: float, *, poll_at: float) -> None:
        """Add a request that was over by its status and turned out not to be; nothing is learned from it.

        :param poll_at: when to poll it first.
        """
        if request_id in self._requests:
            return
        request = self._new(request_id, now, None)
        request.is_apart = True
        # A process that resumes this set must not count it as queued.
        request.started_at = now - (self.durations.usual_s if self.durations.is_known else 0.0)
        self._schedule.schedule(request, poll_at)

    def _new(self, request_id: str, submitted_at: float, interval_s: float | None) -> PolledRequest:
        request = PolledRequest(request_id, (submitted_at, next(self._count)), submitted_at, interval_s)
        request.missing = NotFoundCount(self.policy.gone_after_times, self.policy.gone_after_s)
        self._requests[request_id] = request
        return request

    def forget(self, request_id: str) -> None:
        """Remove a request."""
        request = self._requests.pop(request_id, None)
        is_ready = self.ready.pop(request_id, None) is not None
        if request is not None:
            self._running -= request.started_by is not None and not is_ready
            request.is_forgotten = True
            self._queue.remove(request)

    def ask_again(self, request_id: str, now: float, *, at: float | None = None, late: int = 0) -> None:
        """Poll a request that is over by its status again: its outcome is not known yet.

        :param at: when; default after the usual pause, longer each time.
        :param late: how often that was tried.
        """
        request = self._requests.get(request_id)
        if request is None:
            return
        self.ready.pop(request_id, None)
        self._schedule.on_answer()
        request.is_asked, request.is_apart, request.errors = False, True, 0
        request.missing.reset()
        if at is None:
            at = now + self._running_s(request, now) + min(late, 5) * self._intervals.first_s
        self._schedule.schedule(request, at)

    def poll_now(self, request_id: str, now: float) -> bool:
        """Poll a request as soon as possible; return false if the server asked to wait longer."""
        request = self._requests.get(request_id)
        if request is None or max(request.not_before, self._schedule.pause_until) > now:
            return False
        if not request.is_asked:
            self._queue.remove(request)
            self._schedule.schedule(request, now)
        return True

    def use_policy(self, policy: PollPolicy) -> None:
        """Use this policy from now on: the connection was read, or has changed."""
        self.policy, self._intervals = policy, policy.intervals
        self._schedule.use_policy(policy)

    def order_of(self, request_id: str) -> tuple[float, int]:
        """Return the place of a request in the order of submission."""
        return self._requests[request_id].number

    def started(self) -> dict[str, int]:
        """Return when each running request started, in whole seconds, for another process to resume with."""
        return {
            request.request_id: round(request.started_at)
            for request in self._requests.values()
            if request.started_at is not None and request.request_id not in self.ready
        }

    def started_at(self, request_id: str) -> float | None:
        """Return when a request probably started, even if it is over; None if that is not known."""
        request = self._requests.get(request_id)
        return None if request is None or request.is_apart else request.started_at

    # -- what to poll --------------------------------------------------------------------------------------

    def due(self, now: float, limit: int = 1000) -> list[str]:
        """Return the requests to poll now; each counts as asked until its answer comes.

        :param limit: how many at most.
        """
        found: list[str] = []
        while self._schedule.may_poll(now) and len(found) < limit:
            request = self._queue.next_due(now) or self._schedule.next_due(now)
            if request is None:
                break
            request.is_asked = True
            self._schedule.on_poll()
            found.append(request.request_id)
        return found

    def next_at(self, now: float) -> float:
        """Return when to call :meth:`due` again; infinity if only an answer can change anything."""
        at = min(self._schedule.first_at(), self._queue.next_at(now))
        return at if math.isinf(at) else self._schedule.not_before(at, now)

    # -- intervals -----------------------------------------------------------------------------------------

    def _longest_s(self) -> float:
        usual_s = self.durations.usual_s if self.durations.is_known else 0.0
        return max(self._intervals.longest_s, _LONGEST_SHARE * usual_s)

    def _queue_gap_s(self, now: float) -> float:
        """Return the shortest pause between two polls of a queued request."""
        if self.durations.is_known:
            gap_s = max(self._intervals.shortest_s, _QUEUE_SHARE * self.durations.usual_s)
        else:
            gap_s = max(self._intervals.first_s, _UNKNOWN_SHARE * (now - self._began_at))
        return min(gap_s, 0.5 * self._check_s(now))

    def _check_s(self, now: float) -> float:
        """Return the time between two checks of the queue's order; without order, each request is polled then."""
        if self.durations.is_known:
            check_s = _CHECK_SHARE * self.durations.usual_s
        else:
            check_s = max(4 * self._intervals.first_s, _CHECK_SHARE * (now - self._began_at))
        return min(max(self._intervals.shortest_s, check_s), 0.75 * self._longest_s())

    def _running_s(self, request: PolledRequest, now: float) -> float:
        """Return the pause between two polls of a request that may be over."""
        since = next((at for at in (request.started_by, request.submitted_at) if at is not None), now)
        age_s = max(0.0, now - since)
        if request.interval_s is not None:
            interval_s = request.interval_s
        elif self.durations.is_known:
            usual_s = self.durations.usual_s
            interval_s = _RUNNING_SHARE * (age_s if age_s > 1.5 * usual_s else usual_s)
            interval_s = min(max(self._intervals.shortest_s, interval_s), self._longest_s())
        else:
            first_s = max(self._intervals.shortest_s, self._intervals.first_s * 0.5**self._missed_ends)
            interval_s = min(max(first_s, _UNKNOWN_SHARE * age_s), self._intervals.unknown_s)
        if not self.durations.is_known and request.jitter * self._running > _UNKNOWN_SCOUTS:
            interval_s = max(interval_s, min(_UNKNOWN_STRETCH * interval_s, self._intervals.unknown_s))
        return interval_s * (1 - 0.1 * request.jitter)

    def _first_poll_at(self, request: PolledRequest, now: float) -> float:
        """Return when to poll a running request next: before it may be over, only at the longest interval."""
        at = now + self._running_s(request, now)
        if self.durations.is_known and request.started_at is not None and not request.is_apart:
            at = max(at, request.started_at + self.durations.first_poll_s)
            at = min(at, now + max(self._longest_s(), request.interval_s or 0.0))
        return at

    # -- answers -------------------------------------------------------------------------------------------

    def on_status(self, status: RequestStatus, now: float) -> None:
        """Record what ``/status`` said."""
        self._schedule.on_answer()
        request = self._answered(status.request_id)
        if request is None:
            return
        request.errors = 0
        request.missing.reset()
        if status.is_over:
            self._on_end(request, now)
        elif status.state is State.QUEUED:
            self._on_queued(request, status.queue_position, now)
        else:
            if request.started_by is None and status.state is State.RUNNING:
                self._on_start(request, now)
            self._schedule.schedule(request, self._first_poll_at(request, now))
        request.alive_at = now
        self._poll_doubtful(now)

    def on_error(self, request_id: str, error: WanError, now: float) -> None:
        """Record that a poll failed."""
        request = self._answered(request_id)
        if request is None:
            return
        request.errors += 1
        if isinstance(error, WanNotFoundError):
            request.missing.after_s = self.policy.gone_after_s
            if request.missing.on_not_found(now):
                self.gone.append(request_id)
                self.forget(request_id)
                return
            pause_s = request.missing.pause_s
        else:
            request.missing.reset()
            self._schedule.on_error(request, error, now)
            pause_s = self._intervals.after_error_s(request.errors) * (0.75 + 0.25 * request.jitter)
        self._queue.remove(request)  # polled by itself until it answers again
        self._schedule.schedule(request, now + pause_s)

    def _answered(self, request_id: str) -> PolledRequest | None:
        request = self._requests.get(request_id)
        if request is None:
            return None
        request.is_asked = False
        return None if request_id in self.ready else request

    def _on_queued(self, request: PolledRequest, position: int | None, now: float) -> None:
        if request.started_by is not None:
            self._running -= 1
        request.started_by = request.started_at = None  # it may have gone back to the queue
        request.is_queued = True
        if position is None:  # its place among the others is not known
            self._queue.remove(request)
            self._schedule.schedule(request, now + self._check_s(now) * (1 - 0.1 * request.jitter))
        else:
            self._queue.on_queued(request, position, now)
        if request.interval_s is not None:
            request.next_at = max(request.next_at, now + request.interval_s)
        request.queued_until = now

    def _on_start(self, request: PolledRequest, now: float) -> None:
        self._leave_queue(request, now)
        request.started_by = now
        self._running += 1

    def _leave_queue(self, request: PolledRequest, now: float) -> None:
        """Record that a request runs or has run, and when it probably started."""
        request.is_queued = False
        if request.is_waiting:
            request.queued_until, request.started_at = self._queue.on_start(request, now)
        elif request.queued_until is not None:
            request.started_at = (request.queued_until + now) / 2

    def _on_end(self, request: PolledRequest, now: float) -> None:
        self.ready[request.request_id] = now
        if request.started_by is None:
            self._leave_queue(request, now)
        else:
            self._running -= 1
        if request.started_by is not None and not request.is_apart:
            self._learn(request, now)

    def _learn(self, request: PolledRequest, now: float) -> None:
        """Learn how long a generation took, if its start and its end were observed closely."""
        waited_until, started_at = request.queued_until, request.started_at
        if waited_until is None or started_at is None or request.started_by is None:
            return
        if request.alive_at is not None and request.alive_at >= request.started_by:
            duration_s = (request.alive_at + now) / 2 - started_at
            widest_s = max(request.started_by - waited_until, now - request.alive_at)
            was_known = self.durations.is_known
            if widest_s <= _SEEN_WITHIN * (self.durations.usual_s if was_known else duration_s):
                self.durations.learn(duration_s)
                self.durations.on_first_poll(was_over=False)
                if not was_known:
                    self._reschedule_running(now)
                return
        if not self.durations.is_known:
            self._missed_ends = min(self._missed_ends + 1, _MOST_MISSED_ENDS)
            self._reschedule_running(now)
        elif now - waited_until < self.durations.usual_s:
            self.durations.on_first_poll(was_over=True)

    def _reschedule_running(self, now: float) -> None:
        """Poll the other running requests earlier, now that an end was noticed."""
        for request in self._requests.values():
            if request.started_by is not None and request.request_id not in self.ready and not request.is_asked:
                at = now + self._running_s(request, now) * request.jitter
                if self.durations.is_known and request.started_at is not None:
                    at = max(at, request.started_at + self.durations.first_poll_s)
                self._schedule.schedule(request, min(at, request.next_at))

    def _poll_doubtful(self, now: float) -> None:
        """Poll the requests whose place in the queue is not certain, spread over a short time."""
        doubtful = self._queue.take_doubtful(lambda count: self._spread_s(count, now), now)
        if not doubtful:
            return
        pause_s = self._spread_s(len(doubtful), now) / len(doubtful)
        for place, request in enumerate(doubtful):
            if not request.is_asked:
                self._schedule.schedule(request, now + place * pause_s)

    def _spread_s(self, count: int, now: float) -> float:
        return max(_SPREAD_SHARE * self._check_s(now), count / self.policy.polls_per_second)

    # -- across processes ----------------------------------------------------------------------------------

    def learned(self) -> dict[str, Any]:
        """Return what another process needs to know, as plain JSON values."""
        waits = {r.request_id: r.not_before for r in self._requests.values() if r.not_before}
        if self._schedule.pause_until:
            waits[""] = self._schedule.pause_until
        waits = {**self._not_before, **waits}
        positions = dict([*self._queue.positions().items(), *self._positions.items()][:_MOST_POSITIONS])
        return {
            "durations": self.durations.as_dict(),
            **({"positions": positions} if positions else {}),
            **({"not_before": waits} if waits else {}),
        }

    @classmethod
    def resume(
        cls,
        policy: PollPolicy,
        learned: Mapping[str, Any] | None,
        request_ids: Iterable[str],
        started: Mapping[str, float],
        now: float,
        *,
        poll_at: Mapping[str, float] | None = None,
    ) -> RequestPoller:
        """Resume the set of another process.

        :param learned: the return value of :meth:`learned` there.
        :param request_ids: the requests in flight, in order of submission.
        :param started: the return value of :meth:`started` there.
        :param poll_at: of requests that were added by :meth:`add_apart`, when to poll each first.
        """
        given = learned or {}
        poller = cls(policy, durations=DurationEstimate.from_dict(given.get("durations")))
        poller._resume_waits(given.get("not_before"), now)
        poller._positions = _numbers(given.get("positions"))
        for request_id in request_ids:
            if poll_at and request_id in poll_at:
                poller.add_apart(request_id, now, poll_at=poll_at[request_id])
                continue
            at = started.get(request_id)
            poller.add(request_id, None, started_at=None if at is None else float(at), now=now)
        return poller

    def _resume_waits(self, waits: Any, now: float) -> None:
        """Restore the pauses that ``Retry-After`` asked for, except past and invalid ones."""
        for request_id, until in _numbers(waits).items():
            if until > now:
                if request_id:
                    self._not_before[request_id] = until
                else:
                    self._schedule.pause_until = until


def _numbers(values: Any) -> dict[str, float]:
    """Return the finite numbers of a JSON object by key, without anything else."""
    given = values.items() if isinstance(values, Mapping) else ()
    return {str(key): float(each) for key, each in given if isinstance(each, int | float) and math.isfinite(each)}
