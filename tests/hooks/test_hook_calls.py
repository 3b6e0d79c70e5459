# SPDX-License-Identifier: Apache-2.0
"""Every call of both hooks against the sandbox, and each fault of the contract for each call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanError,
    WanInputError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.states import State
from tests.hooks.either_hook import QUICK, EitherHook, connection, everything_in
from tests.sandboxes import INPUTS, MODEL
from wan_sandbox.server import Sandbox

#: Gives the call to make, once there is a request to make it about.
CALLS: dict[str, Callable[[EitherHook, str], Any]] = {
    "submit": lambda hook, request_id: hook("submit", MODEL, INPUTS),
    "status": lambda hook, request_id: hook("get_status", request_id),
    "result": lambda hook, request_id: hook("get_result", request_id),
    "cancel": lambda hook, request_id: hook("cancel", request_id),
    "model": lambda hook, request_id: hook("get_model", MODEL),
    "balance": lambda hook, request_id: hook("get_balance"),
}
READS = tuple(name for name in CALLS if name != "submit")


@pytest.fixture
def request_id(sandbox: Sandbox) -> str:
    """A request that has succeeded."""
    return str(EitherHook("sync")("submit", MODEL, INPUTS).request_id)


def test_submit_returns_the_id_and_buys_once(hook: EitherHook, sandbox: Sandbox) -> None:
    submitted = hook("submit", MODEL, INPUTS)
    assert submitted.model_id == MODEL
    assert [bought["request_id"] for bought in sandbox.ledger()["purchases"]] == [submitted.request_id]


def test_request_is_polled_from_the_queue_to_its_result(hook: EitherHook, sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    running, queued = (hook("submit", MODEL, INPUTS).request_id for _ in range(2))
    assert hook("get_status", running).state is State.RUNNING
    status = hook("get_status", queued)
    assert (status.state, status.queue_position, status.is_over) == (State.QUEUED, 0, False)
    assert hook("get_result", running).state is State.RUNNING
    assert not hook("cancel", running).cancelled
    assert hook("cancel", queued).cancelled
    assert hook("get_result", queued).state is State.CANCELLED
    sandbox.control(f"requests/{running}", {"state": "succeeded"})
    assert hook("get_status", running).is_over
    result = hook("get_result", running)
    assert (result.state, result.cost_usd, len(result.video_urls)) == (State.SUCCEEDED, 0.2, 1)


def test_failed_generation_is_a_result_not_an_error(hook: EitherHook, sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail")
    request_id = hook("submit", MODEL, INPUTS).request_id
    assert hook("get_status", request_id).is_over
    result = hook("get_result", request_id)
    assert (result.state, result.video_urls) == (State.FAILED, ())
    assert "out of memory" in str(result.error)


def test_model_and_balance_are_read(hook: EitherHook, sandbox: Sandbox) -> None:
    model = hook("get_model", MODEL)
    assert (model.model_id, model.base_price_usd, model.price_unit) == (MODEL, 0.2, "output")
    sandbox.control("account", {"balance_usd": 5})
    balance = hook("get_balance")
    assert (float(balance.balance_usd), balance.currency) == (5, "USD")


@pytest.mark.parametrize("early", ["state", "early_400005"])
def test_early_result_is_not_terminal(hook: EitherHook, sandbox: Sandbox, early: str) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request_id = hook("submit", MODEL, INPUTS).request_id
    if early != "state":
        sandbox.add_fault("result", early)
    assert not hook("get_result", request_id).state.is_terminal


#: fault, what a read raises, what a submit raises (None: nothing)
FAULTS: list[tuple[str, dict[str, Any], type[WanError] | None, type[WanError] | None]] = [
    *(("status", {"status": code}, WanTransientError, WanUnknownSubmissionError) for code in (500, 502, 503, 504)),
    ("status", {"status": 500, "body": "html"}, WanTransientError, WanUnknownSubmissionError),
    ("status", {"status": 503, "body": "empty"}, WanTransientError, WanUnknownSubmissionError),
    ("status", {"status": 408}, WanTransientError, WanUnknownSubmissionError),
    ("overloaded", {}, WanTransientError, WanTransientError),
    ("status", {"status": 429, "body": "html"}, WanTransientError, WanTransientError),
    ("reset", {}, WanTransientError, WanUnknownSubmissionError),
    ("reset", {"clean": True}, WanTransientError, WanUnknownSubmissionError),
    ("reset_after", {}, WanTransientError, WanUnknownSubmissionError),
    ("status_after", {"status": 502}, WanTransientError, WanUnknownSubmissionError),
    ("html", {}, WanTransientError, WanUnknownSubmissionError),
    ("html_after", {}, WanTransientError, WanUnknownSubmissionError),
    ("empty", {}, WanTransientError, WanUnknownSubmissionError),
    ("empty_after", {}, WanTransientError, WanUnknownSubmissionError),
    ("cut_json", {}, WanTransientError, WanUnknownSubmissionError),
    ("cut_json", {"honest": False}, WanTransientError, WanUnknownSubmissionError),
    ("redirect", {}, WanTransientError, WanRefusedError),
    ("unauthorized", {}, WanAuthError, WanAuthError),
    ("unauthorized", {"shape": "code"}, WanAuthError, WanAuthError),
    ("status", {"status": 401}, WanAuthError, WanAuthError),
    ("error_200", {}, WanAuthError, WanAuthError),
    ("no_balance", {}, WanBalanceError, WanBalanceError),
    ("status", {"status": 402}, WanBalanceError, WanBalanceError),
    ("malformed_id", {}, WanRefusedError, WanRefusedError),
    ("other_user", {}, WanRefusedError, WanRefusedError),
    ("invalid", {}, WanInputError, WanInputError),
    ("not_found", {}, WanNotFoundError, WanRefusedError),
    ("not_found_html", {}, WanRefusedError, WanRefusedError),
    ("forbidden_html", {}, WanRefusedError, WanRefusedError),
]
SLOW = [("hang", {}), ("hang_after", {}), ("drip", {"every_s": 0.02})]


@pytest.mark.parametrize(("fault", "params", "raised", "_"), FAULTS, ids=str)
def test_each_fault_of_a_read_raises_its_error(
    hook: EitherHook,
    sandbox: Sandbox,
    request_id: str,
    fault: str,
    params: dict[str, Any],
    raised: type[WanError],
    _: object,
) -> None:
    for call in READS:
        rule = sandbox.add_fault(call, fault, **params)
        with pytest.raises(WanError) as caught:
            CALLS[call](hook, request_id)
        assert type(caught.value) is raised, call
        assert sandbox.token not in everything_in(caught.value)
        sandbox.control(f"faults/{rule}", method="DELETE")
        CALLS[call](hook, request_id)


@pytest.mark.parametrize(("fault", "params", "_", "raised"), FAULTS, ids=str)
def test_each_fault_of_a_submit_has_one_of_three_outcomes(
    hook: EitherHook,
    sandbox: Sandbox,
    fault: str,
    params: dict[str, Any],
    _: object,
    raised: type[WanError],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.add_fault("submit", fault, **params)
    with pytest.raises(WanError) as caught:
        CALLS["submit"](hook, "")
    assert type(caught.value) is raised
    assert sandbox.token not in everything_in(caught.value) + caplog.text
    ledger = sandbox.ledger()
    if raised is WanUnknownSubmissionError:
        assert ledger["submits_seen"] == 1, "a lost submit was sent again"
        assert "Generations page" in str(caught.value)
    else:
        assert not ledger["purchases"]
        assert ledger["submits_seen"] == (QUICK.tries if raised is WanTransientError else 1)


@pytest.mark.parametrize(("fault", "params"), SLOW, ids=str)
@pytest.mark.parametrize("call", ["submit", "status"])
def test_no_call_takes_longer_than_its_timeout(
    hook: EitherHook,
    sandbox: Sandbox,
    request_id: str,
    call: str,
    fault: str,
    params: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("airflow_provider_wan.http.transport.CONNECT_TIMEOUT_S", 1.0)
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox.url, timeout=1))
    impatient = EitherHook(hook.kind, retry=replace(QUICK, tries=1))
    sandbox.add_fault(call, fault, **params)
    with pytest.raises(WanUnknownSubmissionError if call == "submit" else WanTransientError):
        CALLS[call](impatient, request_id)
    assert sandbox.ledger()["submits_seen"] == (2 if call == "submit" else 1)


@pytest.mark.parametrize(("fault", "params"), [("no_id", {}), ("bad_id", {}), ("bad_id", {"id": "../../x"})])
def test_submit_without_a_usable_id_is_unknown(
    hook: EitherHook, sandbox: Sandbox, fault: str, params: dict[str, Any]
) -> None:
    sandbox.add_fault("submit", fault, **params)
    with pytest.raises(WanUnknownSubmissionError):
        CALLS["submit"](hook, "")
    assert sandbox.ledger()["submits_seen"] == 1


def test_submit_may_be_answered_with_202(hook: EitherHook, sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "accepted_202")
    assert CALLS["submit"](hook, "").request_id


@pytest.mark.parametrize("call", READS)
def test_read_is_retried(hook: EitherHook, sandbox: Sandbox, request_id: str, call: str) -> None:
    sandbox.add_fault(call, "status", status=503, count=2)
    sandbox.add_fault(call, "reset", count=1)
    CALLS[call](hook, request_id)
    assert sandbox.ledger()["calls"][call] == 4


def test_submit_that_was_certainly_not_accepted_is_sent_again(hook: EitherHook, sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "overloaded", count=3)
    CALLS["submit"](hook, "")
    ledger = sandbox.ledger()
    assert (ledger["submits_seen"], ledger["purchases_count"]) == (4, 1)


def test_without_retry_each_call_is_made_once(hook: EitherHook, sandbox: Sandbox, request_id: str) -> None:
    sandbox.add_fault("*", "overloaded")
    for method, *args in (("get_status", request_id), ("get_result", request_id), ("cancel", request_id)):
        with pytest.raises(WanTransientError):
            hook(method, *args, retry=False)
    with pytest.raises(WanTransientError):
        hook("submit", MODEL, INPUTS, retry=False)
    calls = sandbox.ledger()["calls"]
    assert [calls[name] for name in ("status", "result", "cancel", "submit")] == [1, 1, 1, 2]


@pytest.mark.parametrize("bad", ["", "../x", "a b", "a/b", "ü", "a" * 129, "x\n", "x?y", "%2e"])
def test_invalid_request_id_is_refused_before_any_call(hook: EitherHook, sandbox: Sandbox, bad: str) -> None:
    for method in ("get_status", "get_result", "cancel"):
        with pytest.raises(WanInputError):
            hook(method, bad)
    assert not sandbox.ledger()["calls"]


@pytest.mark.parametrize("bad", ["", "../../requests/x/cancel", "a/../b", "a b/c", "a//b", "a/b?c", "/a/b"])
def test_invalid_model_id_is_refused_before_any_call(hook: EitherHook, sandbox: Sandbox, bad: str) -> None:
    for method, *args in (("submit", bad, INPUTS), ("get_model", bad)):
        with pytest.raises(WanInputError):
            hook(method, *args)
    assert not sandbox.ledger()["calls"]


def test_many_faults_at_once_lose_and_buy_no_request(hook: EitherHook, sandbox: Sandbox) -> None:
    sandbox.control("account", {"balance_usd": 1000})
    patient = EitherHook(hook.kind, retry=replace(QUICK, tries=12))
    bought = [patient("submit", MODEL, {**INPUTS, "seed": seed}).request_id for seed in range(20)]
    for call in ("status", "result"):
        for fault, params in (("status", {"status": 500}), ("reset", {}), ("html", {}), ("cut_json", {})):
            sandbox.add_fault(call, fault, rate=0.12, **params)
        sandbox.add_fault(call, "overloaded", rate=0.1, retry_after=0)
    for request_id in bought:
        assert patient("get_status", request_id).is_over
        assert patient("get_result", request_id).video_urls
    ledger = sandbox.ledger()
    assert sorted(one["request_id"] for one in ledger["purchases"]) == sorted(bought)
    assert not ledger["too_early"]
