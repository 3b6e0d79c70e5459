# SPDX-License-Identifier: Apache-2.0
"""WanCancelOperator reports what it could cancel, and cancels no request that another task owns."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_wan.exceptions import WanInputError, WanNotFoundError
from airflow_provider_wan.operators.wan import WanCancelOperator, WanSubmitOperator
from tests.sandboxes import INPUTS, Bucket
from tests.task_runs import StoreInMemory, connect, make_context, run
from wan_sandbox.server import Sandbox

JOURNAL = "gs://videos/_journal"


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, sandbox, timeout=30)
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})


def submit_request(context: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    task = WanSubmitOperator(task_id="submit", check_image=False, **{**INPUTS, **options})
    result: dict[str, Any] = run(task, context or make_context(task_id="submit", store=StoreInMemory()))
    return result


def cancel(request: Any, **context: Any) -> Any:
    task = WanCancelOperator(task_id="cancel", request=request)
    return run(task, make_context(task_id="cancel", **context))


def test_a_queued_request_is_cancelled_and_a_running_one_is_not(
    sandbox: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    running, queued = submit_request(), submit_request()
    assert cancel(queued) == {"request_id": queued["request_id"], "cancelled": True, "outcome": "cancelled"}
    assert "not charged" in capfd.readouterr().out
    assert cancel(running["request_id"]) == {
        "request_id": running["request_id"],
        "cancelled": False,
        "outcome": "not_cancellable",
    }
    log = capfd.readouterr().out
    assert running["request_id"] in log
    assert "is charged" in log


@pytest.mark.parametrize("nothing", [None, "", "None"])
def test_cancel_without_a_request_does_nothing(sandbox: Sandbox, nothing: Any) -> None:
    assert cancel(nothing) is None
    assert sandbox.ledger()["calls"] == {}


def test_request_owned_by_another_run_is_not_cancelled(sandbox: Sandbox, bucket: Bucket) -> None:
    submit_request(prompt="keeps the only place")
    mine = submit_request(make_context(task_id="submit", run_id="mine"), journal=JOURNAL)
    theirs = submit_request(make_context(task_id="submit", run_id="theirs"), journal=JOURNAL)
    assert mine["request_id"] == theirs["request_id"]
    assert cancel(mine, run_id="mine")["outcome"] == "wanted_by_others"
    assert sandbox.ledger()["cancels"] == []


def test_request_owned_only_by_this_run_is_cancelled(sandbox: Sandbox, bucket: Bucket) -> None:
    submit_request(prompt="keeps the only place")
    mine = submit_request(make_context(task_id="submit", run_id="mine"), journal=JOURNAL)
    assert cancel(mine, run_id="mine")["cancelled"] is True


def test_request_is_not_cancelled_while_its_owners_are_unknown(sandbox: Sandbox, bucket: Bucket) -> None:
    submit_request(prompt="keeps the only place")
    mine = submit_request(make_context(task_id="submit", run_id="mine"), journal=JOURNAL)
    sandbox.add_fault("bucket.*", "forbidden")
    assert cancel(mine, run_id="mine")["outcome"] == "wanted_by_others"


def test_an_unknown_request_is_an_error(sandbox: Sandbox) -> None:
    with pytest.raises(WanNotFoundError, match="req-typo") as error:
        cancel("req-typo")
    assert isinstance(error.value, AirflowFailException)


@pytest.mark.parametrize("given", ["a/../b", "x" * 129, "ü", "a\nb", {"id": "x"}, 42])
def test_malformed_request_id_never_enters_a_url(sandbox: Sandbox, given: Any) -> None:
    with pytest.raises(WanInputError):
        cancel(given)
    assert sandbox.ledger()["calls"] == {}


def test_cancel_is_retried_after_an_outage(sandbox: Sandbox) -> None:
    submit_request(prompt="keeps the only place")
    queued = submit_request()
    sandbox.add_fault("cancel", "reset_after", count=1)
    assert cancel(queued)["cancelled"] is True
