# SPDX-License-Identifier: Apache-2.0
"""How a wait ends in a worker: the result, a timeout, a kill."""

from __future__ import annotations

from collections.abc import Sequence
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanError, WanNotFoundError, WanTimeoutError
from airflow_provider_wan.utils.params import RequestRef, result_as_xcom, result_of_landed
from airflow_provider_wan.utils.task import is_watched_by_others

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.calls import RequestResult


def result_if_over(hook: WanHook, ref: RequestRef) -> RequestResult | None:
    """Look once, before a worker is left for the triggerer: most of what a later try waits for has ended by then.

    It spares a way through scheduler and triggerer, and what Airflow makes of a trigger that fires before the
    scheduler has heard of it: it can take the try for lost. What stands in the way of this look is left to the wait.

    :raises WanRefusedError: a person named the request, and RunComfy says that there can be no such one.
    """
    from airflow_provider_wan.model_api.faults import is_about_the_id

    try:
        if not hook.get_status(ref.request_id, retry=False).is_over:
            return None
        result = hook.get_result(ref.request_id, retry=False)
    except WanError as error:
        if ref.fingerprint is None and is_about_the_id(error) and not isinstance(error, WanNotFoundError):
            raise
        return None
    return result if result.state.is_terminal else None


def finished(
    hook: WanHook,
    journal: Journal | None,
    ref: RequestRef,
    log: Logger,
    *,
    result: RequestResult | None = None,
    has_succeeded: bool = False,
) -> dict[str, Any]:
    """Read the result of a request that is over, remember it, and give or raise it.

    :param result: what it is, where somebody has just read it.
    :param has_succeeded: whether somebody has seen that it succeeded. It was paid for, then, and that is
        remembered even if its result can't be read any more.
    """
    from airflow_provider_wan.durable.reconcile import amend, raise_unless_succeeded, with_result

    try:
        known = result or hook.get_result(ref.request_id)
    except WanError as error:
        if (landed := _landed(journal, ref)) is not None:
            return result_of_landed(landed, ref)
        if has_succeeded and isinstance(error, WanNotFoundError):
            raise paid_and_gone(journal, ref, str(error), log) from error
        raise
    if journal is not None and ref.fingerprint:
        amend(journal, ref.fingerprint, ref.request_id, lambda record: with_result(record, known), log)
    raise_unless_succeeded(known)
    return result_as_xcom(known, ref)


def _landed(journal: Journal | None, ref: RequestRef) -> Record | None:
    from airflow_provider_wan.durable.record import Stage

    held = journal.read(ref.fingerprint) if journal is not None and ref.fingerprint else None
    if held is None or held.record.request_id != ref.request_id or held.record.stage is not Stage.LANDED:
        return None
    return held.record


def paid_and_gone(journal: Journal | None, ref: RequestRef, message: str, log: Logger) -> WanNotFoundError:
    """Remember that a request was paid for though its result is gone, and give the error that says so."""
    from airflow_provider_wan.durable.reconcile import amend, as_paid

    if journal is not None and ref.fingerprint:
        amend(journal, ref.fingerprint, ref.request_id, as_paid, log)
    return WanNotFoundError(
        f"Request {ref.request_id} had ended, and RunComfy no longer has its result: it was bought, as far as can be "
        f"told, and is not bought again. A new value of variation buys the video once more. {message}",
        request_id=ref.request_id,
        code=404001,
    )


def timed_out(
    hook: WanHook,
    journal: Journal | None,
    ref: RequestRef,
    message: str,
    *,
    watchers: Sequence[str],
    cancel: bool,
    log: Logger,
) -> WanTimeoutError:
    """Cancel what is still queued when its time is up, and give the error that says what became of it.

    :param watchers: who waited: the task instance, and the one that submitted on its behalf.
    :param cancel: whether to cancel at all.
    """
    truth = f"Another try, or request={ref.request_id!r}, takes it over."
    if cancel:
        others = is_watched_by_others(journal, ref.fingerprint, watchers)
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
