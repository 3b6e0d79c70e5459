# SPDX-License-Identifier: Apache-2.0
"""Where a task's record lives, and who else counts on the request in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanStorageError

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.utils.params import RequestRef


def watcher_of(context: Mapping[str, Any]) -> str:
    """Name a task instance as records do."""
    ti = context["ti"]
    return "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index if ti.map_index is not None else -1)))


def watchers_of(context: Mapping[str, Any], ref: RequestRef) -> list[str]:
    """Name who waits for a request: this task, and the one that submitted it, on whose behalf it does."""
    return sorted({watcher_of(context), *([ref.watcher] if ref.watcher else [])})


def journal_of(
    context: Mapping[str, Any],
    uri: str | None,
    *,
    gcp_conn_id: str | None,
    impersonation_chain: str | Sequence[str] | None,
) -> Journal | None:
    """Find where the record of a task's request lives.

    :param uri: ``gs://bucket/prefix``, or None for Airflow's task state store.
    :return: None where neither is there.
    """
    from airflow_provider_wan.durable.journal import TaskStateJournal

    if uri:
        return bucket_journal(uri, gcp_conn_id=gcp_conn_id, impersonation_chain=impersonation_chain)
    store = context.get("task_state_store")
    return TaskStateJournal(store) if store is not None else None


def warn_that_nothing_remembers(log: Logger) -> None:
    """Say what protection is missing where there is no journal; once, and before anything is bought."""
    log.warning(
        "Nothing remembers this request across tries: this Airflow has no task state store (3.3 and newer have "
        'one) and no journal is given. A retry or a clear buys the video again. journal="gs://bucket/prefix" '
        "protects on every Airflow."
    )


def bucket_journal(
    uri: str, *, gcp_conn_id: str | None, impersonation_chain: str | Sequence[str] | None
) -> Journal:
    """Open the journal in a bucket."""
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client

    return BucketJournal(storage_client(gcp_conn_id, impersonation_chain), uri)


def is_watched_by_others(journal: Journal | None, fingerprint: str | None, watchers: Sequence[str]) -> bool:
    """Tell whether the record of a request names anybody else; when in doubt, yes.

    :param watchers: who asks: the task instance, and the one that submitted on its behalf.
    """
    if journal is None or fingerprint is None:
        return False
    try:
        held = journal.read(fingerprint)
    except WanStorageError:
        return True
    if held is None:
        return False
    return any(one not in watchers for one in held.record.watchers)
