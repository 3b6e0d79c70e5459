# SPDX-License-Identifier: Apache-2.0
"""The submitting half of a batch: what is bought next, and what happens when that fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from logging import Logger
from typing import Any, NamedTuple

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.checkpoint import ApiState, RetryState, pause_after_s
from airflow_provider_wan.batch.plan import InputCheck, Item
from airflow_provider_wan.batch.pool import BatchWork, WorkerPool
from airflow_provider_wan.batch.report import Outcome
from airflow_provider_wan.batch.spec import BatchLimits
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
    WanRecordError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.hooks.connection import WanSettings

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


class Submits:
    """Starts submits as long as there is room and money, and handles their ends.

    An answer that was lost is news about the API and not only about its image: no submit is sent until the API answers
    a free call, and then only one until that is accepted. So no more images are in doubt than submits were under way,
    and the trials. In the same way nothing is submitted while the id of a purchased request is not in the journal.

    :param check: validates inputs before anything is bought.
    """

    def __init__(
        self,
        state: BatchState,
        work: BatchWork,
        limits: BatchLimits,
        pool: WorkerPool,
        check: InputCheck,
        log: Logger,
    ) -> None:
        self._state = state
        self._work = work
        self._limits = limits
        self._pool = pool
        self._check = check
        self._log = log
        #: The connection that each submit started with: after a refused token it is read again only once.
        self._settings: dict[str, WanSettings] = {}
        self._retries = state.retries
        self._is_checking = self._is_writing = False

    # -- starting ------------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a thread submits, asks the API or writes an id."""
        return bool(self._state.submitting) or self._is_checking or self._is_writing

    def _has_room(self) -> bool:
        state, limits = self._state, self._limits
        submitting = len(state.submitting)
        threads = 1 if self._retries.api is ApiState.TRIAL else limits.submit_threads
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
        """Return when the next call may start; None if that depends on something else."""
        state = self._state
        if state.halted:
            return None
        if state.unwritten:
            return self._retries.writes.at
        moments = [state.next_retry_at()]
        if state.to_submit and self._has_room():
            moments.append(self._retries.submits.at)
        return min((at for at in moments if at is not None), default=None)

    def begin(self, now: float) -> None:
        """Start as many submits as there is room for."""
        state = self._state
        state.take_due_retries(now)
        self._halt_if_pause_is_too_long(now)
        self._begin_write(now)
        self._begin_check(now)
        while state.to_submit and self.may_begin(now):
            item = state.to_submit.popleft()
            problem = self._check.problem(item)
            if problem is not None:
                state.refuse(item.fingerprint, problem)
                continue
            is_new = item.fingerprint not in state.plan.known and not state.failures[item.fingerprint]
            why_not = state.budget.why_not()
            if is_new and why_not:
                state.to_submit.appendleft(item)
                state.halt(WanBudgetError(why_not))
                return
            self._begin_one(item, is_new=is_new)

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
        if self._has_items(now) and now >= self._retries.submits.at:
            self._is_checking = True
            self._pool.run("check", "api", self._work.check_api)

    def _halt_if_pause_is_too_long(self, now: float) -> None:
        """Give up where the API asks for a longer pause than an outage may last."""
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
        self._settings[item.fingerprint] = self._work.settings
        obtain = partial(_obtain, self._work, self._state.budget, self._check, item, is_new=is_new)
        self._pool.run("submit", item.fingerprint, obtain)

    # -- ends ----------------------------------------------------------------------------------------------

    def on_completion(
        self, fingerprint: str, outcome: SubmitResult | _Failed | BaseException, now: float
    ) -> None:
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
        state.listener.on_request(obtained.how)
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
        """Return whether another task has landed it since; what had landed before the plan was missing here."""
        plan = self._state.plan
        before, uri = plan.known.get(fingerprint), plan.items[fingerprint].uri_in(self._work.bucket_name)
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
                state.listener.on_unknown()
                state.end(fingerprint, Outcome.UNKNOWN, error=str(error))
                self._log.error("%s: %s", item.source.shown, error)
                if was_sent:
                    self._on_lost_answer(now)
            case WanStorageError() if request_id is not None:
                # It is paid for: poll it, and buy nothing more until its id is written.
                self._log.error("%s: %s", item.source.shown, error)
                state.listener.on_request("submitted")
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
                state.end(fingerprint, Outcome.LEFT, error=str(error))
                state.over_budget = error
            case WanBalanceError() | WanAuthError():
                state.to_submit.appendleft(item)
                state.halt(error)
            case WanDownloadError() if (
                error.retry_helps and self._image(fingerprint).times + 1 < _IMAGE_TRIES
            ):
                retry = self._image(fingerprint)
                retry = retry.later(now, _IMAGE_PAUSE_S * (retry.times + 1))
                self._retries.images[fingerprint] = retry
                state.retry_at(fingerprint, retry.at)
            case WanInputError() | WanDownloadError():
                self._refuse(item, error)
            case WanRefusedError() if request_id is not None:
                state.end(fingerprint, Outcome.NOT_LANDED, request_id=request_id, error=str(error))
            case WanRefusedError():
                self._refuse(item, error)
            case _:
                self._log.error("%s: %s", item.source.shown, error, exc_info=error)
                state.listener.on_unknown()
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
        asked_s = getattr(error, "retry_after_s", None) or 0.0
        if now < before.at:  # several threads report the same outage: it counts once
            self._retries.submits = before._replace(at=max(before.at, now + asked_s))
            return
        self._log.warning("Submits pause: %s", error)
        pause_s = max(pause_after_s(before.times + 1), asked_s)
        self._retries.submits = before.later(now, pause_s)


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="minutes")


def _obtain(
    work: BatchWork, budget: Budget, check: InputCheck, item: Item, *, is_new: bool
) -> SubmitResult | _Failed:
    """Obtain the request for an image, on a thread; a purchase is counted exactly where it is made."""
    fingerprint = item.fingerprint
    may_be_sent = False

    def make_inputs() -> Mapping[str, Any]:
        nonlocal may_be_sent
        may_be_sent = False
        budget.reserve(fingerprint)
        inputs = check.validated(item, item.source.make_address())
        may_be_sent = True
        return inputs

    try:
        obtained = work.obtain(item, make_inputs, is_new=is_new)
    except WanError as error:
        is_bought = isinstance(error, WanStorageError) and error.request_id is not None
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
    if obtained.how == "submitted":
        budget.made(fingerprint)
    else:
        budget.release(fingerprint)
    return obtained
