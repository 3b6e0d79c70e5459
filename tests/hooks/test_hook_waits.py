# SPDX-License-Identifier: Apache-2.0
"""Retry-After is respected in every form, within a limit; and calls are rate-limited."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanTransientError
from airflow_provider_wan.hooks import wan_async
from airflow_provider_wan.hooks.common import Pacer, pacer_of
from airflow_provider_wan.hooks.wan import WanAsyncHook, WanHook
from tests.hooks.either_hook import KINDS, QUICK, EitherHook, connection
from tests.raw_servers import RawServer, read_request, reply
from tests.sandboxes import INPUTS, MODEL
from wan_sandbox.server import Sandbox

YEAR_S = 365 * 86400


@pytest.mark.parametrize(
    "retry_after",
    [
        "0",
        "1",
        "0.3",
        lambda: formatdate(time.time() + 1.5, usegmt=True),
        lambda: formatdate(time.time() - 3600, usegmt=True),
        "-5",
        "soon",
        "1; please",
    ],
    ids=["none", "a second", "a fraction", "a date", "a date that is over", "negative", "nonsense", "more"],
)
def test_retry_after_within_the_budget_is_waited_for(hook: EitherHook, sandbox: Sandbox, retry_after: Any) -> None:
    request_id = hook("submit", MODEL, INPUTS).request_id
    for call in ("status", "submit"):
        asked = retry_after() if callable(retry_after) else retry_after
        sandbox.add_fault(call, "overloaded", retry_after=asked, count=1)
    hook("get_status", request_id)
    hook("submit", MODEL, {**INPUTS, "seed": 2})
    ledger = sandbox.ledger()
    assert not ledger["too_early"]
    assert (ledger["calls"]["status"], ledger["purchases_count"]) == (2, 2)


@pytest.mark.parametrize(
    "retry_after",
    [
        str(YEAR_S),
        "9" * 300,
        "Fri, 31 Dec 9999 23:59:59 GMT",
        lambda: formatdate(time.time() + YEAR_S, usegmt=True),
    ],
    ids=["a year", "for ever", "the end of time", "a date in a year"],
)
def test_retry_after_beyond_the_budget_ends_the_retries(hook: EitherHook, sandbox: Sandbox, retry_after: Any) -> None:
    request_id = hook("submit", MODEL, INPUTS).request_id
    asked = retry_after() if callable(retry_after) else retry_after
    for call in ("status", "result", "cancel", "submit"):
        sandbox.add_fault(call, "overloaded", retry_after=asked, count=1)
    for method, *args in (("get_status", request_id), ("get_result", request_id), ("submit", MODEL, INPUTS)):
        with pytest.raises(WanTransientError, match="asks to wait"):
            hook(method, *args)
    ledger = sandbox.ledger()
    assert not ledger["too_early"]
    assert ledger["calls"] == {"submit": 2, "status": 1, "result": 1}


def test_retry_after_date_uses_our_clock_without_a_date_header(
    monkeypatch: pytest.MonkeyPatch, hook: EitherHook
) -> None:
    in_a_year = formatdate(time.time() + YEAR_S, usegmt=True)
    answer = reply(b"{}", "429 Too Many Requests", Retry_After=in_a_year)
    with RawServer(lambda sock: sock.sendall(answer) if read_request(sock) else None) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url))
        with pytest.raises(WanTransientError, match="asks to wait"):
            EitherHook(hook.kind)("get_status", "abc")
        assert wire.connections == 1


def test_pacer_spreads_calls_evenly() -> None:
    pacer = Pacer(0.1)
    delays = [pacer.reserve() for _ in range(5)]
    assert delays[0] == 0
    assert all(place * 10 - 5 < delay <= place * 10 for place, delay in enumerate(delays))
    assert [Pacer(None).reserve() for _ in range(3)] == [0, 0, 0]


def test_one_limit_holds_for_all_hooks_of_a_connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = connection(sandbox.url, requests_per_second=40)
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", limited)
    monkeypatch.setenv("AIRFLOW_CONN_WAN_OTHER", limited)
    settings = WanHook().settings
    assert pacer_of(settings) is pacer_of(WanHook().settings)
    assert pacer_of(settings) is not pacer_of(WanHook("wan_other").settings)
    request_id = EitherHook("sync")("submit", MODEL, INPUTS).request_id
    # The server lets a burst of a second's worth pass; 60 calls at once would be too many.
    sandbox.control("account", {"requests_per_second": 42})
    hooks = [EitherHook(kind) for kind in (*KINDS, *KINDS)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda hook: [hook("get_status", request_id) for _ in range(15)], hooks))
    ledger = sandbox.ledger()
    assert (ledger["calls"]["status"], ledger["refusals"]) == (60, [])


def test_async_hooks_of_a_loop_share_their_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_alive(sock: Any) -> None:
        while True:
            read_request(sock)
            sock.sendall(reply(b'{"request_id": "a", "status": "in_progress"}', Connection="keep-alive"))

    async def two_hooks() -> None:
        async with WanAsyncHook(retry=QUICK) as first:
            await first.get_status("a")
            async with WanAsyncHook(retry=QUICK) as second:
                await second.get_status("a")
            await first.get_status("a")

    with RawServer(keep_alive) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url))
        asyncio.run(two_hooks())
        assert wire.connections == 1
        asyncio.run(two_hooks())  # another loop has its own
        assert wire.connections == 2


def test_cancelled_wait_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a loop are limited to so many at once; a trigger is cancelled in the middle of one."""
    monkeypatch.setattr(wan_async, "_CALLS_AT_ONCE", 3)
    asked = threading.Semaphore(0)

    def answer_last(sock: Any) -> None:
        if b"/last/" in read_request(sock):
            sock.sendall(reply(b'{"request_id": "last", "status": "in_progress"}'))
        else:
            asked.release()
            sock.recv(1)  # until the client is gone

    async def taken_away() -> None:
        async with WanAsyncHook(retry=QUICK) as hook:
            stuck = [asyncio.create_task(hook.get_status(f"stuck-{number}")) for number in range(3)]
            for _ in stuck:
                await asyncio.to_thread(asked.acquire)
            last = asyncio.create_task(hook.get_status("last"))
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
            assert (await last).word == "in_progress"

    with RawServer(answer_last) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url))
        asyncio.run(taken_away())


def test_submit_always_uses_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_after_one(sock: Any) -> None:
        request = read_request(sock)
        body = b'{"request_id": "a", "status": "in_progress"}'
        sock.sendall(reply(body, Connection="keep-alive"))
        if request.startswith(b"GET"):
            sock.recv(1)  # keeps it open until the client uses it again, and then is gone

    with RawServer(leave_after_one) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url))
        hook = EitherHook("sync")
        hook("get_status", "a")
        hook("submit", MODEL, INPUTS)
        assert wire.connections == 2
