# SPDX-License-Identifier: Apache-2.0
"""Which of many requests to look at next, so that few looks notice most ends soon. No I/O, clock or dice.

An account runs a few requests at a time and queues the rest. Looking at each of a thousand every few seconds
would take more calls than an API allows, so:

* **The queued ones** are probed, one for many of them: see :mod:`~airflow_provider_wan.polling.queue_estimate`.
* **The running ones.** How long this model takes is learned from those that are done. A running request is looked
  at first when it may be ready, and then every tenth of the usual time.
* **Without order.** Where the queue turns out not to be in order, each request is looked at for itself from then on,
  as often as the rate allows. Other users of the account are no disorder: they only make ``queue_position`` larger
  than what stands before us in our order, and then the first in the queue is looked at itself.

Looks never exceed ``looks_per_second``. A loop does this, with ``now`` in seconds of any clock that
goes on: look at all of ``due(now)``, tell what came by ``saw_status`` or ``saw_error``, take ``ready`` and ``gone``,
sleep until ``next_at(now)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_wan.exceptions import WanError, WanNotFoundError
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import RequestStatus
from airflow_provider_wan.polling.durations import DurationEstimate
from airflow_provider_wan.polling.intervals import PollIntervals
from airflow_provider_wan.polling.polled_request import PolledRequest, PollPolicy
from airflow_provider_wan.polling.queue_estimate import QueueEstimate
from airflow_provider_wan.polling.schedule import PollSchedule


class RequestPoller:
    """Watches many requests of one account.

    :param policy: how closely.
    :param durations: what is known about how long they take; goes on learning.
    :param in_order: false if the queue is known not to be in order.
    """

    def __init__(
        self,
        policy: PollPolicy | None = None,
        *,
        durations: DurationEstimate | None = None,
        in_order: bool = True,
    ) -> None:
        self.policy = policy or PollPolicy()
        self.durations = durations or DurationEstimate()
        #: Requests that are over, and when that was noticed; whoever takes them calls :meth:`forget`.
        self.ready: dict[str, float] = {}
        #: Requests that the API does not know, again and again.
        self.gone: list[str] = []
        self._all: dict[str, PolledRequest] = {}
        self._numbers = itertools.count()
        self._agenda = PollSchedule(self.policy.looks_per_second)
        self._patience = PollIntervals(self.policy, self.durations)
        self._queue = QueueEstimate(
            self._patience,
            slack=self.policy.slack,
            watched=self._all,
            begin=self._begin,
            give_up=self._look_at_each,
            in_order=in_order,
        )

    def __len__(self) -> int:
        return len(self._all)

    @property
    def in_order(self) -> bool:
        """Whether the queue is still believed to be in order."""
        return self._queue.in_order

    @property
    def queued(self) -> int:
        """How many are believed to wait in the queue."""
        return len(self._queue)

    def add(self, request_id: str, submitted_at: float, *, started_at: float | None = None) -> None:
        """Watch one more.

        :param submitted_at: gives it its place in the order.
        :param started_at: when it started, if that is known.
        """
        if request_id in self._all:
            return
        one = self._new(request_id, submitted_at)
        if started_at is not None:
            one.is_waiting = False
            self._begin(one, started_at, submitted_at)
        else:
            self._queue.add(one)
            if not self.in_order:
                self._agenda.schedule(one, submitted_at + self._patience.queued_s(len(self._all)))

    def add_apart(self, request_id: str, now: float, *, look_at: float) -> None:
        """Watch one that was over by its status, and turned out not to be: it is looked at for itself.

        :param look_at: when it is looked at first.
        """
        if request_id in self._all:
            return
        one = self._new(request_id, now)
        one.is_waiting, one.is_apart = False, True
        # Whoever watches next must not take it for the youngest in the queue, nor learn from it.
        one.started_at = now - (self.durations.usual_s if self.durations.is_known else 0.0)
        self._agenda.schedule(one, look_at)

    def _new(self, request_id: str, submitted_at: float) -> PolledRequest:
        one = PolledRequest(request_id, (submitted_at, next(self._numbers)), submitted_at)
        self._all[request_id] = one
        return one

    def forget(self, request_id: str) -> None:
        """Watch one no more."""
        self.ready.pop(request_id, None)
        one = self._all.pop(request_id, None)
        if one is not None:
            one.is_forgotten = True
            self._queue.remove(one)
            self._queue.answered(one)

    def order_of(self, request_id: str) -> tuple[float, int]:
        """Give the place of a watched request in the order of submission."""
        return self._all[request_id].number

    def started(self) -> dict[str, int]:
        """Tell of the running ones when they started, to go on with elsewhere."""
        return {
            one.request_id: round(one.started_at)
            for one in self._all.values()
            if one.started_at is not None and one.request_id not in self.ready
        }

    def started_at(self, request_id: str) -> float | None:
        """Tell when one is believed to have started, also if it is over; None: not known."""
        one = self._all.get(request_id)
        return None if one is None or one.is_apart else one.started_at

    # -- what to look at -----------------------------------------------------------------------------------

    def due(self, now: float, limit: int = 1000) -> list[str]:
        """Give the requests to look at now, and count on their answers.

        :param limit: how many at most.
        """
        found: list[str] = []
        while self._agenda.may_look(now) and len(found) < limit:
            one = self._queue.next_probe(now) or self._agenda.next_due(now)
            if one is None:
                break
            one.is_asked = True
            self._agenda.looked()
            found.append(one.request_id)
        return found

    def next_at(self, now: float) -> float:
        """Give the moment at which to ask for what is due again; infinity if only an answer can tell."""
        moments = [at for at in (self._queue.probe_at(now), self._agenda.first_at()) if at is not None]
        return self._agenda.not_before(min(moments), now) if moments else float("inf")

    def _begin(self, one: PolledRequest, started_at: float, now: float) -> None:
        one.started_at = started_at
        self._agenda.schedule(one, max(now, self._patience.first_look_at(one, started_at)))

    def _look_at_each(self, now: float) -> None:
        for one in self._all.values():
            if one.request_id not in self.ready and not one.is_asked:
                self._agenda.schedule(one, now)

    # -- what was seen -------------------------------------------------------------------------------------

    def on_status(self, status: RequestStatus, now: float) -> None:
        """Take in what ``/status`` said."""
        self._agenda.on_answer()
        one = self._answered(status.request_id)
        if one is None:
            return
        one.errors, one.not_found_times = 0, 0
        if status.is_over:
            self._on_end(one, now)
            return
        one.alive_at = now
        if not self.in_order or one.is_apart:
            self._on_one_of_many(one, status, now)
        elif status.state is State.QUEUED:
            self._queue.on_queued(one, status.queue_position, now)
        elif status.state is State.RUNNING:
            if one.started_at is None:
                self._queue.on_start(one, now)
            if one.started_at is not None:
                self._agenda.schedule(one, max(now + self._patience.running_s(one, now), one.next_at))
        else:
            if one.is_waiting:
                self._queue.remove(one)
                self._begin(one, now, now)
            self._agenda.schedule(one, now + self._patience.odd_s(one, now))

    def on_error(self, request_id: str, error: WanError, now: float) -> None:
        """Take in that a look failed: paid requests are looked at again, unless the API says that they are gone."""
        one = self._answered(request_id)
        if one is None:
            return
        one.errors += 1
        if isinstance(error, WanNotFoundError):
            times = one.was_not_found(now)
            over_s = now - one.not_found_since
            if times >= self.policy.gone_after_times and over_s >= self.policy.gone_after_s:
                self.gone.append(request_id)
                self.forget(request_id)
                return
            one.is_apart = True
            self._queue.set_apart(one)
            pause_s = self._patience.not_found_s()
        else:
            self._agenda.on_outage(error, now)
            pause_s = self._patience.failed_s(one, now)
        if one.is_waiting and self.in_order:
            self._queue.probe_again(one)
        else:
            self._agenda.schedule(one, now + pause_s)

    def _answered(self, request_id: str) -> PolledRequest | None:
        one = self._all.get(request_id)
        if one is None:
            return None
        one.is_asked = False
        self._queue.answered(one)
        return None if request_id in self.ready else one

    def _on_end(self, one: PolledRequest, now: float) -> None:
        self.ready[one.request_id] = now
        if one.is_waiting:
            if self.in_order:
                self._queue.on_start(one, now)
            self._queue.remove(one)
            self._queue.ends.append(now)
        elif one.is_apart or one.started_at is None:
            self._queue.ends.append(now)
        else:
            self._learn(one, one.started_at, now)

    def _learn(self, one: PolledRequest, started_at: float, now: float) -> None:
        """Guess when it ended, and what that tells about the others."""
        if one.alive_at is not None and one.alive_at > started_at:
            ended_at = (one.alive_at + now) / 2
        elif self.durations.is_known:  # a first look, early or too late, tells little
            ended_at = started_at + min(0.97 * (now - started_at), self.durations.usual_s)
        else:
            ended_at = now
        self._queue.ends.append(ended_at)
        was_known = self.durations.is_known
        self.durations.saw(ended_at - started_at)
        if was_known:
            return
        for one in self._all.values():  # the first that ended: now it is known when to look at the others
            if one.started_at is not None and one.request_id not in self.ready and not one.is_asked:
                at = one.started_at + self.durations.first_look_s()
                self._agenda.schedule(one, max(now, at))

    def _on_one_of_many(self, one: PolledRequest, status: RequestStatus, now: float) -> None:
        """Without order: each for itself."""
        if status.state is State.RUNNING and one.started_at is None:
            self._queue.remove(one)
            self._begin(one, now, now)
        if one.is_waiting or status.state is State.QUEUED:
            pause_s = self._patience.queued_s(len(self._all))
        else:
            pause_s = self._patience.running_s(one, now)
        self._agenda.schedule(one, now + pause_s)

    # -- across processes ----------------------------------------------------------------------------------

    def learned(self) -> dict[str, Any]:
        """Give what is worth knowing for whoever watches next, as plain JSON values."""
        return {"durations": self.durations.as_dict(), "in_order": self.in_order}

    @classmethod
    def resume(
        cls,
        policy: PollPolicy,
        learned: Mapping[str, Any] | None,
        request_ids: Iterable[str],
        started: Mapping[str, float],
        now: float,
        *,
        look_at: Mapping[str, float] | None = None,
    ) -> RequestPoller:
        """Go on where another process has stopped.

        :param request_ids: what is in flight, in order of submission.
        :param started: what :meth:`started` gave.
        :param look_at: of those that are watched apart, when each is looked at first.
        """
        given = learned or {}
        in_order = bool(given.get("in_order", True))
        watch = cls(policy, durations=DurationEstimate.from_dict(given.get("durations")), in_order=in_order)
        for request_id in request_ids:
            if look_at and request_id in look_at:
                watch.add_apart(request_id, now, look_at=look_at[request_id])
                continue
            at = started.get(request_id)
            watch.add(request_id, now if at is None else float(at), started_at=at)
        return watch
