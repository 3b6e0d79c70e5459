# SPDX-License-Identifier: Apache-2.0
"""The landing half of a batch: finished requests are copied into the bucket, and what happens when that fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

from airflow_provider_wan.batch.pool import BatchWork, WorkerPool
from airflow_provider_wan.batch.results import Landed, Outcome
from airflow_provider_wan.batch.state import BatchState
from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanDownloadError,
    WanError,
    WanGenerationFailedError,
    WanNoOutputError,
    WanStorageError,
    WanTransientError,
)

_LANDING_TRIES = 4


class Landings:
    """Starts landings, and handles their ends."""

    def __init__(self, state: BatchState, work: BatchWork, pool: WorkerPool) -> None:
        self._state = state
        self._work = work
        self._limits = work.spec.limits
        self._pool = pool
        self._log = work.log
        self._tries: Counter[str] = Counter()

    def begin(self) -> None:
        """Start as many landings as there are threads."""
        state = self._state
        while state.to_land and len(state.landing) < self._limits.landing_threads:
            request_id = state.to_land.popleft()
            state.landing.add(request_id)
            item = state.plan.items[state.finished[request_id]]
            self._pool.run("land", request_id, partial(self._work.land, item, request_id))

    def on_completion(self, request_id: str, outcome: Landed | BaseException, now: float) -> None:
        """Handle the end of a landing."""
        state = self._state
        state.landing.discard(request_id)
        fingerprint = state.finished[request_id]
        asked_s = getattr(outcome, "retry_after_s", None) or 0.0
        match outcome:
            case WanTransientError():  # not finished after all, or no answer
                state.mark_not_finished(request_id, now, asked_s=asked_s)
                return
            case WanDownloadError() | WanStorageError() if (
                outcome.retry_helps and asked_s <= self._limits.outage_s and self._may_retry(fingerprint)
            ):
                self._log.warning("Landing again: %s", outcome)
                if asked_s:
                    state.mark_not_finished(request_id, now, asked_s=asked_s)
                else:
                    state.to_land.append(request_id)
                return
        state.forget_finished(request_id)
        match outcome:
            case Landed():
                self._on_landed(fingerprint, request_id, outcome)
            case WanGenerationFailedError() | WanCancelledError():
                self._on_failed(fingerprint, request_id, outcome)
            case WanError():
                self._log.error("%s", outcome)
                cost_usd = self._settle(fingerprint, request_id)
                state.end(
                    fingerprint,
                    Outcome.NO_OUTPUT if isinstance(outcome, WanNoOutputError) else Outcome.NOT_LANDED,
                    request_id=request_id,
                    error=str(outcome),
                    cost_usd=cost_usd,
                )
            case _:
                self._log.error("Landing request %s failed: %s", request_id, outcome, exc_info=outcome)
                state.end(fingerprint, Outcome.NOT_LANDED, request_id=request_id, error=repr(outcome))

    def _may_retry(self, fingerprint: str) -> bool:
        self._tries[fingerprint] += 1
        return self._tries[fingerprint] < _LANDING_TRIES

    def _on_landed(self, fingerprint: str, request_id: str, landed: Landed) -> None:
        state, record = self._state, landed.record
        if record.cost_usd is not None:
            state.budget.settle(fingerprint, record.cost_usd)
        running_since = state.running_since.pop(request_id, None)
        state.metrics.on_landed(replace(landed, running_since=running_since))
        state.mark_landed(fingerprint, Outcome.LANDED, record)

    def _on_failed(
        self, fingerprint: str, request_id: str, error: WanGenerationFailedError | WanCancelledError
    ) -> None:
        state = self._state
        is_inherited = fingerprint in state.inherited
        state.inherited.discard(fingerprint)
        state.failures[fingerprint] += not is_inherited
        cost_usd = self._settle(fingerprint, request_id)
        state.metrics.on_no_video(error, cost_usd)
        may_retry = is_inherited or state.failures[fingerprint] <= self._limits.retries_per_image
        if may_retry and not state.halted:
            self._log.info("%s It is tried again.", error)
            state.to_submit.append(state.plan.items[fingerprint])
            return
        outcome = Outcome.CANCELLED if isinstance(error, WanCancelledError) else Outcome.FAILED
        state.end(fingerprint, outcome, request_id=request_id, error=str(error), cost_usd=cost_usd)

    def _settle(self, fingerprint: str, request_id: str) -> float | None:
        """Count the cost of a request whose video can't land; return it in USD, None if not known."""
        cost_usd = self._work.costs.get(request_id)
        if cost_usd is not None:
            self._state.budget.settle(fingerprint, cost_usd)
        return cost_usd
