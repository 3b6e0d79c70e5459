# SPDX-License-Identifier: Apache-2.0
"""What a task has seen of its request, for whoever watches: the links in Airflow's UI, the gallery, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_wan import metrics

if TYPE_CHECKING:
    from airflow_provider_wan.durable.submission import SubmitResult
    from airflow_provider_wan.utils.params import RequestRef

#: XCom key of a request that a task obtained and is still waiting for.
REQUEST_KEY = "request"
#: XCom key of how a task failed: ``{"request_id", "kind", "error"}``.
FAILED_KEY = "failed"
_LONGEST_ERROR = 2000


@dataclass(frozen=True, slots=True)
class LinkState:
    """What links are made of.

    :param request_id: the request, as soon as it is known.
    :param video_url: where the first video can be watched.
    :param landed: bucket and object name of the first video.
    """

    request_id: str | None = None
    video_url: str | None = None
    landed: tuple[str, str] | None = None


class HasLinks(Protocol):
    """An operator whose links show what it has seen."""

    seen: LinkState


def on_obtained(task: HasLinks, context: Mapping[str, Any], obtained: SubmitResult) -> None:
    """Take in that a request was submitted, taken over or found."""
    record = obtained.record
    task.seen = LinkState(record.request_id)
    name = metrics.COUNTER_OF_OBTAINED[obtained.how]
    metrics.count(name, tags=metrics.tags_of(context, record.model_id))


def is_waiting(context: Mapping[str, Any], ref: RequestRef) -> None:
    """Show which request a task waits for: its return value comes only at the end."""
    context["ti"].xcom_push(key=REQUEST_KEY, value=ref.as_xcom())


def on_result(
    task: HasLinks,
    context: Mapping[str, Any],
    result: dict[str, Any],
    *,
    running_since: float | None = None,
    is_new: bool = True,
) -> dict[str, Any]:
    """Take in the result of a request that has succeeded, and give it back.

    :param result: what the task returns.
    :param running_since: when it was first seen running, in unix seconds.
    :param is_new: False where it was paid for and counted earlier.
    """
    videos = result.get("videos") or [None]
    task.seen = LinkState(result["request_id"], videos[0])
    if is_new:
        metrics.emit_result(
            cost_usd=result.get("cost_usd"),
            created_at=result.get("created_at"),
            finished_at=result.get("finished_at"),
            running_since=running_since,
            tags=metrics.tags_of(context, result.get("model_id")),
        )
    return result


def on_error(context: Mapping[str, Any], error: BaseException) -> None:
    """Take in how a task failed: count it, and leave it where the gallery finds it."""
    metrics.count_error(error, tags=metrics.tags_of(context))
    failed = {
        "request_id": getattr(error, "request_id", None),
        "kind": type(error).__name__,
        "error": str(error)[:_LONGEST_ERROR],
    }
    context["ti"].xcom_push(key=FAILED_KEY, value=failed)
