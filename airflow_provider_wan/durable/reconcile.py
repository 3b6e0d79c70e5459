# SPDX-License-Identifier: Apache-2.0
"""The state of a request at RunComfy: ask for it, and record it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from logging import Logger
from typing import TYPE_CHECKING

from airflow_provider_wan.durable.decide import RemoteState
from airflow_provider_wan.durable.journal import Journal, RecordConflict
from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
)
from airflow_provider_wan.model_api.faults import is_about_the_id
from airflow_provider_wan.model_api.states import State, is_unpaid_word
from airflow_provider_wan.model_api.values import RequestResult
from airflow_provider_wan.polling.schedule import NotFoundCount

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook

_STAGES = {
    State.SUCCEEDED: Stage.SUCCEEDED,
    State.FAILED: Stage.FAILED,
    State.CANCELLED: Stage.CANCELLED,
}


def read_state(
    hook: WanHook, request_id: str, *, sleep: Callable[[float], None] = time.sleep
) -> tuple[RemoteState, RequestResult | None]:
    """Ask RunComfy for the state of a request.

    A request is gone only when the API itself says so three times over the connection's ``not_found_patience``: a new
    purchase depends on it.

    :raises WanTransientError: no answer; the request is recorded, and a later try asks again.
    """
    gone = RemoteState.GONE
    missing, waited_s = NotFoundCount(after_s=hook.not_found_patience_s), 0.0
    while True:
        try:
            status = hook.get_status(request_id)
            if not status.is_over:
                return RemoteState(status.state.value), None
            if not is_unpaid_word(status.word):
                gone = RemoteState.RESULT_GONE
            result = hook.get_result(request_id)
            state = result.state if result.state.is_terminal else State.RUNNING
            return RemoteState(state.value), result
        except WanNotFoundError:
            if missing.on_not_found(waited_s):
                return gone, None
            sleep(missing.pause_s)
            waited_s += missing.pause_s
        except WanAuthError as error:
            raise WanTransientError(
                f"Request {request_id} is bought and recorded, but its state can't be read: {error}",
                request_id=request_id,
            ) from error
        except WanRefusedError:
            return RemoteState.UNCLEAR, None


def check_it_exists(hook: WanHook, request_id: str, *, named_in: str) -> None:
    """Ask for a request that a person named, before it is recorded: ids are mistyped.

    :param named_in: the parameter that names it, for the message.
    :raises WanRefusedError: RunComfy does not know it, or not as this account's.
    """
    try:
        hook.get_status(request_id)
    except WanRefusedError as error:
        if not is_about_the_id(error):
            raise
        raise type(error)(
            f"{named_in} names request {request_id}, and RunComfy does not have it: {error} Nothing was bought and "
            "nothing was changed.",
            request_id=request_id,
            code=error.code,
        ) from error


def with_result(record: Record, result: RequestResult) -> Record:
    """Return a record with the facts of a result. A success without output counts as paid."""
    stage = _STAGES.get(result.state)
    if stage is None or record.stage is Stage.LANDED:
        return record
    return replace(
        record,
        stage=stage,
        succeeded_once=record.succeeded_once or stage is Stage.SUCCEEDED or result.is_paid_without_output,
        cost_usd=record.cost_usd if result.cost_usd is None else result.cost_usd,
        created_at=result.created_at or record.created_at,
        finished_at=result.finished_at or record.finished_at,
        error=result.error,
    )


def as_paid(record: Record) -> Record:
    """Return a record marked as paid, for a request whose result can't be read any more."""
    return replace(record, succeeded_once=True)


def amend(
    journal: Journal, fingerprint: str, request_id: str, change: Callable[[Record], Record], log: Logger
) -> Record | None:
    """Change the record of a request, if it still holds this request.

    Best effort: the state, cost and landing that are written here only save later work, so an outage of the bucket must
    not fail the task.
    """
    try:
        while True:
            held = journal.read(fingerprint)
            if held is None or held.record.request_id != request_id:
                return None
            changed = change(held.record)
            if changed == held.record:
                return changed
            try:
                return journal.write(changed, replaces=held).record
            except RecordConflict:
                continue
    except WanStorageError as error:
        log.warning("The record of request %s could not be updated: %s", request_id, error)
        return None
