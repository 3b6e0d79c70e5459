# SPDX-License-Identifier: Apache-2.0
"""How a wait ends in a worker: the result, a timeout, a kill."""

from __future__ import annotations

from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanError, WanNotFoundError, WanTimeoutError
from airflow_provider_wan.faces.journals import is_watched_by_others
from airflow_provider_wan.faces.references import RequestRef, result_as_xcom, result_of_landed

if TYPE_CHECKING:
    from airflow_provider_wan.generation.journal import Journal
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.calls import RequestResult


def finished(
    hook: WanHook,
    journal: Journal | None,
    ref: RequestRef,
    log: Logger,
    *,
    result: RequestResult | None = None,
) -> dict[str, Any]:
    """Read the result of a request that is over, remember it, and give or raise it.

    :param result: what it is, where somebody has just read it.
    """
    from airflow_provider_wan.generation.records import Stage
    from airflow_provider_wan.generation.submission import amend, raise_unless_succeeded, with_result

    try:
        known = result or hook.get_result(ref.request_id)
    except WanNotFoundError:
        held = journal.read(ref.fingerprint) if journal is not None and ref.fingerprint else None
        if held is not None and held.record.stage is Stage.LANDED:
            return result_of_landed(held.record, ref)
        raise
    if journal is not None and ref.fingerprint:
        amend(journal, ref.fingerprint, ref.request_id, lambda record: with_result(record, known), log)
    raise_unless_succeeded(known)
    return result_as_xcom(known, ref)


def timed_out(
    hook: WanHook,
    journal: Journal | None,
    ref: RequestRef,
    message: str,
    *,
    watcher: str,
    within_run: bool,
    cancel: bool,
    log: Logger,
) -> WanTimeoutError:
    """Cancel what is still queued when its time is up, and give the error that says what became of it.

    :param within_run: whether other tasks of the same run count as somebody who waits for it.
    :param cancel: whether to cancel at all.
    """
    truth = f"Another try, or request={ref.request_id!r}, takes it over."
    if cancel:
        others = is_watched_by_others(journal, ref.fingerprint, watcher, within_run=within_run)
        truth = cancel_what_is_queued(hook, ref.request_id, watched_by_others=others, log=log)
    about = "" if ref.request_id in message else f"Request {ref.request_id}: "
    return WanTimeoutError(f"{about}{message} {truth}", request_id=ref.request_id)


def cancel_what_is_queued(hook: WanHook, request_id: str, *, watched_by_others: bool, log: Logger) -> str:
    """Cancel a request that nobody waits for any more; gives a sentence with the truth about it."""
    if watched_by_others:
        return "Other tasks count on it too, so it was not cancelled."
    try:
        outcome = hook.cancel(request_id)
    except WanError as error:
        log.warning("Cancelling request %s failed: %s", request_id, error)
        return "It could not be told whether it is cancelled; it may run on and be charged."
    if outcome.cancelled:
        return "It was still queued: it is cancelled and not charged."
    return (
        f"It can't be cancelled any more ({outcome.word}): it runs on and is charged. Its id takes it over later, "
        f"as request={request_id!r}."
    )
