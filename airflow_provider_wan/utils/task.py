# SPDX-License-Identifier: Apache-2.0
"""The facts about the running task: built once from Airflow's context in ``execute``, and passed down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_wan import metrics
from airflow_provider_wan.exceptions import WanStorageError

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import BucketJournal, Journal
    from airflow_provider_wan.durable.submission import SubmitResult
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.utils.params import RequestRef

#: XCom key of the request that a task waits for.
REQUEST_KEY = "request"
#: XCom key of a task's failure: ``{"request_id", "kind", "error"}``.
FAILED_KEY = "failed"
_LONGEST_ERROR = 2000


@dataclass(frozen=True, slots=True)
class LinkState:
    """The addresses from which the links of a task are made.

    :param request_id: the request, as soon as it is known.
    :param video_url: address of the first video.
    :param landed: bucket and object name of the first video.
    """

    request_id: str | None = None
    video_url: str | None = None
    landed: tuple[str, str] | None = None


class TaskOperator(Protocol):
    """An operator or sensor of this provider."""

    link_state: LinkState
    wan_conn_id: str
    gcp_conn_id: str | None
    impersonation_chain: str | Sequence[str] | None

    @property
    def log(self) -> Logger:
        """The task's log."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One try of a task.

    :param operator: its operator: links, log, Google credentials.
    :param hook: its connection.
    :param owner: how records name the task instance.
    :param is_retry: whether it is not the first try.
    :param store: Airflow's task state store, if this version has one.
    :param outlet_events: Airflow's accessor of the asset events of the task's outlets.
    """

    operator: TaskOperator
    hook: WanHook
    owner: str
    is_retry: bool
    ti: Any
    store: Any = None
    outlet_events: Any = None

    @classmethod
    def of(cls, operator: TaskOperator, context: Mapping[str, Any]) -> TaskRequest:
        """Build it from Airflow's context."""
        from airflow_provider_wan.hooks.wan import WanHook

        ti = context["ti"]
        is_retry = (getattr(ti, "try_number", None) or 1) > 1
        return cls(
            operator,
            WanHook(operator.wan_conn_id),
            owner_of(context),
            is_retry,
            ti,
            context.get("task_state_store"),
            context.get("outlet_events"),
        )

    @property
    def log(self) -> Logger:
        """The task's log."""
        return self.operator.log

    def tags(self, model_id: str | None = None) -> dict[str, str]:
        """Return the tags of the task's metrics."""
        return metrics.tags_of(self.ti, model_id)

    def owners(self, ref: RequestRef) -> list[str]:
        """Name who waits for a request: this task, and the one that submitted it, on whose behalf it waits."""
        return sorted({self.owner, *([ref.owner] if ref.owner else [])})

    def open_journal(self, uri: str) -> BucketJournal:
        """Open the journal in a bucket, with the credentials of the task."""
        operator = self.operator
        return bucket_journal(uri, gcp_conn_id=operator.gcp_conn_id, impersonation_chain=operator.impersonation_chain)

    def journal(self, uri: str | None) -> Journal | None:
        """Return the journal of the task's records; None if they are not kept.

        :param uri: ``gs://bucket/prefix``; None: Airflow's task state store.
        """
        from airflow_provider_wan.durable.journal import TaskStateJournal

        if uri:
            return self.open_journal(uri)
        return TaskStateJournal(self.store) if self.store is not None else None

    def warn_about_protection(self) -> None:
        """Log, before a purchase, which cases are not protected without a journal in a bucket."""
        if self.store is None:
            self.log.warning(
                "No record of this request is kept across tries: this Airflow has no task state store (3.3 and newer "
                "have one) and no journal is set. A retry or a clear buys the video again. "
                'journal="gs://bucket/prefix" protects on every Airflow.'
            )
            return
        from airflow.providers.common.compat.sdk import conf

        if conf.getboolean("state_store", "clear_on_success", fallback=False):
            self.log.warning(
                "This Airflow deletes the task state store of a task that succeeds ([state_store] clear_on_success). "
                'Clearing this task after its success buys the video again. journal="gs://bucket/prefix" protects.'
            )

    # -- what others see of it: links, XComs, metrics --------------------------------------------------------

    def on_obtained(self, obtained: SubmitResult) -> None:
        """Show that a request was submitted, adopted or reused."""
        record = obtained.record
        self.operator.link_state = LinkState(record.request_id)
        metrics.count(metrics.COUNTER_OF_OBTAINED[obtained.how], tags=self.tags(record.model_id))

    def on_waiting(self, ref: RequestRef) -> None:
        """Show which request the task waits for: its return value comes only at the end."""
        self.operator.link_state = LinkState(ref.request_id)
        self.ti.xcom_push(key=REQUEST_KEY, value=ref.as_xcom())

    def on_result(
        self, result: dict[str, Any], *, running_since: float | None = None, is_new: bool = True
    ) -> dict[str, Any]:
        """Show the result of a request that succeeded, and return it.

        :param result: the return value of the task.
        :param running_since: when the request was first seen running, in unix seconds.
        :param is_new: False if it was paid for and counted earlier.
        """
        videos = result.get("videos") or [None]
        self.operator.link_state = LinkState(result["request_id"], videos[0])
        if is_new:
            metrics.emit_result(
                cost_usd=result.get("cost_usd"),
                created_at=result.get("created_at"),
                finished_at=result.get("finished_at"),
                running_since=running_since,
                tags=self.tags(result.get("model_id")),
            )
        return result


def owner_of(context: Mapping[str, Any]) -> str:
    """Name a task instance as records do."""
    ti = context["ti"]
    return "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index if ti.map_index is not None else -1)))


def on_error(context: Mapping[str, Any], error: BaseException) -> None:
    """Count how a task failed, and keep it as an XCom for the gallery."""
    metrics.count_error(error, tags=metrics.tags_of(context["ti"]))
    failed = {
        "request_id": getattr(error, "request_id", None),
        "kind": type(error).__name__,
        "error": str(error)[:_LONGEST_ERROR],
    }
    context["ti"].xcom_push(key=FAILED_KEY, value=failed)


def bucket_journal(
    uri: str, *, gcp_conn_id: str | None, impersonation_chain: str | Sequence[str] | None
) -> BucketJournal:
    """Open the journal in a bucket."""
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client

    return BucketJournal(storage_client(gcp_conn_id, impersonation_chain), uri)


def has_other_owners(journal: Journal, fingerprint: str | None, owners: Sequence[str]) -> bool:
    """Return whether another task may depend on a request; True in doubt.

    :param owners: the owners to ignore: this task instance, and the one that submitted on its behalf.
    """
    if fingerprint is None:
        return True
    try:
        held = journal.read(fingerprint)
    except WanStorageError:
        return True
    return held is not None and held.record.is_needed_by_others(*owners)
