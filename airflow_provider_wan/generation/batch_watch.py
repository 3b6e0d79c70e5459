# SPDX-License-Identifier: Apache-2.0
"""Which of many requests to look at next, so that few looks notice most ends soon. No I/O, clock or dice.

An account runs a few requests at a time and queues the rest. Looking at each of a thousand every few seconds
would take more calls than an API allows, so:

* **The queue.** Requests are believed to start in the order of their submission. One look at a queued one then
  tells how many before it have started: its place in our order less its ``queue_position``. Such a *probe* is made
  after something has ended, not for each request.
* **The running ones.** How long this model takes is learned from those that are done. A running request is looked
  at first when it may be ready, and then every tenth of the usual time.
* **The belief can be wrong.** A request that runs or ends before one of its elders has started shows that the queue
  is not in order. From then on each request is looked at for itself, as often as the rate allows. Other users of
  the account are no disorder: they only make ``queue_position`` larger than what stands before us in our order,
  and then the first in the queue is looked at itself.

Looks never exceed ``looks_per_second``, however many requests there are.

A loop does this, with ``now`` in seconds of any clock that goes on: look at all of ``due(now)``, tell what came by
``saw_status`` or ``saw_error``, take ``ready`` and ``gone``, sleep until ``next_at(now)``.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from airflow_provider_wan.exceptions import WanError, WanNotFoundError, WanTransientError
from airflow_provider_wan.generation.batch_learning import Durations
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus

#: Between two looks at a running request, and between two probes, as shares of the usual time.
_LOOK_SHARE = 0.1
_PROBE_SHARE = 0.06
#: Without any end seen, the queue is probed this often, as a share of the usual time.
_CALM_PROBE_SHARE = 0.4
#: Where others' requests stand between ours, their ends are not seen.
_FOREIGN_PROBE_SHARE = 0.2
_SHORTEST_S = 0.4
_FIRST_LOOK_S = 2.0
#: As long as no duration is known: a few are looked at closely, the rest seldom.
_SAMPLES = 8
_SAMPLE_GROWTH = 1.2
_BLIND_LOOK_S = 30.0
_LONGEST_PAUSE_S = 60.0
_LOOKS_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    """How closely to watch.

    :param looks_per_second: the most status calls a second.
    :param slack: as many neighbours may stand in another order than they were submitted in: submits overtake each
        other on their way.
    :param gone_after_times: how many 404001 in a row mean that a request is gone.
    :param gone_after_s: over how many seconds they must have come.
    """

    looks_per_second: float = 50.0
    slack: int = 16
    gone_after_times: int = 3
    gone_after_s: float = 60.0


class _Connection(Protocol):
    """What counts of a connection's settings."""

    @property
    def requests_per_second(self) -> float | None: ...

    @property
    def not_found_patience_s(self) -> float: ...


def policy_of(settings: _Connection | None) -> WatchPolicy:
    """Give how closely to watch over a connection; status calls leave a part of its rate to submits and results.

    :param settings: of the connection; None: not known.
    """
    if settings is None:
        return WatchPolicy()
    rate = settings.requests_per_second
    most = WatchPolicy().looks_per_second
    looks = most if rate is None else min(most, _LOOKS_SHARE * rate)
    return WatchPolicy(looks_per_second=looks, gone_after_s=settings.not_found_patience_s)


@dataclass(slots=True, eq=False)
class _Watched:
    request_id: str
    #: When it was submitted, and a count: its place in the order.
    number: tuple[float, int]
    submitted_at: float
    started_at: float | None = None
    next_at: float = 0.0
    #: The last moment at which it was certainly not over.
    alive_at: float | None = None
    looks: int = 0
    is_waiting: bool = True
    is_asked: bool = False
    is_sample: bool = False
    #: Out of the order, since the API said that it does not know it: looked at for itself.
    is_apart: bool = False
    errors: int = 0
    not_found_times: int = 0
    not_found_since: float = 0.0


class QueueWatch:
    """Watches many requests of one account.

    :param policy: how closely.
    :param durations: what is known about how long they take; goes on learning.
    :param in_order: false if the queue is known not to be in order.
    """

    def __init__(
        self,
        policy: WatchPolicy | None = None,
        *,
        durations: Durations | None = None,
        in_order: bool = True,
    ) -> None:
        self.policy = policy or WatchPolicy()
        self.durations = durations or Durations()
        self.in_order = in_order
        #: Requests that are over, and when that was noticed; whoever takes them calls :meth:`forget`.
        self.ready: dict[str, float] = {}
        #: Requests that the API does not know, again and again.
        self.gone: list[str] = []
        #: Looks that were asked for, for the log.
        self.looks = 0
        #: Whether the last error was about the token, so that a rotated one is worth a look.
        self.wants_fresh_connection = False
        self._all: dict[str, _Watched] = {}
        self._waiting: list[_Watched] = []
        self._running: list[tuple[float, tuple[float, int], _Watched]] = []
        self._numbers = itertools.count()
        self._ends: list[float] = []
        self._samples = 0
        self._probe: _Watched | None = None
        self._probed_at: float | None = None
        # One round finds out how many have started, with one probe or a few.
        self._rounds = 0
        self._round_goes_on = False
        self._probe_next = 0
        self._step = 1
        self._head_runs = False
        self._younger: tuple[float, int] | None = None
        self._known_queued: tuple[float, int] | None = None
        self._vacated: float | None = None
        self._tail_seen_at = float("-inf")
        #: The position that the first in the queue has: 0 or 1, as the API counts.
        self._base: int | None = None
        self._foreign = False
        self._credit = self.policy.looks_per_second
        self._credit_at: float | None = None
        self._errors = 0
        self._pause_until = 0.0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def queued(self) -> int:
        """How many are believed to wait in the queue."""
        return len(self._waiting)

    def add(self, request_id: str, submitted_at: float, *, started_at: float | None = None) -> None:
        """Watch one more.

        :param submitted_at: gives it its place in the order.
        :param started_at: when it started, if that is known.
        """
        if request_id in self._all:
            return
        one = _Watched(request_id, (submitted_at, next(self._numbers)), submitted_at)
        self._all[request_id] = one
        if started_at is not None:
            self._start(one, started_at, submitted_at)
        else:
            bisect.insort(self._waiting, one, key=lambda other: other.number)
            if not self.in_order:
                self._schedule(one, submitted_at + self._patience_s(one, submitted_at))

    def forget(self, request_id: str) -> None:
        """Watch one no more."""
        self.ready.pop(request_id, None)
        one = self._all.pop(request_id, None)
        if one is not None and one.is_waiting:
            self._waiting.remove(one)
        if one is not None and one is self._probe:
            self._probe = None

    def look_at(self, request_id: str, at: float) -> None:
        """Look at a running one at a certain time next."""
        if request_id in self._all:
            self._schedule(self._all[request_id], at)

    def order_of(self, request_id: str) -> tuple[float, int]:
        """Give the place of a watched request in the order of submission."""
        return self._all[request_id].number

    def back_to_watch(self, request_id: str, now: float) -> None:
        """Go on watching one that was over by its status, and is not by its result."""
        self.ready.pop(request_id, None)
        one = self._all.get(request_id)
        if one is not None:
            self._schedule(one, now + self._interval_s())

    def started(self) -> dict[str, int]:
        """Tell of the running ones when they started, to go on with elsewhere."""
        return {
            one.request_id: round(one.started_at)
            for one in self._all.values()
            if one.started_at is not None and one.request_id not in self.ready
        }

    # -- what to look at -----------------------------------------------------------------------------------

    def due(self, now: float, limit: int = 1000) -> list[str]:
        """Give the requests to look at now, and count on their answers.

        :param limit: how many at most.
        """
        self._refill(now)
        found: list[str] = []
        if now < self._pause_until:
            return found
        while len(found) < limit and self._credit >= 1:
            one = self._next_probe(now) or self._next_running(now)
            if one is None:
                break
            one.is_asked = True
            one.looks += 1
            self.looks += 1
            self._credit -= 1
            found.append(one.request_id)
        return found

    def next_at(self, now: float) -> float:
        """Give the moment at which to ask for what is due again; infinity if only an answer can tell."""
        moments = []
        if self.in_order and self._waiting and self._probe is None:
            moments.append(self._probe_due_at(now))
        while self._running and not self._is_current(self._running[0]):
            heapq.heappop(self._running)
        if self._running:
            moments.append(self._running[0][0])
        if not moments:
            return float("inf")
        at = max(min(moments), self._pause_until)
        if self._credit < 1:
            at = max(at, now + (1 - self._credit) / self.policy.looks_per_second)
        return at

    def _refill(self, now: float) -> None:
        if self._credit_at is not None:
            more = max(0.0, now - self._credit_at) * self.policy.looks_per_second
            self._credit = min(max(1.0, self.policy.looks_per_second), self._credit + more)
        self._credit_at = now

    def _is_current(self, entry: tuple[float, tuple[float, int], _Watched]) -> bool:
        at, _, one = entry
        return self._all.get(one.request_id) is one and not one.is_asked and one.next_at == at

    def _next_running(self, now: float) -> _Watched | None:
        while self._running and self._running[0][0] <= now:
            entry = heapq.heappop(self._running)
            if self._is_current(entry):
                return entry[2]
        return None

    def _schedule(self, one: _Watched, at: float) -> None:
        one.next_at = at
        heapq.heappush(self._running, (at, one.number, one))

    # -- the queue -----------------------------------------------------------------------------------------

    def _probe_due_at(self, now: float) -> float:
        if self._round_goes_on or self._probed_at is None:
            return now
        if not self.durations.is_known:
            return self._probed_at + max(_FIRST_LOOK_S, _LOOK_SHARE * (now - self._waiting[0].submitted_at))
        share = _FOREIGN_PROBE_SHARE if self._foreign else _PROBE_SHARE if self._ends else _CALM_PROBE_SHARE
        return self._probed_at + max(_SHORTEST_S, share * self.durations.usual_s)

    def _next_probe(self, now: float) -> _Watched | None:
        if not self.in_order or not self._waiting or self._probe is not None:
            return None
        if now < self._probe_due_at(now):
            return None
        index = self._probe_next if self._round_goes_on else self._begin_round(now)
        one = self._waiting[max(0, min(index, len(self._waiting) - 1))]
        if one.is_asked:
            return None
        self._probe = one
        return one

    def _begin_round(self, now: float) -> int:
        """Begin to find out how many have started; gives the place to look at first."""
        self._rounds += 1
        self._head_runs, self._step, self._younger, self._known_queued = False, 1, None, None
        self._round_goes_on = True
        last = len(self._waiting) - 1
        if self._probed_at is None:
            return last  # the last one's position tells about the whole queue
        usual_s = self.durations.usual_s if self.durations.is_known else _BLIND_LOOK_S
        if now - self._tail_seen_at > usual_s:
            self._tail_seen_at = now
            return last  # has it started before its elders?
        if self._foreign or not self._ends or self._rounds % 4 == 0:
            return 0
        starts = len(self._ends)
        return starts + int(starts**0.5) + 1

    def _end_round(self) -> None:
        self._round_goes_on = False
        self._ends.clear()

    def _search_on(self) -> None:
        """Look between the elders that have started and the first that is known to wait."""
        if not self._waiting:
            self._end_round()
        elif self._known_queued is not None:
            self._probe_next = self._place(self._known_queued) // 2
        else:
            self._step *= 2
            self._probe_next = min(self._step - 1, len(self._waiting) - 1)

    def _place(self, number: tuple[float, int]) -> int:
        """Give the place in our own order, from 0, of the request with this number."""
        return bisect.bisect_left(self._waiting, number, key=lambda one: one.number)

    def _saw_queued(self, one: _Watched, position: int | None, now: float) -> None:
        one.alive_at = now
        if one.started_at is not None:  # it was believed to run, for a younger one did
            self._saw_overtaken(one, now)
            return
        self._probed_at = now
        place = self._place(one.number)
        if place == 0:
            if self._younger is not None and not self._has_overtaken(self._younger, now):
                self._fall_into_disorder(now)
                return
            self._saw_head_queued(position)
            self._end_round()
            return
        if position is not None:
            self._mark_started(place - position + (self._base or 0), now)
        self._known_queued = one.number
        if position is not None and not self._foreign and self._base is not None:
            self._end_round()
        elif self._younger is None and not self._head_runs:
            self._probe_next = 0
        else:
            self._search_on()

    def _saw_overtaken(self, one: _Watched, now: float) -> None:
        """It waits, though others that were submitted after it have started; a few may have overtaken it."""
        younger = sum(
            1 for other in self._all.values() if other.started_at is not None and other.number > one.number
        )
        if younger > self._slack():
            self._fall_into_disorder(now)
            return
        self._vacated, one.started_at, one.is_waiting = one.started_at, None, True
        bisect.insort(self._waiting, one, key=lambda other: other.number)
        self._round_goes_on = False

    def _slack(self) -> int:
        return min(self.policy.slack, max(8, len(self._all) // 8))  # in a few, looking at each costs little

    def _has_overtaken(self, number: tuple[float, int], now: float) -> bool:
        """Take one that runs before its eldest as overtaking its neighbours; false if it was too far behind."""
        place = self._place(number)
        if place > self._slack():
            return False
        if place < len(self._waiting) and self._waiting[place].number == number:
            one = self._waiting.pop(place)
            self._start(one, now if self._vacated is None else self._vacated, now)
            self._vacated = None
        return True

    def _saw_head_queued(self, position: int | None) -> None:
        """Our first one waits: what its position says beyond the least ever seen are others' requests."""
        if position is None:
            self._foreign = True  # positions tell nothing here: find the first one that waits by looking
            return
        self._base = position if self._base is None else min(self._base, position)
        self._foreign = position > self._base

    def _saw_running(self, one: _Watched, now: float) -> None:
        one.alive_at = now
        if one.started_at is None:
            self._saw_start(one, now)
        if one.started_at is not None:
            self._schedule(one, max(now + self._interval_s(one, now), one.next_at))

    def _saw_start(self, one: _Watched, now: float) -> None:
        """A request that was believed to wait has started; its elders then have too, if order holds."""
        self._probed_at = now
        place = self._place(one.number)
        if place == 0 and self._known_queued is not None and not self._head_runs:
            self._foreign = True  # the positions behind it told that it waits: others stand between
        if place > 0 and not self._head_runs:
            self._younger = one.number
            self._probe_next = 0  # is its eldest running too? else the queue is not in order
            return
        self._head_runs = True
        if self._younger is not None:
            place = max(place, self._place(self._younger) - 1)
            if place + 1 < len(self._waiting) and self._waiting[place + 1].number == self._younger:
                place += 1
            self._younger = None
        self._mark_started(place + 1, now)
        self._search_on()

    def _mark_started(self, count: int, now: float) -> None:
        """The first so many of the queue have started, most likely when others ended."""
        count = max(0, min(count, len(self._waiting)))
        begun, self._waiting = self._waiting[:count], self._waiting[count:]
        ends = sorted(self._ends)
        for index, one in enumerate(begun):
            behind = len(begun) - index
            if len(ends) >= behind:
                moment = ends[len(ends) - behind]
            elif self.durations.is_known:
                moment = now - _PROBE_SHARE * self.durations.usual_s
            else:
                moment = one.submitted_at
            self._start(one, max(one.submitted_at, min(moment, now)), now)

    def _start(self, one: _Watched, started_at: float, now: float) -> None:
        one.is_waiting = False
        one.started_at = started_at
        if self.durations.is_known:
            at = started_at + self.durations.first_look_s()
        elif self._samples < _SAMPLES:
            self._samples += 1
            one.is_sample = True
            at = started_at + _FIRST_LOOK_S
        else:
            at = started_at + _BLIND_LOOK_S
        self._schedule(one, max(now, at))

    def _fall_into_disorder(self, now: float) -> None:
        if self.in_order:
            self.in_order = False
            self._probe, self._round_goes_on = None, False
            for one in self._all.values():
                if one.request_id not in self.ready and not one.is_asked:
                    self._schedule(one, now)

    # -- what was seen -------------------------------------------------------------------------------------

    def saw_status(self, status: RequestStatus, now: float) -> None:
        """Take in what ``/status`` said."""
        self._errors, self.wants_fresh_connection = 0, False
        one = self._answered(status.request_id)
        if one is None:
            return
        one.errors, one.not_found_times = 0, 0
        if status.is_over:
            self._saw_end(one, now)
        elif not self.in_order or one.is_apart:
            self._saw_one_of_many(one, status, now)
        elif status.state is State.QUEUED:
            self._saw_queued(one, status.queue_position, now)
        elif status.state is State.RUNNING:
            self._saw_running(one, now)
        else:
            one.alive_at = now
            if one.is_waiting:
                self._waiting.remove(one)
                self._start(one, now, now)
            self._schedule(one, now + max(_FIRST_LOOK_S, self._interval_s(one, now)))

    def saw_error(self, request_id: str, error: WanError, now: float) -> None:
        """Take in that a look failed: paid requests are looked at again, unless the API says that they are gone."""
        one = self._answered(request_id)
        if one is None:
            return
        one.errors += 1
        if isinstance(error, WanNotFoundError):
            one.not_found_since = one.not_found_since if one.not_found_times else now
            one.not_found_times += 1
            if (
                one.not_found_times >= self.policy.gone_after_times
                and now - one.not_found_since >= self.policy.gone_after_s
            ):
                self.gone.append(request_id)
                self.forget(request_id)
                return
            pause_s = self.policy.gone_after_s / max(1, self.policy.gone_after_times - 1)
            self._set_apart(one)
        else:
            self._saw_outage(error, now)
            pause_s = min(_LONGEST_PAUSE_S, self._interval_s(one, now) * 2 ** min(one.errors - 1, 6))
        if one.is_waiting and self.in_order:
            self._probe_next = self._place(one.number)  # ask again: whoever stands there then
        else:
            self._schedule(one, now + pause_s)

    def _set_apart(self, one: _Watched) -> None:
        one.is_apart = True
        if one.is_waiting:
            self._waiting.remove(one)
            one.is_waiting = False
            self._round_goes_on = False

    def _saw_outage(self, error: WanError, now: float) -> None:
        self._errors += 1
        self.wants_fresh_connection = not isinstance(error, WanTransientError)
        if isinstance(error, WanTransientError) and error.retry_after_s:
            self._pause_until = max(self._pause_until, now + error.retry_after_s)
        elif self._errors >= 5:  # not one request's trouble: the API is out
            self._pause_until = now + min(_LONGEST_PAUSE_S, 0.5 * 2 ** min(self._errors - 5, 8))

    def _answered(self, request_id: str) -> _Watched | None:
        one = self._all.get(request_id)
        if one is not None:
            one.is_asked = False
        if self._probe is not None and self._probe.request_id == request_id:
            self._probe = None
        return None if one is None or request_id in self.ready else one

    def _saw_end(self, one: _Watched, now: float) -> None:
        self.ready[one.request_id] = now
        if one.is_waiting:
            if self.in_order:
                self._saw_start(one, now)
            if one.is_waiting:
                self._waiting.remove(one)
            one.is_waiting = False
            self._ends.append(now)
            return
        started_at = one.started_at
        if started_at is None:  # set apart
            return
        if one.alive_at is not None and one.alive_at > started_at:
            ended_at = (one.alive_at + now) / 2
        elif self.durations.is_known:  # a first look, early or too late, tells little
            ended_at = started_at + min(0.97 * (now - started_at), self.durations.usual_s)
        else:
            ended_at = now
        self._ends.append(ended_at)
        was_known = self.durations.is_known
        self.durations.saw(ended_at - started_at)
        if not was_known:
            self._plan_all_again(now)

    def _plan_all_again(self, now: float) -> None:
        for one in self._all.values():
            if one.started_at is not None and one.request_id not in self.ready and not one.is_asked:
                self._schedule(one, max(now, one.started_at + self.durations.first_look_s()))

    def _saw_one_of_many(self, one: _Watched, status: RequestStatus, now: float) -> None:
        """Without order: each for itself."""
        one.alive_at = now
        if status.state is State.RUNNING and one.started_at is None:
            if one.is_waiting:
                self._waiting.remove(one)
            self._start(one, now, now)
        if one.is_waiting or status.state is State.QUEUED:
            self._schedule(one, now + self._patience_s(one, now))
        else:
            self._schedule(one, now + self._interval_s(one, now))

    def _patience_s(self, one: _Watched, now: float) -> float:
        """Between two looks at a queued request when each is looked at for itself."""
        fair_s = 2.0 * len(self._all) / self.policy.looks_per_second
        usual_s = self.durations.usual_s if self.durations.is_known else 20.0
        return max(_FIRST_LOOK_S, _LOOK_SHARE * usual_s, fair_s)

    def _interval_s(self, one: _Watched | None = None, now: float = 0.0) -> float:
        """Between two looks at a running request."""
        if self.durations.is_known:
            return max(_SHORTEST_S, _LOOK_SHARE * self.durations.usual_s)
        if one is None or one.started_at is None:
            return _FIRST_LOOK_S
        age_s = max(0.0, now - one.started_at)
        if one.is_sample:
            return max(_FIRST_LOOK_S / 2, (_SAMPLE_GROWTH - 1) * age_s)
        return max(_BLIND_LOOK_S, age_s)

    # -- across processes ----------------------------------------------------------------------------------

    def learned(self) -> dict[str, Any]:
        """Give what is worth knowing for whoever watches next, as plain JSON values."""
        return {"durations": self.durations.as_dict(), "in_order": self.in_order}

    @classmethod
    def resume(
        cls,
        policy: WatchPolicy,
        learned: Mapping[str, Any] | None,
        request_ids: Iterable[str],
        started: Mapping[str, float],
        now: float,
    ) -> QueueWatch:
        """Go on where another process has stopped.

        :param request_ids: what is in flight, in order of submission.
        :param started: what :meth:`started` gave.
        """
        given = learned or {}
        watch = cls(
            policy,
            durations=Durations.from_dict(given.get("durations")),
            in_order=bool(given.get("in_order", True)),
        )
        for request_id in request_ids:
            at = started.get(request_id)
            watch.add(request_id, now if at is None else float(at), started_at=at)
        return watch
