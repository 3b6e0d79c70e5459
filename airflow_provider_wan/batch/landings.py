# SPDX-License-Identifier: Apache-2.0
"""The landing half of a batch: what is over is copied into the bucket, and what follows when that fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from logging import Logger

from airflow_provider_wan.batch.listener import Landed
from airflow_provider_wan.batch.pool import WorkerPool
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.batch.values import BatchLimits
from airflow_provider_wan.batch.work import BatchWork
from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanDownloadError,
    WanError,
    WanGenerationFailedError,
    WanStorageError,
    WanTransientError,
)

_LANDING_TRIES = 4


class Landings:
    """Begins landings, and takes in how they went."""

    def __init__(
        self, standing: BatchState, work: BatchWork, pace: BatchLimits, pool: WorkerPool, log: Logger
    ) -> None:
        self._standing = standing
        self._work = work
        self._pace = pace
        self._pool = pool
        self._log = log
        self._tries: Counter[str] = Counter()

    def begin(self) -> None:
        """Begin as many as there are threads."""
        standing = self._standing
        while standing.to_land and len(standing.landing) < self._pace.landing_threads:
            request_id = standing.to_land.popleft()
            standing.landing.add(request_id)
            item = standing.plan.items[standing.over[request_id]]
            self._pool.do("land", request_id, partial(self._work.land, item, request_id))

    def saw(self, request_id: str, brought: Landed | BaseException, now: float) -> None:
        """Take in what a landing has brought."""
        standing = self._standing
        standing.landing.discard(request_id)
        one = standing.over[request_id]
        match brought:
            case WanTransientError():  # not over after all, or no answer
                standing.mark_not_finished(request_id, now)
                return
            case WanDownloadError() | WanStorageError() if brought.retry_helps and self._may_try_again(one):
                self._log.warning("Landing again: %s", brought)
                standing.to_land.append(request_id)
                return
        standing.forget_over(request_id)
        self._on_end(one, request_id, brought)

    def _on_end(self, one: str, request_id: str, brought: Landed | BaseException) -> None:
        standing = self._standing
        match brought:
            case Landed():
                self._on_landed(one, request_id, brought)
            case WanGenerationFailedError() | WanCancelledError():
                self._on_failed(one, request_id, brought)
            case WanError():
                self._log.error("%s", brought)
                cost_usd = self._settle(one, request_id)
                standing.end(
                    one, Outcome.NOT_LANDED, request_id=request_id, error=str(brought), cost_usd=cost_usd
                )
            case _:
                self._log.error("Landing request %s failed: %s", request_id, brought, exc_info=brought)
                standing.end(one, Outcome.NOT_LANDED, request_id=request_id, error=repr(brought))

    def _on_landed(self, one: str, request_id: str, landed: Landed) -> None:
        standing, record = self._standing, landed.record
        if record.cost_usd is not None:
            standing.budget.settle(one, record.cost_usd)
        running_since = standing.running_since.pop(request_id, None)
        standing.listener.landed(replace(landed, running_since=running_since))
        standing.mark_landed(one, Outcome.LANDED, record)

    def _settle(self, one: str, request_id: str) -> float | None:
        """Count what a request was charged that no video can be landed of; gives it in USD, None if not known."""
        cost_usd = self._work.costs.get(request_id)
        if cost_usd is not None:
            self._standing.budget.settle(one, cost_usd)
        return cost_usd

    def _may_try_again(self, one: str) -> bool:
        self._tries[one] += 1
        return self._tries[one] < _LANDING_TRIES

    def _on_failed(
        self, one: str, request_id: str, error: WanGenerationFailedError | WanCancelledError
    ) -> None:
        standing = self._standing
        is_inherited = one in standing.inherited
        standing.inherited.discard(one)
        standing.failures[one] += not is_inherited
        cost_usd = self._settle(one, request_id)
        standing.listener.made_nothing(error, cost_usd)
        may_retry = is_inherited or standing.failures[one] <= self._pace.retries_per_image
        if may_retry and not standing.halted:
            self._log.info("%s It is tried again.", error)
            standing.to_submit.append(standing.plan.items[one])
            return
        outcome = Outcome.CANCELLED if isinstance(error, WanCancelledError) else Outcome.FAILED
        standing.end(one, outcome, request_id=request_id, error=str(error), cost_usd=cost_usd)
