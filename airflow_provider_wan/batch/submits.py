# SPDX-License-Identifier: Apache-2.0
"""The submitting half of a batch: which image is bought next, and how failures are handled."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.checkpoint import ApiState, RetryState, pause_after_s
from airflow_provider_wan.batch.plan import Item
from airflow_provider_wan.batch.pool import BatchWork, WorkerPool
from airflow_provider_wan.batch.prices import Learning, PriceNotLearned
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.batch.state import BatchState, unix
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.durable.submission import SubmitResult
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanBudgetError,
    WanDownloadError,
    WanError,
    WanInputError,
    WanJournalError,
    WanNoOutputError,
    WanRecordError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.model_api.inputs import InputCheck

_IMAGE_TRIES = 3
_IMAGE_PAUSE_S = 5.0
#: After this many trial submits in a row without a clear answer the batch ends, and proposes to come back later.
_LOST_TRIALS = 3
_COME_BACK_S = 600.0


class _Failed(NamedTuple):
    """A submit that raised.

    :param was_sent: whether the error may have come after the request was sent.
    """

    error: Exception
    was_sent: bool


class _PriceLearning:
    """Holds images back until the price of their combination is learned from its first clip."""

    def __init__(self, state: BatchState, work: BatchWork, pool: WorkerPool) -> None:
        self._state = state
        self._limits = work.spec.limits
        self._pool = pool
        self._log = work.log
        self._held = state.waiting_for_price
        #: The image of each combination from whose clip the price is learned, while it is in flight.
        self._first: dict[str, str] = {}
        self._checking: set[str] = set()
        self._free: set[str] = set()
        for fingerprint in state.in_flight.values():
            key = state.prices.key_of(state.plan.items[fingerprint].inputs)
            if state.prices.must_learn(key):
                self._first.setdefault(key, fingerprint)

    @property
    def is_busy(self) -> bool:
        """Whether a thread asks for a price."""
        return bool(self._checking)

    def must_wait(self, item: Item) -> bool:
        """Hold an item back if its price is being learned from another one; otherwise it may be the first."""
        key = self._state.prices.key_of(item.inputs)
        if not self._state.prices.must_learn(key):
            return False
        is_elsewhere = key in self._state.retries.prices or key in self._checking
        if is_elsewhere or self._first.get(key, item.fingerprint) != item.fingerprint:
            self._held.setdefault(key, deque()).append(item)
            return True
        self._first[key] = item.fingerprint
        return False

    def may_take_over(self, item: Item) -> bool:
        """Return whether another task's claim on this combination is known to give no price."""
        return self._state.prices.key_of(item.inputs) in self._free

    def wait_for_other(self, item: Item, now: float) -> None:
        """Another task is learning the price: check again later."""
        key = self._state.prices.key_of(item.inputs)
        self._first.pop(key, None)
        self._held.setdefault(key, deque()).appendleft(item)
        self._state.retries.prices.setdefault(key, RetryState(at=now + self._limits.price_check_s))

    def next_at(self) -> float | None:
        """Return when to ask again for a price that images wait for."""
        retries = self._state.retries.prices
        keys = retries.keys() & self._held.keys() - self._checking
        return min((retries[key].at for key in keys), default=None)

    def begin(self, now: float) -> None:
        """Release the images whose price is known, and ask for prices that others learn."""
        state = self._state
        for key, fingerprint in list(self._first.items()):
            if not self._is_under_way(fingerprint):
                del self._first[key]
                result = state.results.get(fingerprint)
                if result is not None and result.cost_may_follow and state.prices.must_learn(key):
                    state.retries.prices.setdefault(key, RetryState(at=now))  # its cost appears late
        for key in list(self._held):
            if not state.prices.must_learn(key):
                state.retries.prices.pop(key, None)
                self._release(key)
            elif key in state.retries.prices:
                if key not in self._checking and now >= state.retries.prices[key].at:
                    self._checking.add(key)
                    self._pool.run("price", key, partial(state.prices.check, key))
            elif key not in self._first:
                self._release(key)

    def _is_under_way(self, fingerprint: str) -> bool:
        state = self._state
        return fingerprint in state.submitting or any(
            fingerprint == name for name in chain(state.in_flight.values(), state.finished.values())
        )

    def _release(self, key: str) -> None:
        self._state.to_submit.extendleft(reversed(self._held.pop(key)))

    def on_check(self, key: str, outcome: Learning | BaseException, now: float) -> None:
        """Handle the answer about a price that is learned from another request."""
        self._checking.discard(key)
        retry = self._state.retries.prices.get(key, RetryState())
        match outcome:
            case Learning.LEARNED | Learning.FREE:
                self._state.retries.prices.pop(key, None)
                if outcome is Learning.FREE:
                    self._free.add(key)
                return
            case Learning.NO_COST:
                if retry.times and now - retry.since > self._limits.cost_wait_s:
                    self._state.halt(
                        WanBudgetError(
                            f"max_cost_usd can't be kept: a clip with {key} has succeeded, and RunComfy reports no "
                            f"cost for it after {self._limits.cost_wait_s / 60:.0f} minutes. Nothing more was bought. "
                            "Set price_usd."
                        )
                    )
                retry = retry.later(now, min(pause_after_s(retry.times + 1), self._limits.price_check_s))
            case BaseException():
                self._log.warning("The price of a combination can't be read yet: %s", outcome)
                retry = retry._replace(at=now + self._limits.price_check_s)
            case _:
                retry = RetryState(at=now + self._limits.price_check_s)
        self._state.retries.prices[key] = retry


class Submits:
    """Starts submits as long as there is room and money, and handles their ends.

    A lost answer concerns the API and not only its image: no submit is sent until the API answers
    a free call, and then only one until that is accepted. So no more images are in doubt than submits were under way,
    and the trials. In the same way nothing is submitted while the id of a purchased request is not in the journal.

    :param check: validates inputs before anything is bought.
    """

    def __init__(self, state: BatchState, work: BatchWork, pool: WorkerPool, check: InputCheck) -> None:
        self._state = state
        self._work = work
        self._limits = work.spec.limits
        self._pool = pool
        self._check = check
        self._log = work.log
        #: The connection that each submit started with: after a refused token it is read again only once.
        self._settings: dict[str, WanSettings] = {}
        self._retries = state.retries
        self._is_checking = self._is_writing = False
        #: Whether the next image waits for the end of submits that have reserved what it needs.
        self._waits_for_budget = False
        self.prices = _PriceLearning(state, work, pool)

    # -- starting ------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a thread submits, asks the API or writes an id."""
        return bool(self._state.submitting) or self._is_checking or self._is_writing or self.prices.is_busy

    def _has_room(self) -> bool:
        state, limits = self._state, self._limits
        submitting = len(state.submitting)
        # A trial is sent alone, when no earlier submit is under way: only its own answer says that the API is back.
        threads = limits.submit_threads if self._retries.api is ApiState.OPEN else 1
        return submitting < threads and len(state.in_flight) + submitting < limits.max_in_flight

    def _has_items(self, now: float) -> bool:
        retry_at = self._state.next_retry_at()
        return bool(self._state.to_submit) or (retry_at is not None and retry_at <= now)

    def may_begin(self, now: float) -> bool:
        """Return whether another submit may start."""
        if self._state.halted or self._state.unwritten or self._retries.api is ApiState.ASKING:
            return False
        return self._has_items(now) and self._has_room() and now >= self._retries.submits.at

    def next_at(self) -> float | None:
        """Return when the next call may start; None if that depends on something else, as on a call under way."""
        state = self._state
        if state.halted:
            return None
        if state.unwritten:
            return None if self._is_writing else self._retries.writes.at
        moments = [state.next_retry_at(), self.prices.next_at()]
        if state.to_submit and self._has_room() and not self._is_checking and not self._waits_for_budget:
            moments.append(self._retries.submits.at)
        return min((at for at in moments if at is not None), default=None)

    def begin(self, now: float) -> None:
        """Start as many submits as there is room for."""
        state = self._state
        state.take_due_retries(now)
        self.prices.begin(now)
        self._halt_if_pause_is_too_long(now)
        self._begin_write(now)
        self._begin_check(now)
        self._waits_for_budget = False
        while state.to_submit and self.may_begin(now):
            item = state.to_submit.popleft()
            problem = self._check.problem(item.inputs, item.source.fields)
            if problem is not None:
                state.refuse(item.fingerprint, problem)
                continue
            if self.prices.must_wait(item):
                continue
            is_new = item.fingerprint not in state.plan.known and not state.failures[item.fingerprint]
            why_not = state.budget.why_not(self._usd_of(item))
            if is_new and why_not:
                self._on_budget(item, WanBudgetError(why_not))
                if self._waits_for_budget:
                    break
                continue
            self._begin_one(item, is_new=is_new)

    def _on_budget(self, item: Item, error: WanBudgetError) -> None:
        """Leave an image that would exceed a limit; a cheaper one, or another's request, may still be within it.

        If only purchases under way exceed it, the image waits for them: one that is refused leaves its share.
        """
        if self._state.submitting and self._state.budget.may_fit_later(self._usd_of(item)):
            self._waits_for_budget = True
            self._state.to_submit.appendleft(item)
            return
        if item.before is not None:
            self._state.keep_rejected(item, str(error))
            return
        self._state.end(item.fingerprint, Outcome.LEFT, error=str(error))
        if self._state.over_budget is None:
            self._log.warning("%s What is paid for is finished.", error)
        self._state.over_budget = error

    def _usd_of(self, item: Item) -> float:
        return self._state.prices.usd_of(self._state.prices.key_of(item.inputs))

    def _begin_write(self, now: float) -> None:
        """Write the id of a purchased request that the journal does not name."""
        state = self._state
        if state.halted or not state.unwritten or self._is_writing or now < self._retries.writes.at:
            return
        fingerprint, request_id = next(iter(state.unwritten.items()))
        self._is_writing = True
        write = partial(self._work.write_id, state.plan.items[fingerprint], request_id)
        self._pool.run("write", fingerprint, write)

    def _begin_check(self, now: float) -> None:
        """Ask the API whether it answers again."""
        if self._retries.api is not ApiState.ASKING or self._state.halted or self._is_checking:
            return
        if self._has_items(now) and self._has_room() and now >= self._retries.submits.at:
            self._is_checking = True
            self._pool.run("check", "api", self._work.check_api)

    def _halt_if_pause_is_too_long(self, now: float) -> None:
        """Give up if the API asks for a longer pause than an outage may last."""
        pause_s = self._retries.submits.at - now
        if not self._state.to_submit or self._state.halted or pause_s <= self._limits.outage_s:
            return
        self._state.halt(
            WanTransientError(
                f"RunComfy asks to send no submits for {pause_s / 60:.0f} minutes, and a batch waits for "
                f"{self._limits.outage_s / 60:.0f} at most. Nothing was bought for the rest: clear the task after "
                f"{_utc(self._retries.submits.at)}, or ask RunComfy about the limits of the account.",
                retry_after_s=pause_s,
            )
        )

    def _begin_one(self, item: Item, *, is_new: bool) -> None:
        self._state.submitting.add(item.fingerprint)
        self._settings[item.fingerprint] = self._work.hook.settings
        takes_over = self.prices.may_take_over(item)
        obtain = partial(
            _obtain, self._work, self._state.budget, self._check, item, is_new=is_new, takes_over=takes_over
        )
        self._pool.run("submit", item.fingerprint, obtain)

    # -- ends ----------------------------------------------------------------------------------------------

    def on_completion(self, fingerprint: str, outcome: SubmitResult | _Failed | BaseException, now: float) -> None:
        """Handle the end of a submit."""
        self._state.submitting.discard(fingerprint)
        settings = self._settings.pop(fingerprint)
        item = self._state.plan.items[fingerprint]
        match outcome:
            case SubmitResult():
                self._on_answer(outcome)
                self._retries.images.pop(fingerprint, None)
                self._on_request(fingerprint, outcome, now)
            case _Failed():
                self._on_error(item, outcome.error, settings, now, was_sent=outcome.was_sent)
            case _:
                self._on_error(item, outcome, settings, now)

    def _on_answer(self, obtained: SubmitResult) -> None:
        """A request was obtained: submits go on, if an answer proves that the API accepts them."""
        retries = self._retries
        if obtained.how == "submitted" and retries.api is ApiState.TRIAL:
            self._log.info("RunComfy accepts submits again.")
            retries.api, retries.lost_trials = ApiState.OPEN, 0
        if retries.api is ApiState.OPEN:
            retries.submits = retries.submits._replace(times=0)

    def on_check(self, outcome: BaseException | None, now: float) -> None:
        """Handle the end of a free call: if the API answers, one submit is sent."""
        self._is_checking = False
        if outcome is None:
            self._retries.api = ApiState.TRIAL
            self._retries.submits = RetryState(at=now)
        else:
            error = outcome if isinstance(outcome, WanTransientError) else WanTransientError(repr(outcome))
            self._pause(error, now)

    def on_write(self, fingerprint: str, outcome: BaseException | None, now: float) -> None:
        """Handle the end of an attempt to write the id of a purchased request."""
        self._is_writing = False
        retries = self._retries
        if outcome is None:
            self._log.info("The id of request %s is written now.", self._state.unwritten.pop(fingerprint, ""))
            retries.writes = RetryState()
            return
        self._log.warning("The id of a purchased request is not written yet: %s", outcome)
        since = retries.writes.since if retries.writes.times else now
        if now - since > self._limits.outage_s or not getattr(outcome, "retry_helps", False):
            error = outcome if isinstance(outcome, WanError) else WanStorageError(repr(outcome))
            self._state.halt(error)
        retries.writes = retries.writes.later(now, pause_after_s(retries.writes.times + 1))

    def _on_lost_answer(self, now: float) -> None:
        """Pause all submits, and give up after some trials: an ambiguous answer says that the API has a problem."""
        retries = self._retries
        if retries.api is ApiState.TRIAL:
            retries.lost_trials += 1
            retries.submits = RetryState(at=now + pause_after_s(retries.lost_trials))
        elif retries.api is ApiState.OPEN:
            retries.submits = RetryState(at=now)
        retries.api = ApiState.ASKING
        if retries.lost_trials >= _LOST_TRIALS:
            self._state.halt(
                WanTransientError(
                    f"RunComfy answers, but {_LOST_TRIALS} submits in a row got no clear answer. Nothing was bought "
                    f"for the images that are left: retry or clear the task after {_utc(now + _COME_BACK_S)}. The "
                    "unknown ones are not sent again by that; look them up on RunComfy's Generations page.",
                    retry_after_s=_COME_BACK_S,
                )
            )
        elif self._state.to_submit:
            self._log.warning("Submits pause until RunComfy answers a call that costs nothing.")

    def _on_request(self, fingerprint: str, obtained: SubmitResult, now: float) -> None:
        state, record = self._state, obtained.record
        if other := state.other_holder_of(obtained.request_id, fingerprint):
            state.end_as_shared(fingerprint, obtained.request_id, other)
            return
        state.metrics.on_request(obtained.how)
        if record.stage is Stage.LANDED:
            if self._has_just_landed(fingerprint, record):
                state.mark_landed(fingerprint, Outcome.REUSED, record)
            else:
                state.land(obtained.request_id, fingerprint)
            return
        state.mark_submitted(obtained.request_id, fingerprint, unix(record.submitted_at) or now)
        if obtained.how == "submitted":
            state.inherited.discard(fingerprint)
        else:
            state.inherited.add(fingerprint)
        if obtained.how == "reused":
            state.mark_finished([obtained.request_id])

    def _has_just_landed(self, fingerprint: str, record: Record) -> bool:
        """Return whether another task has landed it since the plan; a video landed before the plan was missing here."""
        plan = self._state.plan
        before, uri = plan.known.get(fingerprint), plan.items[fingerprint].uri_in(self._work.spec.bucket_name)
        was_missing = before is not None and before.stage is Stage.LANDED
        return not was_missing and bool(record.videos) and record.videos[0].uri == uri

    def _on_error(
        self,
        item: Item,
        error: BaseException,
        settings: WanSettings,
        now: float,
        *,
        was_sent: bool = False,
    ) -> None:
        state, fingerprint = self._state, item.fingerprint
        request_id = getattr(error, "request_id", None)
        match error:
            case WanUnknownSubmissionError() | WanRecordError():
                state.metrics.on_unknown()
                state.end(fingerprint, Outcome.UNKNOWN, error=str(error))
                self._log.error("%s: %s", item.source.shown, error)
                if was_sent:
                    self._on_lost_answer(now)
            case WanJournalError() if request_id is not None:
                # It is paid for: poll it, and buy nothing more until its id is written.
                self._log.error("%s: %s", item.source.shown, error)
                state.metrics.on_request("submitted")
                state.unwritten[fingerprint] = request_id
                state.mark_submitted(request_id, fingerprint, now)
            case WanJournalError():
                state.to_submit.appendleft(item)
                state.halt(error)
            case WanTransientError() | WanStorageError():
                state.to_submit.appendleft(item)
                self._pause(error, now)
            case WanAuthError() if self._work.refresh(settings):
                state.to_submit.appendleft(item)
            case WanBudgetError():
                self._on_budget(item, error)
            case PriceNotLearned():
                self.prices.wait_for_other(item, now)
            case WanBalanceError() | WanAuthError():
                state.to_submit.appendleft(item)
                state.halt(error)
            case WanDownloadError() if error.retry_helps and self._image(fingerprint).times + 1 < _IMAGE_TRIES:
                retry = self._image(fingerprint)
                retry = retry.later(now, _IMAGE_PAUSE_S * (retry.times + 1))
                self._retries.images[fingerprint] = retry
                state.retry_at(fingerprint, retry.at)
            case WanInputError() | WanDownloadError():
                self._refuse(item, error)
            case WanNoOutputError():
                state.end(fingerprint, Outcome.NO_OUTPUT, request_id=request_id, error=str(error))
            case WanRefusedError() if request_id is not None:
                state.end(fingerprint, Outcome.NOT_LANDED, request_id=request_id, error=str(error))
            case WanRefusedError():
                self._refuse(item, error)
            case _:
                self._log.error("%s: %s", item.source.shown, error, exc_info=error)
                state.metrics.on_unknown()
                state.end(fingerprint, Outcome.UNKNOWN, error=f"{type(error).__name__}: {error}")
                if was_sent:
                    self._on_lost_answer(now)

    def _image(self, fingerprint: str) -> RetryState:
        return self._retries.images.get(fingerprint, RetryState())

    def _refuse(self, item: Item, error: WanError) -> None:
        self._log.warning("%s is refused: %s", item.source.shown, error)
        self._state.refuse(item.fingerprint, error)

    def _pause(self, error: WanTransientError | WanStorageError, now: float) -> None:
        """Nothing was bought: pause all submits, longer each time."""
        before = self._retries.submits
        if before.times and now - before.since > self._limits.outage_s:
            error.args = (
                f"{error} Retry or clear the task after {_utc(now + _COME_BACK_S)}.",
                *error.args[1:],
            )
            self._state.halt(error)
            return
        asked_s = error.retry_after_s or 0.0
        if now < before.at:  # several threads report the same outage: it counts once
            self._retries.submits = before._replace(at=max(before.at, now + asked_s))
            return
        self._log.warning("Submits pause: %s", error)
        pause_s = max(pause_after_s(before.times + 1), asked_s)
        self._retries.submits = before.later(now, pause_s)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes")


def _obtain(
    work: BatchWork, budget: Budget, check: InputCheck, item: Item, *, is_new: bool, takes_over: bool
) -> SubmitResult | _Failed:
    """Obtain the request for an image, on a thread; a purchase is counted exactly where it is made."""
    fingerprint, prices = item.fingerprint, work.prices
    key = prices.key_of(item.inputs)
    is_first = False
    may_be_sent = False

    def make_inputs() -> Mapping[str, Any]:
        nonlocal may_be_sent, is_first
        may_be_sent = False
        # First: preparing an image takes long, and others wait for the price of a claimed combination.
        inputs = check.validated(item.inputs, item.source.addresses())
        if is_first := prices.must_learn(key):
            prices.claim(key, may_take_over=takes_over)
        prices.apply_share(budget, key)
        budget.reserve(fingerprint, prices.usd_of(key))
        may_be_sent = True
        return inputs

    try:
        obtained = work.obtain(item, make_inputs, is_new=is_new)
    except WanError as error:
        is_bought = isinstance(error, WanJournalError) and error.request_id is not None
        if is_bought or isinstance(error, WanUnknownSubmissionError):
            budget.made(fingerprint)
        else:
            budget.release(fingerprint)
        return _Failed(error, may_be_sent)
    except Exception as error:
        if may_be_sent:
            budget.made(fingerprint)
            return _Failed(error, True)
        budget.release(fingerprint)
        work.log.exception("%s could not be prepared", item.source.shown)
        raise WanInputError(
            f"It could not be prepared ({type(error).__name__}: {error}), and nothing was sent. The log has the "
            "traceback. Check the image and its inputs; if they are correct, report this."
        ) from error
    if is_first:
        prices.on_first_clip(key, obtained.request_id)
    if obtained.how == "submitted":
        budget.made(fingerprint)
    else:
        budget.release(fingerprint)
    return obtained
