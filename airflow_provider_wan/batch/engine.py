# SPDX-License-Identifier: Apache-2.0
"""Runs a batch: submits up to a number in flight, polls, lands what has finished, and submits more.

One thread decides (:meth:`BatchEngine.run`) and owns all state. Other threads make the calls that take time: submits,
landings and polls. In a deferrable task :meth:`run` returns a :class:`Pause` as soon as there is nothing to do but
wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from airflow_provider_wan.batch.landings import Landings
from airflow_provider_wan.batch.pool import BatchWork, Completion, WorkerPool
from airflow_provider_wan.batch.results import ImageResult, Progress
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.batch.submits import Submits
from airflow_provider_wan.exceptions import WanError, WanTimeoutError, WanTransientError
from airflow_provider_wan.model_api.inputs import InputCheck

_LONGEST_WAIT_S = 1.0
#: A deferral costs about a second of CPU when the task returns to a worker.
_WORTH_DEFERRING_S = 10.0


@dataclass(frozen=True, slots=True)
class Pause:
    """The arguments of the trigger, when the batch can only wait.

    :param request_ids: the requests in flight, in order of submission.
    :param started: the start time of each running request, in unix seconds.
    :param learned: the state of the poller.
    :param not_later_than: when the batch must resume even if nothing is ready, in unix seconds.
    :param poll_at: of requests that had finished by their status and had no result: when to poll each again.
    """

    request_ids: tuple[str, ...]
    started: Mapping[str, int]
    learned: Mapping[str, Any]
    not_later_than: float | None = None
    poll_at: Mapping[str, float] = field(default_factory=dict)


class BatchEngine:
    """Runs submits, polls and landings until the batch is done.

    :param state: the state of each image.
    :param work: the calls that take time.
    :param check: validates inputs.
    :param stop: set to end early: nothing more is started, and work in progress is finished.
    :param on_progress: called at intervals with the progress figures.
    """

    def __init__(
        self,
        state: BatchState,
        work: BatchWork,
        *,
        check: InputCheck,
        stop: threading.Event,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.state = state
        self._poller = state.poller
        self._work = work
        self._limits = limits = work.spec.limits
        self._stop = stop
        self._on_progress = on_progress
        self._pool = WorkerPool(limits)
        self._submits = Submits(state, work, self._pool, check)
        self._landings = Landings(state, work, self._pool)
        self._polling: set[str] = set()
        self._next_progress = time.time() + limits.progress_every_s
        self._timed_out: WanTimeoutError | None = None
        self._cancelled_late = self._left_late = 0

    @property
    def results(self) -> Mapping[str, ImageResult]:
        """The results of images so far, by fingerprint."""
        return self.state.results

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, *, may_pause: bool) -> Pause | None:
        """Run until everything is done or halted or, if it may pause, until it can only wait."""
        with self._pool:
            while True:
                now = time.time()
                if not self._stop.is_set():
                    self._check_deadline(now)
                    self._submits.begin(now)
                    self._landings.begin()
                if self._is_idle(now):
                    if self._stop.is_set() or self.state.is_over():
                        return None
                    if may_pause and (self.state.in_flight or self._waits_long(now)):
                        return self._pause()
                if not self._stop.is_set():
                    self._begin_polls(now)
                for completion in self._pool.completions(max(0.005, self._wake_at(now) - now)):
                    self._handle(completion)
                self._emit_progress(time.time())

    def _is_idle(self, now: float) -> bool:
        """Return whether no thread is changing anything, and none could start."""
        if self._submits.is_busy or self.state.landing:
            return False
        if self._stop.is_set():
            return True
        return not self.state.to_land and not self._submits.may_begin(now)

    def _waits_long(self, now: float) -> bool:
        """Return whether the next call is so far away that the wait is not worth a worker slot."""
        submit_at = self._submits.next_at()
        return submit_at is not None and submit_at - now > _WORTH_DEFERRING_S

    def _pause(self) -> Pause:
        ordered = sorted(self.state.in_flight, key=self._poller.order_of)
        return Pause(
            tuple(ordered),
            self._poller.started(),
            self._poller.learned(),
            self._submits.next_at(),
            self.state.poll_at(),
        )

    def _wake_at(self, now: float) -> float:
        moments = [now + _LONGEST_WAIT_S, self._next_progress]
        if len(self._polling) < self._limits.poll_threads:
            moments.append(self._poller.next_at(now))
        submit_at = self._submits.next_at()
        if submit_at is not None:
            moments.append(submit_at)
        return min(moments)

    def _handle(self, completion: Completion) -> None:
        now = time.time()
        match completion.kind:
            case "submit":
                self._submits.on_completion(completion.about, completion.outcome, now)
            case "land":
                self._landings.on_completion(completion.about, completion.outcome, now)
            case "check":
                self._submits.on_check(completion.outcome, now)
            case "price":
                self._submits.prices.on_check(completion.about, completion.outcome, now)
            case "write":
                self._submits.on_write(completion.about, completion.outcome, now)
            case "poll":
                self._on_poll(completion.about, completion.outcome, now)

    # -- polls ---------------------------------------------------------------------------------------------

    def _begin_polls(self, now: float) -> None:
        for request_id in self._poller.due(now, self._limits.poll_threads - len(self._polling)):
            self._polling.add(request_id)
            self._pool.run("poll", request_id, partial(self._work.hook.get_status, request_id, retry=False))

    def _on_poll(self, request_id: str, outcome: Any, now: float) -> None:
        self._polling.discard(request_id)
        if isinstance(outcome, BaseException):
            error = outcome if isinstance(outcome, WanError) else WanTransientError(repr(outcome))
            self._poller.on_error(request_id, error, now)
        else:
            self._poller.on_status(outcome, now)
        self.state.mark_finished(list(self._poller.ready))
        self.state.mark_missing(self._poller.gone)
        self._poller.gone.clear()

    # -- the end -------------------------------------------------------------------------------------------

    def _check_deadline(self, now: float) -> None:
        """After the deadline, leave requests in flight, including those accepted later."""
        if now < self._limits.deadline or (self._timed_out and not self.state.in_flight):
            return
        cancelled, left = self._cancel_queued()
        self._cancelled_late += cancelled
        self._left_late += left
        self.state.leave_in_flight("not finished at the deadline")
        cancels = _cancels(self._cancelled_late, self._left_late)
        error = WanTimeoutError(f"The deadline has passed. {cancels} A rerun takes over what runs.")
        self.state.halt(error, instead_of=self._timed_out)
        self._timed_out = error

    def cancel_queued(self) -> str:
        """Cancel requests that seem queued and have no other owner; return a sentence for the log."""
        return _cancels(*self._cancel_queued())

    def _cancel_queued(self) -> tuple[int, int]:
        """Return how many were cancelled, and how many were not."""
        in_flight, running = self.state.in_flight, self._poller.started()
        cancelled = self._work.cancel(
            [(request_id, name) for request_id, name in in_flight.items() if request_id not in running]
        )
        return cancelled, len(in_flight) - cancelled

    def progress(self) -> Progress:
        """Return the present figures."""
        return self.state.progress()

    def _emit_progress(self, now: float) -> None:
        if now < self._next_progress:
            return
        self._next_progress = now + self._limits.progress_every_s
        self._on_progress(self.progress())


def _cancels(cancelled: int, left: int) -> str:
    return f"{cancelled} queued requests were cancelled and are not charged; {left} are left running."
