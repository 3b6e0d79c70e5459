# SPDX-License-Identifier: Apache-2.0
"""WanRequestSensor in each of its modes: it ends with its request, and never earlier without a reason."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
)

from airflow_provider_wan.exceptions import (
    WanCancelledError,
    WanGenerationFailedError,
    WanInputError,
    WanNotFoundError,
    WanRefusedError,
    WanTimeoutError,
    WanTransientError,
)
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from tests.sandboxes import INPUTS, Bucket
from tests.task_runs import StoreInMemory, connect, first_event, make_context, purchases, run, start
from wan_sandbox.server import Sandbox

JOURNAL = "gs://videos/_journal"
MODES: list[dict[str, Any]] = [{}, {"deferrable": False, "mode": "poke"}, {"deferrable": False}]
in_each_mode = pytest.mark.parametrize("mode", MODES, ids=["deferred", "poke", "reschedule"])


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, sandbox, timeout=30, not_found_patience=0.05)
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")


def submit_request(context: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    task = WanSubmitOperator(task_id="submit", check_image=False, **{**INPUTS, **options})
    result: dict[str, Any] = run(task, context or make_context(task_id="submit", store=StoreInMemory()))
    return result


def sensor(request: Any, **options: Any) -> WanRequestSensor:
    return WanRequestSensor(**{"task_id": "wait", "request": request, "poke_interval": 0.05, **options})


def wait(request: Any, *, run_id: str = "manual__1", **options: Any) -> Any:
    """Wait as Airflow would, rescheduling included."""
    task = sensor(request, **options)
    context = make_context(task_id="wait", run_id=run_id)
    while True:
        try:
            return run(task, context)
        except AirflowRescheduleException as again:
            context["ti"].first_reschedule_date = context["ti"].first_reschedule_date or datetime.now(UTC)
            task = sensor(request, **options)  # another process
            time.sleep(max(0.0, (again.reschedule_date - datetime.now(UTC)).total_seconds()))


@in_each_mode
def test_sensor_returns_the_result(sandbox: Sandbox, mode: dict[str, Any]) -> None:
    sandbox.control("speed", {"generation_seconds": 0.2})
    request = submit_request()
    result = wait(request, **mode)
    assert result["request_id"] == request["request_id"]
    assert result["fingerprint"] == request["fingerprint"]
    assert result["state"] == "succeeded"
    assert len(result["videos"]) == 1
    assert result["cost_usd"] == 0.2


@pytest.mark.parametrize("form", ["id", "xcom", "text", "python text"])
def test_a_request_is_an_id_or_what_a_task_returned(sandbox: Sandbox, form: str) -> None:
    request = submit_request()
    given = {
        "id": f" {request['request_id']} ",
        "xcom": request,
        "text": json.dumps(request),
        "python text": str(request),
    }[form]
    assert wait(given)["request_id"] == request["request_id"]


@pytest.mark.parametrize("given", ["", "None", "a/../b", "a b", "é", {"request_id": "../x"}, {}, None, 4, "{broken"])
def test_value_without_a_request_id_is_refused(sandbox: Sandbox, given: Any) -> None:
    with pytest.raises(WanInputError) as error:
        wait(given)
    assert isinstance(error.value, AirflowFailException)
    assert sandbox.ledger()["calls"] == {}


@in_each_mode
@pytest.mark.parametrize(("state", "kind"), [("failed", WanGenerationFailedError), ("cancelled", WanCancelledError)])
def test_failed_or_cancelled_request_fails_the_sensor_at_once(
    sandbox: Sandbox, mode: dict[str, Any], state: str, kind: type[Exception]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request = submit_request()
    sandbox.control(f"requests/{request['request_id']}", {"state": state})
    with pytest.raises(kind, match=request["request_id"]) as error:
        wait(request, **mode)
    assert isinstance(error.value, AirflowFailException), "it submits nothing, so a retry would see the same"


@in_each_mode
def test_timeout_cancels_a_queued_request_and_says_how_to_continue(
    sandbox: Sandbox, bucket: Bucket, mode: dict[str, Any]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    running, queued = (submit_request(prompt=prompt, journal=JOURNAL) for prompt in ("a wave", "another wave"))
    with pytest.raises(WanTimeoutError, match="cancelled and not charged") as error:
        wait(queued, timeout=0.2, **mode)
    assert "Run the task again" not in str(error.value), "there is nothing left to wait for"
    assert queued["request_id"] in str(error.value)
    assert not isinstance(error.value, AirflowFailException)
    with pytest.raises(WanTimeoutError, match="is charged"):
        wait(running, timeout=timedelta(milliseconds=200), **mode)
    cancelled = {cancel["request_id"]: cancel["outcome"] for cancel in sandbox.ledger()["cancels"]}
    assert cancelled == {queued["request_id"]: "cancelled", running["request_id"]: "not_cancellable"}


@in_each_mode
def test_without_a_journal_a_timeout_cancels_nothing_that_another_task_may_wait_for(
    sandbox: Sandbox, mode: dict[str, Any]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    submit_request()
    with pytest.raises(WanTimeoutError, match="not cancelled: without a journal"):
        wait(submit_request(), timeout=0.2, **mode)
    assert sandbox.ledger()["cancels"] == []


def test_a_trigger_without_a_journal_cancels_nothing_when_its_task_is_marked(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    assert start(sensor(submit_request()), make_context(task_id="wait")).trigger.cancel_on_kill is False


@in_each_mode
def test_cancelling_at_the_timeout_can_be_disabled(sandbox: Sandbox, mode: dict[str, Any]) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request = submit_request()
    with pytest.raises(WanTimeoutError, match="request="):
        wait(request, timeout=0.1, cancel_on_timeout=False, **mode)
    assert sandbox.ledger()["cancels"] == []


@pytest.mark.parametrize("mode", MODES[1:], ids=["poke", "reschedule"])
def test_soft_fail_skips_and_still_cancels_at_the_timeout(
    sandbox: Sandbox, bucket: Bucket, mode: dict[str, Any]
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    submit_request()
    queued = submit_request(journal=JOURNAL)
    with pytest.raises(AirflowSkipException, match="not charged"):
        wait(queued, timeout=0.1, soft_fail=True, **mode)
    assert [cancel["outcome"] for cancel in sandbox.ledger()["cancels"]] == ["cancelled"]


@in_each_mode
def test_soft_fail_skips_a_failed_request(sandbox: Sandbox, mode: dict[str, Any]) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request = submit_request()
    sandbox.control(f"requests/{request['request_id']}", {"state": "failed"})
    with pytest.raises(AirflowSkipException):
        wait(request, soft_fail=True, **mode)
    assert sandbox.ledger()["cancels"] == []


def test_request_that_only_seemed_finished_lets_the_sensor_be_retried(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request = submit_request()
    event = {"request_id": request["request_id"], "outcome": "succeeded"}
    with pytest.raises(WanTransientError, match="is not finished") as error:
        sensor(request).execute_complete(make_context(task_id="wait"), event)
    assert not isinstance(error.value, AirflowFailException)


def test_soft_fail_skips_after_the_triggerer_too(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    waiting = start(sensor(submit_request(), timeout=0.1, soft_fail=True), make_context(task_id="wait"))
    event = asyncio.run(first_event(waiting.trigger))
    with pytest.raises(AirflowSkipException):
        waiting.task.resume_execution("execute_complete", {"event": event}, waiting.context)


@in_each_mode
@pytest.mark.parametrize("fault", ["other_user", "malformed_id"])
def test_mistyped_id_fails_at_the_first_poll(sandbox: Sandbox, mode: dict[str, Any], fault: str) -> None:
    sandbox.add_fault("status", fault)
    with pytest.raises(WanRefusedError, match="req-typo") as error:
        wait("req-typo", **mode)
    assert isinstance(error.value, AirflowFailException)
    assert sandbox.ledger()["calls"]["status"] == 1


@in_each_mode
def test_unknown_request_id_fails_as_missing(sandbox: Sandbox, mode: dict[str, Any]) -> None:
    with pytest.raises(WanNotFoundError, match="req-typo"):
        wait("req-typo", **mode)


@in_each_mode
@pytest.mark.parametrize("fault", ["other_user", "unauthorized", "not_found_html", "status", "html", "reset"])
def test_request_submitted_by_a_task_is_awaited_through_any_answer(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, mode: dict[str, Any], fault: str
) -> None:
    quick = functools.partial(RetryPolicy, tries=2, first_s=0.01)
    monkeypatch.setattr("airflow_provider_wan.hooks.wan.RetryPolicy", quick)
    request = submit_request()
    sandbox.add_fault("status", fault, count=3)
    assert wait(request, **mode)["state"] == "succeeded"


def test_trigger_receives_the_submitted_flag_and_the_owner(sandbox: Sandbox, bucket: Bucket) -> None:
    sandbox.control("speed", {"generation_seconds": 60})
    request = submit_request(make_context(task_id="submit"), journal=JOURNAL)
    trigger = start(sensor(request), make_context(task_id="wait")).trigger
    assert trigger.is_known
    assert trigger.watchers == ["dag/manual__1/submit/-1", "dag/manual__1/wait/-1"]
    assert (trigger.journal, trigger.fingerprint) == (JOURNAL, request["fingerprint"])
    assert not start(sensor("some-id"), make_context(task_id="wait")).trigger.is_known


@pytest.mark.parametrize("ending", ["succeeded", "failed"])
def test_finished_request_needs_no_triggerer(sandbox: Sandbox, ending: str) -> None:
    """The event of a trigger that fires at once can arrive too early, and cost the task a try."""
    sandbox.control("speed", {"generation_seconds": 60})
    request = submit_request()
    sandbox.control(f"requests/{request['request_id']}", {"state": ending})
    if ending == "failed":
        with pytest.raises(WanGenerationFailedError):
            start(sensor(request), make_context(task_id="wait"))
        return
    result = start(sensor(request), make_context(task_id="wait"))
    assert result["state"] == "succeeded"
    assert len(result["videos"]) == 1


def test_final_state_is_recorded_in_the_journal(sandbox: Sandbox, bucket: Bucket) -> None:
    """A submit that is cleared after the result expired must know that it was charged."""
    request = submit_request(make_context(), journal=JOURNAL)
    assert wait(request)["state"] == "succeeded"
    sandbox.control(f"requests/{request['request_id']}", {"state": "vanished"})
    with pytest.raises(WanRefusedError, match="variation"):
        submit_request(make_context(run_id="later"), journal=JOURNAL)
    assert len(purchases(sandbox)) == 1


def test_a_result_that_expired_before_it_was_read_is_paid_for(sandbox: Sandbox, bucket: Bucket) -> None:
    request = submit_request(make_context(), journal=JOURNAL)
    sandbox.add_fault("result", "not_found")
    with pytest.raises(WanNotFoundError, match="counts as paid"):
        wait(request)
    sandbox.clear_faults()
    sandbox.control(f"requests/{request['request_id']}", {"state": "vanished"})
    with pytest.raises(WanRefusedError):
        submit_request(make_context(run_id="later"), journal=JOURNAL)


def test_request_owned_by_another_run_is_not_cancelled_at_the_timeout(sandbox: Sandbox, bucket: Bucket) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    submit_request(prompt="keeps the only place")
    mine = submit_request(make_context(task_id="submit", run_id="mine"), journal=JOURNAL)
    submit_request(make_context(task_id="submit", run_id="theirs"), journal=JOURNAL)
    with pytest.raises(WanTimeoutError, match="depend on it"):
        wait(mine, run_id="mine", timeout=0.1)
    alone = submit_request(make_context(task_id="submit", run_id="mine"), journal=JOURNAL, variation="alone")
    with pytest.raises(WanTimeoutError, match="not charged"):
        wait(alone, run_id="mine", timeout=0.1)


def test_repeated_waits_return_the_same_result(sandbox: Sandbox) -> None:
    request = submit_request()
    first, second = wait(request), wait(request, deferrable=False)
    assert {key: first[key] for key in ("request_id", "state", "cost_usd")} == {
        key: second[key] for key in ("request_id", "state", "cost_usd")
    }
    assert len(purchases(sandbox)) == 1


@in_each_mode
def test_a_retry_after_holds_in_each_mode(sandbox: Sandbox, mode: dict[str, Any]) -> None:
    """Deferred, the worker polls first, and the triggerer goes on."""
    request = submit_request()
    sandbox.add_fault("status", "overloaded", retry_after="2", count=1)
    assert wait(request, **mode)["state"] == "succeeded"
    assert sandbox.ledger()["too_early"] == []
    assert sandbox.ledger()["calls"]["status"] >= 2
