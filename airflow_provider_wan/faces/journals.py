# SPDX-License-Identifier: Apache-2.0
"""Where a task's record lives, and who else counts on the request in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanStorageError

if TYPE_CHECKING:
    from airflow_provider_wan.generation.journal import Journal


def watcher_of(context: Mapping[str, Any]) -> str:
    """Name a task instance as records do."""
    ti = context["ti"]
    return "/".join((ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index if ti.map_index is not None else -1)))


def journal_of(
    context: Mapping[str, Any],
    uri: str | None,
    *,
    gcp_conn_id: str | None,
    impersonation_chain: str | Sequence[str] | None,
    log: Logger,
) -> Journal | None:
    """Find where the record of a task's request lives.

    :param uri: ``gs://bucket/prefix``, or None for Airflow's task state store.
    :return: None where neither is there; the log then says what protection is missing.
    """
    from airflow_provider_wan.generation.journal import TaskStateJournal

    if uri:
        return bucket_journal(uri, gcp_conn_id=gcp_conn_id, impersonation_chain=impersonation_chain)
    store = context.get("task_state_store")
    if store is not None:
        return TaskStateJournal(store)
    log.warning(
        "Nothing remembers this request across tries: this Airflow has no task state store (3.3 and newer have "
        'one) and no journal is given. A retry or a clear buys the video again. journal="gs://bucket/prefix" '
        "protects on every Airflow."
    )
    return None


def bucket_journal(
    uri: str, *, gcp_conn_id: str | None, impersonation_chain: str | Sequence[str] | None
) -> Journal:
    """Open the journal in a bucket."""
    from airflow_provider_wan.generation.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client

    return BucketJournal(storage_client(gcp_conn_id, impersonation_chain), uri)


def is_watched_by_others(
    journal: Journal | None, fingerprint: str | None, watcher: str, *, within_run: bool = True
) -> bool:
    """Tell whether the record of a request names anybody else; when in doubt, yes.

    :param within_run: whether other tasks of the same run count; for a sensor, the task that submitted is one.
    """
    if journal is None or fingerprint is None:
        return False
    try:
        held = journal.read(fingerprint)
    except WanStorageError:
        return True
    if held is None:
        return False
    own_run = "/".join(watcher.split("/")[:-2]) + "/"
    others = [one for one in held.record.watchers if one != watcher]
    return any(within_run or not one.startswith(own_run) for one in others)
