# SPDX-License-Identifier: Apache-2.0
"""Metrics, through Airflow's own stats. Every metric name is defined here.

Airflow adds its prefix (``[metrics] statsd_prefix``) and sends them to its backend, with the tags ``model_id``,
``dag_id`` and ``task_id`` if the backend supports tags.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from airflow_provider_wan.durable.record import Record

SUBMITTED: Final = "wan.requests.submitted"
ADOPTED: Final = "wan.requests.adopted"
REUSED: Final = "wan.requests.reused"
SUCCEEDED: Final = "wan.requests.succeeded"
REFUSED: Final = "wan.requests.refused"
UNKNOWN: Final = "wan.requests.unknown"
FAILED: Final = "wan.requests.failed"
CANCELLED: Final = "wan.requests.cancelled"
TIMED_OUT: Final = "wan.requests.timed_out"
COST_USD: Final = "wan.cost_usd"
QUEUED: Final = "wan.request.queued"
GENERATING: Final = "wan.request.generating"
TURNAROUND: Final = "wan.request.turnaround"
LANDING: Final = "wan.landing.duration"
LANDED_VIDEOS: Final = "wan.landing.videos"
LANDED_BYTES: Final = "wan.landing.bytes"
BAD_VIDEOS: Final = "wan.landing.bad_videos"

Tags = Mapping[str, str]

#: The counter of a request, by how a task obtained it.
COUNTER_OF_OBTAINED: Final[Mapping[str, str]] = {
    "submitted": SUBMITTED,
    "adopted": ADOPTED,
    "reused": REUSED,
}

#: The counter of an error, by the name of its class. Other errors are not outcomes of a request.
COUNTER_OF_ERROR: Final[Mapping[str, str]] = {
    "WanRefusedError": REFUSED,
    "WanUnknownSubmissionError": UNKNOWN,
    "WanGenerationFailedError": FAILED,
    "WanNoOutputError": FAILED,
    "WanCancelledError": CANCELLED,
    "WanTimeoutError": TIMED_OUT,
}


def tags_of(ti: Any, model_id: str | None = None) -> dict[str, str]:
    """Return the tags of a task instance's metrics."""
    tags = {"dag_id": str(ti.dag_id), "task_id": str(ti.task_id)}
    return tags | ({"model_id": model_id} if model_id else {})


def count(name: str, value: float = 1, *, tags: Tags | None = None) -> None:
    """Add to a counter. A metric that can't be sent never fails a task."""
    with contextlib.suppress(Exception):
        _stats().incr(name, value, tags=dict(tags or {}))


def time_s(name: str, seconds: float, *, tags: Tags | None = None) -> None:
    """Record a duration.

    :param seconds: the duration; a negative one (two clocks) counts as 0.
    """
    with contextlib.suppress(Exception):
        _stats().timing(name, timedelta(seconds=max(seconds, 0.0)), tags=dict(tags or {}))


def count_error(error: BaseException, *, tags: Tags | None = None) -> None:
    """Count an error of this provider, if it is an outcome of a request."""
    for kind in type(error).__mro__:
        if kind.__name__ in COUNTER_OF_ERROR:
            count(COUNTER_OF_ERROR[kind.__name__], tags=tags)
            return


def emit_result(
    *,
    cost_usd: float | None,
    created_at: str | None,
    finished_at: str | None,
    running_since: float | None,
    tags: Tags,
) -> None:
    """Count a succeeded request, with its cost and durations.

    :param created_at: by the API's clock, ISO 8601; the turnaround is from here to ``finished_at``.
    :param running_since: when it was first seen running, in unix seconds: the end of the queue.
    """
    count(SUCCEEDED, tags=tags)
    if cost_usd:
        count(COST_USD, cost_usd, tags=tags)
    created, finished = _unix(created_at), _unix(finished_at)
    if created is None or finished is None:
        return
    time_s(TURNAROUND, finished - created, tags=tags)
    if running_since is not None:
        time_s(QUEUED, min(running_since, finished) - created, tags=tags)
        time_s(GENERATING, finished - running_since, tags=tags)


def emit_landing(landed: Record, took_s: float, *, tags: Tags) -> None:
    """Count the landed videos of one request, and time the landing."""
    time_s(LANDING, took_s, tags=tags)
    count(LANDED_VIDEOS, len(landed.videos), tags=tags)
    count(LANDED_BYTES, sum(video.size_bytes for video in landed.videos), tags=tags)
    if bad := sum(video.is_bad for video in landed.videos):
        count(BAD_VIDEOS, bad, tags=tags)


def _unix(moment: str | None) -> float | None:
    try:
        return datetime.fromisoformat(moment).timestamp() if moment else None
    except ValueError:
        return None


def _stats() -> Any:
    """Return Airflow's stats, whose module changed in 3.2 and in 3.3."""
    for module in ("airflow.sdk.observability.stats", "airflow.observability.stats", "airflow.stats"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(module).Stats
    raise ImportError("this Airflow has no stats module that the provider knows")
