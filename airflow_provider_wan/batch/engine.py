# SPDX-License-Identifier: Apache-2.0
"""Carries a batch out: submits up to a number in flight, watches, lands what is over, submits more.

One thread decides (:meth:`BatchEngine.run`) and owns all state; threads do what takes time: submits, landings and
looks. In a deferrable task :meth:`run` comes back with a :class:`~airflow_provider_wan.batch.values.Pause`
as soon as there is nothing to do but wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from logging import Logger
from typing import Any

from airflow_provider_wan.batch.landings import Landings
from airflow_provider_wan.batch.plan import InputCheck
from airflow_provider_wan.batch.pool import Completion, WorkerPool
from airflow_provider_wan.batch.progress import Progress
from airflow_provider_wan.batch.results import ImageResult
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.batch.submits import Submits
from airflow_provider_wan.batch.values import BatchLimits, Pause
from airflow_provider_wan.batch.work import BatchWork
from airflow_provider_wan.exceptions import WanError, WanTimeoutError, WanTransientError

_LONGEST_NAP_S = 1.0


class BatchEngine:
    """Carries out what there is to do.

    :param standing: where each image stands.
    :param work: does what takes time: submit, land, look, cancel.
    :param check: validates inputs.
    :param stop: set to end early: nothing more is begun, and what was begun is finished.
    :param on_progress: is given the figures every so often.
    """

    def __init__(
        self,
        standing: BatchState,
        work: BatchWork,
        pace: BatchLimits,
        log: Logger,
        *,
        check: InputCheck,
        stop: threading.Event,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.standing = standing
        self._watch = standing.watch
        self._work = work
        self._pace = pace
        self._stop = stop
        self._on_progress = on_progress
        self._pool = WorkerPool(pace)
        self._submits = Submits(standing, work, pace, self._pool, check, log)
        self._landings = Landings(standing, work, pace, self._pool, log)
        self._looking: set[str] = set()
        self._next_progress = time.time() + pace.progress_every_s
        self._timed_out: WanTimeoutError | None = None
        self._cancelled_late = self._left_late = 0

    @property
    def endings(self) -> Mapping[str, ImageResult]:
        """How images have ended, by fingerprint."""
        return self.standing.endings

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, *, may_pause: bool) -> Pause | None:
        """Go on until all is done or halted, or, where it may pause, until there is nothing to do but wait."""
        with self._pool:
            while True:
                now = time.time()
                if not self._stop.is_set():
                    self._mind_the_deadline(now)
                    self._submits.begin(now)
                    self._landings.begin()
                if self._is_idle(now):
                    if self._stop.is_set() or self.standing.is_over():
                        return None
                    if may_pause and self.standing.in_flight:
                        return self._pause()
                if not self._stop.is_set():
                    self._begin_looks(now)
                for news in self._pool.news(max(0.005, self._wake_at(now) - now)):
                    self._take_in(news)
                self._emit_progress(time.time())

    def _is_idle(self, now: float) -> bool:
        """Whether no thread is at work that changes anything, and none could begin."""
        if self.standing.submitting or self.standing.landing:
            return False
        if self._stop.is_set():
            return True
        return not self.standing.to_land and not self._submits.may_begin(now)

    def _pause(self) -> Pause:
        ordered = sorted(self.standing.in_flight, key=self._watch.order_of)
        return Pause(
            tuple(ordered),
            self._watch.started(),
            self._watch.learned(),
            self._submits.next_at(),
            self.standing.look_at(),
        )

    def _wake_at(self, now: float) -> float:
        moments = [now + _LONGEST_NAP_S, self._next_progress]
        if len(self._looking) < self._pace.look_threads:
            moments.append(self._watch.next_at(now))
        submit_at = self._submits.next_at()
        if submit_at is not None:
            moments.append(submit_at)
        return min(moments)

    def _take_in(self, news: Completion) -> None:
        now = time.time()
        match news.kind:
            case "submit":
                self._submits.saw(news.about, news.brought, now)
            case "land":
                self._landings.saw(news.about, news.brought, now)
            case "look":
                self._on_look(news.about, news.brought, now)

    # -- looks ---------------------------------------------------------------------------------------------

    def _begin_looks(self, now: float) -> None:
        for request_id in self._watch.due(now, self._pace.look_threads - len(self._looking)):
            self._looking.add(request_id)
            self._pool.do("look", request_id, partial(self._work.status, request_id))

    def _on_look(self, request_id: str, brought: Any, now: float) -> None:
        self._looking.discard(request_id)
        if isinstance(brought, BaseException):
            error = brought if isinstance(brought, WanError) else WanTransientError(repr(brought))
            self._watch.on_error(request_id, error, now)
        else:
            self._watch.on_status(brought, now)
        self.standing.mark_finished(list(self._watch.ready))
        self.standing.mark_missing(self._watch.gone)
        self._watch.gone.clear()

    # -- the end -------------------------------------------------------------------------------------------

    def _mind_the_deadline(self, now: float) -> None:
        """Leave what is in flight once the deadline has passed, and whatever comes to be in flight after that."""
        if now < self._pace.deadline or (self._timed_out and not self.standing.in_flight):
            return
        cancelled, left = self._cancel_queued()
        self._cancelled_late += cancelled
        self._left_late += left
        self.standing.leave_in_flight("not finished at the deadline")
        truth = _truth_of(self._cancelled_late, self._left_late)
        error = WanTimeoutError(f"The deadline has passed. {truth} A rerun takes over what runs.")
        self.standing.halt(error, instead_of=self._timed_out)
        self._timed_out = error

    def cancel_queued(self) -> str:
        """Cancel what is believed to be queued and nobody else counts on; gives a sentence with the truth."""
        return _truth_of(*self._cancel_queued())

    def _cancel_queued(self) -> tuple[int, int]:
        """Tell how many were cancelled, and how many were not."""
        in_flight, running = self.standing.in_flight, self._watch.started()
        cancelled = self._work.cancel([(rid, one) for rid, one in in_flight.items() if rid not in running])
        return cancelled, len(in_flight) - cancelled

    def progress(self) -> Progress:
        """Give the figures of now."""
        return self.standing.progress()

    def _emit_progress(self, now: float) -> None:
        if now < self._next_progress:
            return
        self._next_progress = now + self._pace.progress_every_s
        self._on_progress(self.progress())


def _truth_of(cancelled: int, left: int) -> str:
    return f"{cancelled} queued requests were cancelled and are not charged; {left} are left running."
