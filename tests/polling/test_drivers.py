# SPDX-License-Identifier: Apache-2.0
"""Waits against a sandbox, in a worker and in a triggerer: only the end of its request or the deadline ends a
wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanRefusedError
from airflow_provider_wan.hooks.wan import WanAsyncHook, WanHook
from airflow_provider_wan.polling import drivers
from airflow_provider_wan.polling.drivers import wait_in_triggerer, wait_in_worker
from airflow_provider_wan.polling.wait import Over, RequestWait
from tests.durable.submission_support import connect
from tests.sandboxes import INPUTS, MODEL
from wan_sandbox.server import Sandbox

LOG = logging.getLogger("tests.waiting")
LOOPS = ["worker", "triggerer"]


@pytest.fixture(autouse=True)
def _connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, sandbox, timeout=0.5, not_found_patience=0.1)


@pytest.fixture
def quick_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less after an error than in life; Retry-After stays what it is."""
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.02")


def buy(prompt: str = "wait for me") -> str:
    return WanHook().submit(MODEL, {**INPUTS, "prompt": prompt}).request_id


def wait_for(request_id: str, *, loop: str, seconds: float = 60, **options: Any) -> Over:
    deadline = time.time() + seconds
    wait = RequestWait(request_id, deadline=deadline, poll_interval_s=0.05, **options)

    if loop == "triggerer":
        return asyncio.run(wait_in_triggerer("wan_default", wait, LOG))
    over = wait_in_worker(WanHook(), wait, LOG, stop=threading.Event())
    assert over is not None
    return over


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
def test_wait_ends_with_the_outcome_of_its_request(sandbox: Sandbox, loop: str, end: str) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request_id = buy()
    sandbox.control(f"requests/{request_id}", {"state": end})
    over = wait_for(request_id, loop=loop)
    assert over.outcome == end
    assert (over.error is None) == (end == "succeeded")


TROUBLES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("a queue that never moves", "generation", "stuck_queue", {}),
    ("a generation that never ends", "generation", "stuck_running", {}),
    ("a word that nobody knows", "status", "word", {"word": "pondering"}),
    ("a result that never comes", "result", "not_ready", {}),
    ("a result that stays early", "result", "pending", {}),
    ("a socket that hangs", "status", "hang", {}),
    ("an answer that drips", "status", "drip", {"every_s": 0.2}),
    ("a Retry-After of a year", "status", "status", {"status": 429, "retry_after": 31_536_000}),
    ("a Retry-After that is a date far off", "status", "status",
     {"status": 503, "retry_after": "Fri, 31 Dec 2199 23:59:59 GMT"}),
    ("an outage", "status", "status", {"status": 500}),
    ("a proxy's page", "status", "html", {}),
    ("another account's 403", "status", "other_user", {}),
    ("a token that is not taken", "status", "unauthorized", {}),
    ("a 404 of somebody else", "status", "not_found_html", {}),
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
def test_nothing_is_waited_for_beyond_the_deadline(sandbox: Sandbox, loop: str) -> None:
    requests = {}
    for name, call, fault, params in TROUBLES:
        if call == "generation":
            sandbox.add_fault(call, fault, prompt_contains=name, **params)
        requests[name] = buy(name)
        if call != "generation":
            sandbox.add_fault(call, fault, request_id=requests[name], **params)
    with ThreadPoolExecutor(len(TROUBLES)) as pool:
        ends = list(pool.map(lambda request_id: wait_for(request_id, loop=loop, seconds=1.5), requests.values()))
    assert {name: over.outcome for name, over in zip(requests, ends, strict=True)} == dict.fromkeys(requests, "timeout")
    for request_id, over in zip(requests.values(), ends, strict=True):
        assert request_id in str(over.error)
    assert sandbox.ledger()["too_early"] == []
    assert len(sandbox.ledger()["purchases"]) == len(TROUBLES)


@pytest.mark.parametrize("loop", LOOPS)
def test_deadline_in_the_past_still_polls_once(sandbox: Sandbox, loop: str) -> None:
    """The triggerer was down past the deadline; the paid video may be ready."""
    assert wait_for(buy(), loop=loop, seconds=-3600).outcome == "succeeded"
    sandbox.control("speed", {"generation_seconds": 3600})
    assert wait_for(buy(), loop=loop, seconds=-3600).outcome == "timeout"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_token_that_is_rotated_meanwhile_loses_nothing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    request_id = buy()
    sandbox.add_fault("status", "word", word="in_progress", count=3)
    sandbox.control("tokens", {"add": "the-next-token", "revoke": sandbox.token})
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.02")

    def rotate() -> None:
        while sandbox.ledger()["calls"].get("status", 0) < 2:
            time.sleep(0.01)
        renewed = {"conn_type": "wan", "host": sandbox.url, "password": "the-next-token"}
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", json.dumps(renewed))

    rotation = threading.Thread(target=rotate)
    rotation.start()
    over = wait_for(request_id, loop=loop)
    rotation.join()
    assert over.outcome == "succeeded"
    assert any(refusal["code"] == 400004 for refusal in sandbox.ledger()["refusals"])


@pytest.mark.usefixtures("quick_errors")
@pytest.mark.parametrize("loop", LOOPS)
def test_request_is_missing_after_three_404s(sandbox: Sandbox, loop: str) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    request_id = buy()
    sandbox.add_fault("status", "not_found", count=2)
    sandbox.add_fault("status", "word", word="in_progress", count=1)
    sandbox.add_fault("status", "not_found")
    over = wait_for(request_id, loop=loop)
    assert over.outcome == "gone"
    assert sandbox.ledger()["calls"]["status"] >= 6


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fault", ["other_user", "malformed_id"])
def test_mistyped_id_is_reported_at_once(sandbox: Sandbox, loop: str, fault: str) -> None:
    sandbox.add_fault("status", fault)
    over = wait_for("req-typo", loop=loop, is_known=False)
    assert over.outcome == "refused"
    assert isinstance(over.error, WanRefusedError)
    assert "req-typo" in str(over.error)
    assert sandbox.ledger()["calls"]["status"] == 1


@pytest.mark.usefixtures("quick_errors")
@pytest.mark.parametrize("loop", LOOPS)
def test_an_id_that_was_seen_is_not_mistyped(sandbox: Sandbox, loop: str) -> None:
    request_id = buy()
    sandbox.add_fault("status", "word", word="in_progress", count=1)
    sandbox.add_fault("status", "other_user", count=3)
    assert wait_for(request_id, loop=loop, is_known=False).outcome == "succeeded"


def test_wait_in_a_worker_ends_when_it_is_stopped(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    stop = threading.Event()
    stop.set()
    wait = RequestWait(buy(), deadline=time.time() + 60, poll_interval_s=None)
    assert wait_in_worker(WanHook(), wait, LOG, stop=stop) is None


@pytest.mark.usefixtures("quick_errors")
def test_a_secrets_backend_that_is_out_is_waited_out(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = buy()
    connection = os.environ["AIRFLOW_CONN_WAN_DEFAULT"]
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", '{"conn_type": "wan", "extra": "not JSON"}')
    back = threading.Timer(0.3, monkeypatch.setenv, ["AIRFLOW_CONN_WAN_DEFAULT", connection])
    back.start()
    assert wait_for(request_id, loop="triggerer").outcome == "succeeded"
    back.join()


# -- a storm -----------------------------------------------------------------------------------------------

REQUESTS = 200
STORM: list[tuple[str, dict[str, Any]]] = [
    ("status", {"status": 429, "retry_after": 1}),
    ("status", {"status": 500}),
    ("status", {"status": 502, "body": "html"}),
    ("status", {"status": 503, "retry_after": 1}),
    ("hang", {"seconds": 0.3}),
    ("reset", {}),
    ("html", {}),
    ("cut_json", {}),
]


@pytest.mark.usefixtures("quick_errors")
def test_a_storm_loses_nothing_and_buys_nothing_twice(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 % of all polls fail; 180 requests wait in a triggerer, and 20 in workers."""
    connect(monkeypatch, sandbox, timeout=5)
    sandbox.control("account", {"concurrency": 50})
    sandbox.control("speed", {"generation_seconds": 0.3})
    with ThreadPoolExecutor(8) as pool:
        requests = list(pool.map(lambda number: buy(f"storm {number}"), range(REQUESTS)))
    share = 1 - 0.7 ** (1 / len(STORM))
    for call in ("status", "result"):
        for fault, params in STORM:
            sandbox.add_fault(call, fault, rate=share, **params)

    async def in_triggerer(ids: list[str]) -> list[Over]:
        waits = [RequestWait(i, deadline=time.time() + 120, poll_interval_s=0.3) for i in ids]
        return await asyncio.gather(*(wait_in_triggerer("wan_default", wait, LOG) for wait in waits))

    with ThreadPoolExecutor(20) as pool:
        in_workers = [pool.submit(wait_for, request_id, loop="worker", seconds=120) for request_id in requests[:20]]
        ends = asyncio.run(in_triggerer(requests[20:]))
        ends += [future.result() for future in in_workers]

    assert [over.outcome for over in ends] == ["succeeded"] * REQUESTS
    ledger = sandbox.ledger()
    assert len(ledger["purchases"]) == ledger["submits_seen"] == REQUESTS
    assert ledger["too_early"] == []
    assert ledger["cancels"] == []
    hits = {name: count for name, count in ledger["faults"].items() if name.startswith(("status:", "result:"))}
    polls = ledger["calls"]["status"] + ledger["calls"]["result"]
    assert 0.2 < sum(hits.values()) / polls < 0.4
    assert len({name.partition(":")[2] for name in hits}) == 5, hits


# -- the shared set of a triggerer -------------------------------------------------------------------------


def triggerer_wait(request_id: str, log: logging.Logger = LOG, **options: Any) -> asyncio.Task[Over]:
    wait = RequestWait(
        request_id, **{"deadline": time.time() + 60, "poll_interval_s": 0.05, "is_known": True, **options}
    )
    return asyncio.create_task(wait_in_triggerer("wan_default", wait, log))


def test_a_slow_a_failing_and_a_cancelled_wait_do_not_disturb_the_others(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    slow, failing, cancelled, *good = [buy(f"wait {number}") for number in range(8)]
    sandbox.add_fault("status", "hang", request_id=slow)
    sandbox.add_fault("status", "status", request_id=failing, status=429, retry_after=31_536_000)

    def until_polled() -> None:
        while sandbox.ledger()["calls"].get("status", 0) < 8:
            time.sleep(0.01)

    async def together() -> list[Over]:
        bad = [triggerer_wait(request_id) for request_id in (slow, failing, cancelled)]
        waits = [triggerer_wait(request_id) for request_id in good]
        await asyncio.to_thread(until_polled)
        bad[2].cancel()
        for request_id in good:
            await asyncio.to_thread(sandbox.control, f"requests/{request_id}", {"state": "succeeded"})
        ends = await asyncio.gather(*waits)
        assert not any(task.done() for task in bad[:2])
        for task in bad:
            task.cancel()
        await asyncio.gather(*bad, return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the last one to leave stops the polls"
        return list(ends)

    assert [over.outcome for over in asyncio.run(together())] == ["succeeded"] * len(good)
    assert sandbox.ledger()["too_early"] == []
    assert sandbox.ledger()["cancels"] == []


def test_log_lines_are_written_in_the_task_of_their_own_trigger(sandbox: Sandbox) -> None:
    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="no trigger")
    lines: list[tuple[str, str]] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((current.get(), record.getMessage()))

    log = logging.getLogger("tests.drivers.recorded")
    log.setLevel(logging.INFO)
    log.addHandler(Recorder())
    requests = [buy(f"log {number}") for number in range(5)]

    async def one(request_id: str) -> None:
        current.set(request_id)
        await triggerer_wait(request_id, log)

    async def together() -> None:
        await asyncio.gather(*(one(request_id) for request_id in requests))

    asyncio.run(together())
    assert {where for where, _ in lines} == set(requests)
    assert all(where in line for where, line in lines)


def test_two_triggers_may_wait_for_one_request(sandbox: Sandbox) -> None:
    request_id = buy()

    async def together() -> list[Over]:
        return list(await asyncio.gather(triggerer_wait(request_id), triggerer_wait(request_id)))

    assert [over.outcome for over in asyncio.run(together())] == ["succeeded"] * 2


def test_learned_durations_outlive_the_last_wait(sandbox: Sandbox) -> None:
    async def one_after_another() -> None:
        for number in range(2):
            await triggerer_wait(buy(f"turn {number}"), submitted_at=time.time())
        (shared,) = drivers._shared[asyncio.get_running_loop()].values()
        assert shared.durations.is_known

    sandbox.control("speed", {"generation_seconds": 0.6})
    asyncio.run(one_after_another())


def test_a_wait_that_was_cancelled_ends_no_other_wait_at_its_deadline(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    first, second = buy("first"), buy("second")

    async def wait_for_both() -> Over:
        now = time.time()
        waits = [
            RequestWait(first, deadline=now + 0.6, poll_interval_s=0.05),
            RequestWait(second, deadline=now + 1.5, poll_interval_s=0.05),
        ]
        killed, other = (asyncio.ensure_future(wait_in_triggerer("wan_default", one, LOG)) for one in waits)
        await asyncio.sleep(0.2)
        killed.cancel()
        return await other

    assert asyncio.run(wait_for_both()).outcome == "timeout"


def test_a_wait_that_joins_while_the_last_one_leaves_is_woken_by_later_ones(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SlowToClose(WanAsyncHook):
        async def __aexit__(self, *exception: Any) -> None:
            await asyncio.sleep(0.5)
            await super().__aexit__(*exception)

    monkeypatch.setattr(drivers, "WanAsyncHook", SlowToClose)
    monkeypatch.setattr(drivers, "_LONGEST_SLEEP_S", 3600.0)  # nothing but a join wakes the set
    sandbox.control("speed", {"generation_seconds": 3600})
    ids = [buy(f"wave {number}") for number in range(3)]
    sandbox.control(f"requests/{ids[2]}", {"state": "succeeded"})

    async def play() -> Over:
        shared = drivers.SharedWaits("wan_default", drivers.DurationEstimate())

        def join(request_id: str) -> asyncio.Task[Over]:
            wait = RequestWait(request_id, deadline=time.time() + 3600, poll_interval_s=3600)
            return asyncio.ensure_future(shared.wait(wait, LOG))

        async def until_polled(polls: int) -> None:
            while sandbox.ledger()["calls"].get("status", 0) < polls:  # noqa: ASYNC110  # the ledger has no event
                await asyncio.sleep(0.05)

        first = join(ids[0])
        await until_polled(1)
        first.cancel()
        await asyncio.sleep(0)  # it is leaving, and waits for its polls to end
        second = join(ids[1])
        await asyncio.wait([first])
        await until_polled(2)
        try:
            return await asyncio.wait_for(join(ids[2]), 50)
        finally:
            second.cancel()
            await asyncio.wait([second])

    assert asyncio.run(play()).outcome == "succeeded"
