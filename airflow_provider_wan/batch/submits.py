# SPDX-License-Identifier: Apache-2.0
"""The submitting half of a batch: what is bought next, and what follows when that fails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from logging import Logger
from typing import Any

from airflow_provider_wan.batch.budget import Budget
from airflow_provider_wan.batch.plan import InputCheck, Item
from airflow_provider_wan.batch.pool import WorkerPool
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.batch.state import BatchState, unix
from airflow_provider_wan.batch.values import BatchLimits, RetryState, pause_after_s
from airflow_provider_wan.batch.work import BatchWork
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.durable.submission import SubmitResult
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanBudgetError,
    WanDownloadError,
    WanError,
    WanInputError,
    WanRecordError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.hooks.connection import WanSettings

_IMAGE_TRIES = 3
_IMAGE_PAUSE_S = 5.0


class Submits:
    """Begins submits as long as there is room and money, and takes in how they went.

    :param check: validates inputs before anything is bought.
    """

    def __init__(
        self,
        standing: BatchState,
        work: BatchWork,
        pace: BatchLimits,
        pool: WorkerPool,
        check: InputCheck,
        log: Logger,
    ) -> None:
        self._standing = standing
        self._work = work
        self._pace = pace
        self._pool = pool
        self._check = check
        self._log = log
        #: With which connection each submit was begun: a refused token is read again only once.
        self._settings: dict[str, WanSettings] = {}
        self._troubles = standing.troubles

    # -- beginning -----------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        standing, pace = self._standing, self._pace
        submitting = len(standing.submitting)
        return submitting < pace.submit_threads and len(standing.in_flight) + submitting < pace.max_in_flight

    def may_begin(self, now: float) -> bool:
        """Whether another submit could be begun."""
        standing = self._standing
        later_at = standing.next_later_at()
        waits = standing.to_submit or (later_at is not None and later_at <= now)
        return bool(waits) and not standing.halted and self._has_room() and now >= self._troubles.submits.at

    def next_at(self) -> float | None:
        """Give the moment at which one can be begun again; None: only something else can tell."""
        standing = self._standing
        moments = [standing.next_later_at()]
        if standing.to_submit and not standing.halted and self._has_room():
            moments.append(self._troubles.submits.at)
        return min((at for at in moments if at is not None), default=None)

    def begin(self, now: float) -> None:
        """Begin as many as there is room for."""
        standing = self._standing
        standing.take_up_later(now)
        self._halt_if_put_off_too_long(now)
        while standing.to_submit and self.may_begin(now):
            item = standing.to_submit.popleft()
            problem = self._check.problem(item)
            if problem is not None:
                standing.refuse(item.fingerprint, problem)
                continue
            is_new = item.fingerprint not in standing.plan.known and not standing.failures[item.fingerprint]
            why_not = standing.budget.why_not()
            if is_new and why_not:
                standing.to_submit.appendleft(item)
                standing.halt(WanBudgetError(why_not))
                return
            self._begin_one(item, is_new=is_new)

    def _halt_if_put_off_too_long(self, now: float) -> None:
        """Give up where the API asks to wait for longer than an outage may last: no worker waits for that."""
        pause_s = self._troubles.submits.at - now
        if not self._standing.to_submit or self._standing.halted or pause_s <= self._pace.outage_s:
            return
        until = datetime.fromtimestamp(self._troubles.submits.at, UTC).isoformat(timespec="minutes")
        self._standing.halt(
            WanTransientError(
                f"RunComfy asks to send no submits for {pause_s / 60:.0f} minutes, and a batch waits for "
                f"{self._pace.outage_s / 60:.0f} at most. Nothing was bought for the rest: clear the task after "
                f"{until}, or ask RunComfy about the limits of the account.",
                retry_after_s=pause_s,
            )
        )

    def _begin_one(self, item: Item, *, is_new: bool) -> None:
        one = item.fingerprint
        self._standing.submitting.add(one)
        self._settings[one] = self._work.settings
        obtain = partial(_obtain, self._work, self._standing.budget, self._check, item, is_new=is_new)
        self._pool.do("submit", one, obtain)

    # -- what came of it -----------------------------------------------------------------------------------

    def saw(self, one: str, brought: SubmitResult | BaseException, now: float) -> None:
        """Take in what a submit has brought."""
        self._standing.submitting.discard(one)
        settings = self._settings.pop(one)
        item = self._standing.plan.items[one]
        if isinstance(brought, BaseException):
            self._on_no_request(item, brought, settings, now)
        else:
            self._troubles.submits = self._troubles.submits._replace(times=0)
            self._troubles.images.pop(one, None)
            self._on_request(one, brought, now)

    def _on_request(self, one: str, brought: SubmitResult, now: float) -> None:
        standing, record = self._standing, brought.record
        standing.listener.obtained(brought.how)
        if record.stage is Stage.LANDED:
            if self._has_just_landed(one, record):
                standing.mark_landed(one, Outcome.REUSED, record)
            else:
                standing.land(brought.request_id, one)
            return
        standing.mark_submitted(brought.request_id, one, unix(record.submitted_at) or now)
        if brought.how == "submitted":
            standing.inherited.discard(one)
        else:
            standing.inherited.add(one)
        if brought.how == "reused":
            standing.mark_finished([brought.request_id])

    def _has_just_landed(self, one: str, record: Record) -> bool:
        """Whether another task has landed it here meanwhile; what had landed before the plan was missing here."""
        plan = self._standing.plan
        before, uri = plan.known.get(one), plan.items[one].uri_in(self._work.bucket_name)
        was_missing = before is not None and before.stage is Stage.LANDED
        return not was_missing and bool(record.videos) and record.videos[0].uri == uri

    def _on_no_request(self, item: Item, error: BaseException, settings: WanSettings, now: float) -> None:
        standing, one = self._standing, item.fingerprint
        request_id = getattr(error, "request_id", None)
        match error:
            case WanUnknownSubmissionError() | WanRecordError():
                standing.listener.unknown()
                standing.end(one, Outcome.UNKNOWN, error=str(error))
                self._log.error("%s: %s", item.source.shown, error)
            case WanStorageError() if request_id is not None:
                self._log.error("%s: %s", item.source.shown, error)
                standing.listener.obtained("submitted")
                standing.unwritten[one] = request_id
                standing.mark_submitted(
                    request_id, one, now
                )  # it is bought: go on, and write its id when it lands
            case WanTransientError() | WanStorageError():
                standing.to_submit.appendleft(item)
                self._on_trouble(error, now)
            case WanAuthError() if self._work.refresh(settings):
                standing.to_submit.appendleft(item)
            case WanBudgetError():
                standing.end(one, Outcome.LEFT, error=str(error))
                standing.over_budget = error
            case WanBalanceError() | WanAuthError():
                standing.to_submit.appendleft(item)
                standing.halt(error)
            case WanDownloadError() if error.retry_helps and self._image(one).times + 1 < _IMAGE_TRIES:
                again = self._image(one).later(now, _IMAGE_PAUSE_S * (self._image(one).times + 1))
                self._troubles.images[one] = again
                standing.retry_at(one, again.at)
            case WanInputError() | WanDownloadError():
                self._refused(item, error)
            case WanRefusedError() if request_id is not None:
                standing.end(one, Outcome.NOT_LANDED, request_id=request_id, error=str(error))
            case WanRefusedError():
                self._refused(item, error)
            case _:
                self._log.error("%s: %s", item.source.shown, error, exc_info=error)
                standing.listener.unknown()
                standing.end(one, Outcome.UNKNOWN, error=f"{type(error).__name__}: {error}")

    def _image(self, one: str) -> RetryState:
        return self._troubles.images.get(one, RetryState())

    def _refused(self, item: Item, error: WanError) -> None:
        self._log.warning("%s is refused: %s", item.source.shown, error)
        self._standing.refuse(item.fingerprint, error)

    def _on_trouble(self, error: WanTransientError | WanStorageError, now: float) -> None:
        """Nothing was bought: wait a little, longer each time, before anything is submitted again."""
        before = self._troubles.submits
        if before.times and now - before.since > self._pace.outage_s:
            self._standing.halt(error)
            return
        asked_s = getattr(error, "retry_after_s", None) or 0.0
        if now < before.at:  # several threads bring the same trouble: it counts once
            self._troubles.submits = before._replace(at=max(before.at, now + asked_s))
            return
        self._log.warning("Submits pause: %s", error)
        pause_s = max(pause_after_s(before.times + 1), asked_s)
        self._troubles.submits = before.later(now, pause_s)


def _obtain(work: BatchWork, budget: Budget, check: InputCheck, item: Item, *, is_new: bool) -> SubmitResult:
    """Obtain the request for an image, in a thread: a purchase is counted exactly where it is made."""
    one = item.fingerprint
    may_be_sent = False

    def make_inputs() -> Mapping[str, Any]:
        nonlocal may_be_sent
        may_be_sent = False
        budget.reserve(one)
        inputs = check.validated(item, item.source.make_address())
        may_be_sent = True
        return inputs

    try:
        obtained = work.obtain(item, make_inputs, is_new=is_new)
    except WanError as error:
        is_stored = isinstance(error, WanStorageError) and error.request_id is not None
        if is_stored or isinstance(error, WanUnknownSubmissionError):
            budget.made(one)
        else:
            budget.release(one)
        raise
    except Exception as error:
        if may_be_sent:
            budget.made(one)
            raise
        budget.release(one)
        work.log.exception("%s could not be prepared", item.source.shown)
        raise WanInputError(
            f"It could not be prepared ({type(error).__name__}: {error}), and nothing was sent: the log tells where. "
            "Look at the image and at its inputs; if they are as they must be, report this."
        ) from error
    if obtained.how == "submitted":
        budget.made(one)
    else:
        budget.release(one)
    return obtained
