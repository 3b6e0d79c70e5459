# SPDX-License-Identifier: Apache-2.0
"""Carries a batch out: submits up to a number in flight, watches, lands what is over, submits more.

One thread decides (:meth:`BatchEngine.run`) and owns all state; threads do what takes time: submits, landings and
looks. What they bring back comes through one queue. Nothing that must survive is kept here: requests are in the
journal before this file hears of them, and videos are in the bucket.

In a deferrable task :meth:`run` comes back with a :class:`Pause` as soon as there is nothing to do but wait.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from logging import Logger
from typing import Any

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanBudgetError,
    WanCancelledError,
    WanDownloadError,
    WanError,
    WanGenerationFailedError,
    WanInputError,
    WanRefusedError,
    WanStorageError,
    WanTimeoutError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.generation.batch_budget import Budget
from airflow_provider_wan.generation.batch_outcomes import Ending, Outcome
from airflow_provider_wan.generation.batch_plan import InputCheck, Item, Plan
from airflow_provider_wan.generation.batch_progress import Progress
from airflow_provider_wan.generation.batch_watch import QueueWatch
from airflow_provider_wan.generation.batch_work import BatchWork
from airflow_provider_wan.generation.records import Record, Stage
from airflow_provider_wan.generation.submission import Obtained

_LANDING_TRIES = 4
_IMAGE_TRIES = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_NAP_S = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How much at once, and for how long.

    :param max_in_flight: requests submitted and not over, at most.
    :param retries_per_image: how often a failed request is followed by another.
    :param deadline: the absolute end, in unix seconds.
    :param submit_threads: submits at the same time.
    :param landing_threads: landings at the same time; each holds up to one piece of its video in memory.
    :param look_threads: status calls at the same time, in a worker that watches.
    :param progress_every_s: seconds between two lines of progress.
    :param outage_s: for how long nothing but outages may answer to submits before the batch gives up.
    """

    deadline: float
    max_in_flight: int = 100
    retries_per_image: int = 0
    submit_threads: int = 8
    landing_threads: int = 4
    look_threads: int = 6
    progress_every_s: float = 30.0
    outage_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Pause:
    """There is nothing to do but wait.

    :param request_ids: what is in flight, in order of submission.
    :param started: which of them run, and since when.
    :param learned: what the watch has learned.
    :param not_later_than: when there is something to do again in any case, in unix seconds.
    """

    request_ids: tuple[str, ...]
    started: Mapping[str, int]
    learned: Mapping[str, Any]
    not_later_than: float | None = None


@dataclass(slots=True)
class Memory:
    """What a batch that goes on in another process is told about its past.

    :param endings: how images have ended, as far as the journal does not tell.
    :param failures: failed requests of this try, by fingerprint.
    :param inherited: images whose request was bought by an earlier try, or by somebody else: if it fails, this try has
        not had its own yet.
    :param done_before: how many videos were there when it began.
    """

    started_at: float
    endings: dict[str, Ending] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    inherited: set[str] = field(default_factory=set)
    done_before: int | None = None


class BatchEngine:
    """Carries out one plan.

    :param work: does what takes time: submit, land, look, cancel.
    :param watch: says which requests to look at.
    :param memory: of this try, from an earlier process.
    :param started: of requests in flight, when they began to run, as far as it is known.
    :param stop: set to end early: nothing more is begun, and what was begun is finished.
    :param on_progress: is given the figures every so often.
    """

    def __init__(
        self,
        plan: Plan,
        work: BatchWork,
        budget: Budget,
        watch: QueueWatch,
        pace: Pace,
        log: Logger,
        *,
        memory: Memory,
        check: InputCheck,
        watcher: str,
        stop: threading.Event,
        started: Mapping[str, float] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.plan = plan
        self.endings = dict(memory.endings)
        self.failures = memory.failures
        self.budget = budget
        self.watch = watch
        #: Why nothing more is bought, and the batch ends early.
        self.halted: WanError | None = None
        self._over_budget: WanBudgetError | None = None
        self._work = work
        self._pace = pace
        self._log = log
        self._check = check
        self._stop = stop
        self._on_progress = on_progress
        self._memory = memory
        self._started_at = memory.started_at
        self._pending: deque[Item] = deque()
        self._later: list[tuple[float, str]] = []
        self._submitting: set[str] = set()
        self._tokens: dict[str, str] = {}
        self._in_flight: dict[str, str] = {}
        self._over: dict[str, str] = {}
        self._ready: deque[str] = deque()
        self._landing: set[str] = set()
        self._landing_tries: Counter[str] = Counter()
        self._late_results: Counter[str] = Counter()
        self._image_tries: Counter[str] = Counter()
        self._looking = 0
        self._inbox: queue.SimpleQueue[tuple[str, str, Any]] = queue.SimpleQueue()
        self._submit_not_before = 0.0
        self._troubles = 0
        self._trouble_since: float | None = None
        self._next_progress = time.time() + pace.progress_every_s
        self._timed_out = False
        self._sort_out(watcher, started or {})
        if memory.done_before is None:
            memory.done_before = sum(ending.outcome.is_there for ending in self.endings.values())

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, *, may_pause: bool) -> Pause | None:
        """Go on until all is done or halted, or, where it may pause, until there is nothing to do but wait."""
        pace = self._pace
        with (
            ThreadPoolExecutor(pace.submit_threads, "wan-submit") as submits,
            ThreadPoolExecutor(pace.landing_threads, "wan-land") as landings,
            ThreadPoolExecutor(pace.look_threads, "wan-look") as looks,
        ):
            while True:
                now = time.time()
                if not self._stop.is_set():
                    self._mind_the_deadline(now)
                    self._begin_submits(submits, now)
                    self._begin_landings(landings)
                if self._is_idle(now):
                    if self._stop.is_set() or self._is_over():
                        return None
                    if may_pause and self._in_flight:
                        return self._pause()
                if not self._stop.is_set():
                    self._begin_looks(looks, now)
                self._wait_for_news(now)
                self._tell_progress(time.time())

    def _is_idle(self, now: float) -> bool:
        """Whether no thread is at work that changes anything, and none could begin."""
        if self._submitting or self._landing:
            return False
        if self._stop.is_set():
            return True
        return not self._ready and not self._can_submit(now)

    def _is_over(self) -> bool:
        more = not self.halted and (self._pending or self._later)
        return not self._in_flight and not more

    def _pause(self) -> Pause:
        blocked = self._later[0][0] if self._later else None
        if self._pending and self._has_room() and not self.halted:
            blocked = min(filter(None, (blocked, self._submit_not_before)))
        ordered = sorted(self._in_flight, key=self.watch.order_of)
        return Pause(tuple(ordered), self.watch.started(), self.watch.learned(), blocked)

    def _wait_for_news(self, now: float) -> None:
        until = min(now + _LONGEST_NAP_S, self._next_progress)
        if self._looking < self._pace.look_threads:
            until = min(until, self.watch.next_at(now))
        if self._pending and self._has_room() and not self.halted:
            until = min(until, self._submit_not_before)
        if self._later:
            until = min(until, self._later[0][0])
        try:
            news = self._inbox.get(timeout=max(0.005, until - now))
        except queue.Empty:
            return
        while True:
            self._take_in(*news)
            try:
                news = self._inbox.get_nowait()
            except queue.Empty:
                return

    def _take_in(self, kind: str, about: str, brought: Any) -> None:
        now = time.time()
        match kind:
            case "obtained":
                self._submitting.discard(about)
                self._saw_obtained(self.plan.items[about], brought, now)
            case "landed":
                self._landing.discard(about)
                self._saw_landed(about, brought, now)
            case "looked":
                self._looking -= 1
                self._saw_look(about, brought, now)

    def _do(self, pool: ThreadPoolExecutor, kind: str, about: str, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self._inbox.put((kind, about, work()))
            except BaseException as error:
                self._inbox.put((kind, about, error))

        pool.submit(run)

    # -- where each image stands ---------------------------------------------------------------------------

    def _sort_out(self, watcher: str, started: Mapping[str, float]) -> None:
        """Sort the images by what the journal and this try's past tell of them."""
        flying: list[tuple[str, str, str]] = []
        claimed: list[Item] = []
        for one, item in self.plan.items.items():
            listed = self.plan.known.get(one)
            if listed is not None and listed.buyer == watcher:
                self.budget.bought_before(one, purchases=listed.purchases, cost_usd=listed.cost_usd)
            if listed is not None and listed.stage is Stage.LANDED:
                outcome = Outcome.LANDED if listed.buyer == watcher else Outcome.REUSED
                self.endings[one] = item.ending(
                    outcome, request_id=listed.request_id, uri=listed.uri, cost_usd=listed.cost_usd
                )
            elif one in self.endings:
                continue
            elif (
                listed is not None
                and listed.buyer == watcher
                and listed.request_id is not None
                and listed.stage in (Stage.SUBMITTED, Stage.SUCCEEDED)
            ):
                flying.append((listed.submitted_at or "", listed.request_id, one))
            elif listed is not None and listed.stage is Stage.INTENT:
                claimed.append(
                    item
                )  # by whoever was killed, perhaps: it takes minutes to be sure, so it comes last
            elif listed is not None:
                self._pending.appendleft(item)  # paid for, perhaps: that comes first
            else:
                self._pending.append(item)
        self._pending.extend(claimed)
        for submitted_at, request_id, one in sorted(flying):
            at = started.get(request_id)
            if self._memory.done_before is None:
                self._memory.inherited.add(one)
            self._fly(request_id, one, _unix(submitted_at) or self._started_at, started_at=at)

    def _fly(
        self, request_id: str, one: str, submitted_at: float, *, started_at: float | None = None
    ) -> None:
        self._in_flight[request_id] = one
        self.watch.add(request_id, submitted_at, started_at=started_at)

    def noticed(self, request_ids: Iterable[str]) -> None:
        """Take in what was found to be over."""
        for request_id in request_ids:
            if request_id in self._in_flight:
                self.watch.forget(request_id)
                self._over[request_id] = self._in_flight.pop(request_id)
                self._ready.append(request_id)

    def _end(self, one: str, outcome: Outcome, **more: Any) -> None:
        self.endings[one] = self.plan.items[one].ending(outcome, **more)

    # -- submits -------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return (
            len(self._submitting) < self._pace.submit_threads
            and len(self._in_flight) + len(self._submitting) < self._pace.max_in_flight
        )

    def _can_submit(self, now: float) -> bool:
        waits = self._pending or (self._later and self._later[0][0] <= now)
        return bool(waits) and not self.halted and self._has_room() and now >= self._submit_not_before

    def _begin_submits(self, pool: ThreadPoolExecutor, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            self._pending.append(self.plan.items[heapq.heappop(self._later)[1]])
        while self._pending and self._can_submit(now):
            item = self._pending.popleft()
            one = item.fingerprint
            is_new = one not in self.plan.known and not self.failures[one]
            problem = self._check.problem(item)
            if problem is not None:
                self._end(one, Outcome.REFUSED, error=str(problem))
                continue
            why_not = self.budget.why_not()
            if is_new and why_not:
                self._pending.appendleft(item)
                self._halt(WanBudgetError(why_not))
                return
            self._submitting.add(one)
            self._tokens[one] = self._work.token
            self._do(pool, "obtained", one, partial(self._obtain, item, is_new))

    def _obtain(self, item: Item, is_new: bool) -> Obtained:
        """Runs in a thread: a purchase is counted exactly where it is made."""
        one = item.fingerprint

        def make_inputs() -> Mapping[str, Any]:
            self.budget.reserve(one)
            return self._check.validated(item, item.source.make_address())

        try:
            obtained = self._work.obtain(item, make_inputs, is_new=is_new and self.plan.known_is_complete)
        except WanUnknownSubmissionError:
            self.budget.made(one)
            raise
        except WanStorageError as error:
            if error.request_id is None:
                self.budget.release(one)
            else:
                self.budget.made(one)
            raise
        except WanError:
            self.budget.release(one)
            raise
        if obtained.how == "submitted":
            self.budget.made(one)
        else:
            self.budget.release(one)
        return obtained

    def _saw_obtained(self, item: Item, brought: Obtained | BaseException, now: float) -> None:
        if isinstance(brought, BaseException):
            self._saw_no_request(item, brought, now)
            return
        self._troubles, self._trouble_since = 0, None
        self._tokens.pop(item.fingerprint, None)
        record = brought.record
        if record.stage is Stage.LANDED:
            uri = record.videos[0].uri if record.videos else None
            self._end(
                item.fingerprint,
                Outcome.REUSED,
                request_id=record.request_id,
                uri=uri,
                cost_usd=record.cost_usd,
            )
            return
        self._fly(brought.request_id, item.fingerprint, _unix(record.submitted_at) or now)
        if brought.how == "submitted":
            self._memory.inherited.discard(item.fingerprint)
        else:
            self._memory.inherited.add(item.fingerprint)
        if brought.how == "reused":
            self.noticed([brought.request_id])

    def _saw_no_request(self, item: Item, error: BaseException, now: float) -> None:
        one = item.fingerprint
        request_id = getattr(error, "request_id", None)
        match error:
            case WanUnknownSubmissionError():
                self._end(one, Outcome.UNKNOWN, error=str(error))
                self._log.error("%s: %s", item.source.shown, error)
            case WanStorageError() if request_id is not None:
                self._log.error("%s: %s", item.source.shown, error)
                self._fly(request_id, one, now)  # it is bought: go on, and write its id when it lands
            case WanTransientError() | WanStorageError():
                self._pending.appendleft(item)
                self._saw_trouble(error, now)
            case WanAuthError() if self._work.refresh(self._tokens.pop(one, "")):
                self._pending.appendleft(item)
            case WanBudgetError():
                self._end(one, Outcome.LEFT, error=str(error))
                self._over_budget = error
            case WanBalanceError() | WanAuthError():
                self._pending.appendleft(item)
                self._halt(error)
            case WanDownloadError() if error.retry_helps and self._image_tries[one] + 1 < _IMAGE_TRIES:
                self._image_tries[one] += 1
                heapq.heappush(self._later, (now + 5.0 * self._image_tries[one], one))
            case WanInputError() | WanDownloadError():
                self._refused(item, error)
            case WanRefusedError() if request_id is not None:
                self._end(one, Outcome.NOT_LANDED, request_id=request_id, error=str(error))
            case WanRefusedError():
                self._refused(item, error)
            case _:
                self._log.error("%s: %s", item.source.shown, error, exc_info=error)
                self._end(one, Outcome.UNKNOWN, error=f"{type(error).__name__}: {error}")

    def _refused(self, item: Item, error: BaseException) -> None:
        self._log.warning("%s is refused: %s", item.source.shown, error)
        self._end(item.fingerprint, Outcome.REFUSED, error=str(error))

    def _saw_trouble(self, error: WanTransientError | WanStorageError, now: float) -> None:
        """Nothing was bought: wait a little, longer each time, before anything is submitted again."""
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since > self._pace.outage_s:
            self._halt(error)
            return
        asked_s = getattr(error, "retry_after_s", None) or 0.0
        if now >= self._submit_not_before:  # several threads bring the same trouble: it counts once
            self._troubles += 1
            self._log.warning("Submits pause: %s", error)
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._troubles - 1, 10))
        self._submit_not_before = max(self._submit_not_before, now + max(pause_s, asked_s))

    def _halt(self, error: WanError) -> None:
        if self.halted is None:
            self.halted = error
            self._log.warning("Nothing more is submitted: %s What is paid for is finished.", error)

    # -- landings ------------------------------------------------------------------------------------------

    def _begin_landings(self, pool: ThreadPoolExecutor) -> None:
        while self._ready and len(self._landing) < self._pace.landing_threads:
            request_id = self._ready.popleft()
            self._landing.add(request_id)
            item = self.plan.items[self._over[request_id]]
            self._do(pool, "landed", request_id, partial(self._work.land, item, request_id))

    def _saw_landed(self, request_id: str, brought: Record | BaseException, now: float) -> None:
        one = self._over.pop(request_id)
        if isinstance(brought, Record):
            if brought.cost_usd is not None:
                self.budget.settle(one, brought.cost_usd)
            uri = brought.videos[0].uri if brought.videos else None
            self._end(one, Outcome.LANDED, request_id=request_id, uri=uri, cost_usd=brought.cost_usd)
            return
        match brought:
            case WanGenerationFailedError() | WanCancelledError():
                self._saw_failed(one, request_id, brought)
            case WanTransientError():  # not over after all, or no answer
                self._late_results[one] += 1
                self._in_flight[request_id] = one
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._late_results[one] - 1, 10))
                self.watch.add_apart(request_id, now, look_at=now + pause_s)
            case WanDownloadError() | WanStorageError() if brought.retry_helps and self._may_land_again(one):
                self._log.warning("Landing again: %s", brought)
                self._over[request_id] = one
                self._ready.append(request_id)
            case WanError():
                self._log.error("%s", brought)
                self._end(one, Outcome.NOT_LANDED, request_id=request_id, error=str(brought))
            case _:
                self._log.error("Landing request %s failed: %s", request_id, brought, exc_info=brought)
                self._end(one, Outcome.NOT_LANDED, request_id=request_id, error=repr(brought))

    def _may_land_again(self, one: str) -> bool:
        self._landing_tries[one] += 1
        return self._landing_tries[one] < _LANDING_TRIES

    def _saw_failed(
        self, one: str, request_id: str, error: WanGenerationFailedError | WanCancelledError
    ) -> None:
        inherited = one in self._memory.inherited
        self._memory.inherited.discard(one)
        self.failures[one] += not inherited
        cost_usd = self._work.costs.get(request_id)
        if cost_usd is not None:
            self.budget.settle(one, cost_usd)
        if (inherited or self.failures[one] <= self._pace.retries_per_image) and not self.halted:
            self._log.info("%s It is tried again.", error)
            self._pending.append(self.plan.items[one])
            return
        outcome = Outcome.CANCELLED if isinstance(error, WanCancelledError) else Outcome.FAILED
        self._end(one, outcome, request_id=request_id, error=str(error), cost_usd=cost_usd)

    # -- looks ---------------------------------------------------------------------------------------------

    def _begin_looks(self, pool: ThreadPoolExecutor, now: float) -> None:
        for request_id in self.watch.due(now, self._pace.look_threads - self._looking):
            self._looking += 1
            self._do(pool, "looked", request_id, partial(self._work.status, request_id))

    def _saw_look(self, request_id: str, brought: Any, now: float) -> None:
        if isinstance(brought, BaseException):
            error = brought if isinstance(brought, WanError) else WanTransientError(repr(brought))
            self.watch.saw_error(request_id, error, now)
            if self.watch.wants_fresh_connection and isinstance(error, WanAuthError):
                self._work.refresh(self._work.token)
        else:
            self.watch.saw_status(brought, now)
        for over in list(self.watch.ready):
            self.noticed([over])
        self.lost(self.watch.gone)
        self.watch.gone.clear()

    def lost(self, request_ids: Iterable[str]) -> None:
        """Take in what the API does not know any more: the decision table says what follows."""
        for request_id in request_ids:
            one = self._in_flight.pop(request_id, None)
            if one is not None:
                self.watch.forget(request_id)
                self.failures[one] += 1
                self._pending.append(self.plan.items[one])

    # -- the end -------------------------------------------------------------------------------------------

    def _mind_the_deadline(self, now: float) -> None:
        if now < self._pace.deadline or self._timed_out:
            return
        self._timed_out = True
        truth = self.cancel_queued()
        self._halt(WanTimeoutError(f"The deadline has passed. {truth} A rerun takes over what runs."))
        for request_id in list(self._in_flight):
            one = self._in_flight.pop(request_id)
            self.watch.forget(request_id)
            self._end(one, Outcome.LEFT, request_id=request_id, error="not finished at the deadline")

    def cancel_queued(self) -> str:
        """Cancel what is believed to be queued and nobody else counts on; gives a sentence with the truth."""
        running = self.watch.started()
        queued = [(rid, one) for rid, one in self._in_flight.items() if rid not in running]
        cancelled = self._work.cancel(queued)
        left = len(self._in_flight) - cancelled
        return f"{cancelled} queued requests were cancelled and are not charged; {left} are left running."

    def close(self) -> None:
        """Write down what is not finished as left."""
        self.halted = self.halted or self._over_budget
        for item in self.plan.items.values():
            if item.fingerprint not in self.endings:
                why = str(self.halted) if self.halted else "the task was ended early"
                self._end(item.fingerprint, Outcome.LEFT, error=why)

    def progress(self) -> Progress:
        """Give the figures of now."""
        outcomes = Counter(ending.outcome for ending in self.endings.values())
        failed = sum(count for outcome, count in outcomes.items() if outcome.is_failure)
        queued = min(self.watch.queued, len(self._in_flight))
        done = outcomes[Outcome.LANDED] + outcomes[Outcome.REUSED]
        return Progress(
            total=self.plan.total,
            done=done,
            before=self._memory.done_before or 0,
            failed=failed + len(self.plan.refused),
            running=len(self._in_flight) - queued,
            queued=queued,
            ready=len(self._ready) + len(self._landing),
            to_submit=len(self._pending) + len(self._later) + len(self._submitting),
            cost_usd=self.budget.spent_usd,
            cost_is_exact=not self.budget.unpriced,
            elapsed_s=time.time() - self._started_at,
        )

    def _tell_progress(self, now: float) -> None:
        if now < self._next_progress:
            return
        self._next_progress = now + self._pace.progress_every_s
        progress = self.progress()
        if self._on_progress is not None:
            self._on_progress(progress)
        else:
            self._log.info("%s", progress.line())


def _unix(text: str | None) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
