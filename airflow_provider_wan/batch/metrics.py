# SPDX-License-Identifier: Apache-2.0
"""Metrics of a batch, under the names of single requests: each event is counted once, when it happens."""

from __future__ import annotations

from typing import Literal

from airflow_provider_wan import metrics
from airflow_provider_wan.batch.results import Landed
from airflow_provider_wan.exceptions import WanCancelledError, WanError


class BatchMetrics:
    """Sends the metrics of a batch, on one thread.

    A batch that continues in another process after a wait does not repeat the events before the wait.

    :param tags: the tags of all metrics.
    """

    def __init__(self, tags: metrics.Tags) -> None:
        self._tags = tags

    def on_start(self, *, adopted: int, reused: int, refused: int) -> None:
        """Count what the try found at its start.

        :param adopted: requests that an earlier try left in flight.
        :param reused: videos that are there already.
        :param refused: rows that can't be used.
        """
        for name, number in (
            (metrics.ADOPTED, adopted),
            (metrics.REUSED, reused),
            (metrics.REFUSED, refused),
        ):
            if number:
                metrics.count(name, number, tags=self._tags)

    def on_request(self, how: Literal["submitted", "adopted", "reused"]) -> None:
        """Count a request."""
        metrics.count(metrics.COUNTER_OF_OBTAINED[how], tags=self._tags)

    def on_refused(self) -> None:
        """Count an image that breaks a rule."""
        metrics.count(metrics.REFUSED, tags=self._tags)

    def on_unknown(self) -> None:
        """Count a submit whose answer was lost."""
        metrics.count(metrics.UNKNOWN, tags=self._tags)

    def on_no_video(self, error: WanError, cost_usd: float | None) -> None:
        """Count a request that failed or was cancelled.

        :param cost_usd: the charge despite the failure, if known.
        """
        is_cancelled = isinstance(error, WanCancelledError)
        metrics.count(metrics.CANCELLED if is_cancelled else metrics.FAILED, tags=self._tags)
        if cost_usd:
            metrics.count(metrics.COST_USD, cost_usd, tags=self._tags)

    def on_landed(self, landed: Landed) -> None:
        """Count a video, and its request unless another task has counted it."""
        record = landed.record
        if landed.is_first_seen:
            metrics.emit_result(
                cost_usd=record.cost_usd,
                created_at=record.created_at,
                finished_at=record.finished_at,
                running_since=landed.running_since,
                tags=self._tags,
            )
        metrics.emit_landing(record, landed.took_s, tags=self._tags)
