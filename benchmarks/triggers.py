# SPDX-License-Identifier: Apache-2.0
"""Compare thousands of single waits in one process of triggers with a fixed poll over one shared session.

    python benchmarks/triggers.py [--requests 5000] [--concurrency 500] [--seconds 180]
    python benchmarks/triggers.py --concurrency 5000    # all of them start when the waits begin

5,000 requests of one account are in flight: ``--concurrency`` of them run, the others are queued, and each
takes 120 s (spread 0.25, as in the sandbox). With a concurrency below the number of requests, the account has
been busy for a quarter of an hour before. Two processes wait for all of them, each in its own way, at the
same time, so that a busy machine slows both down alike:

* ``fixed``: one coroutine per request polls every 5 s over one shared ``aiohttp`` session, and does nothing else;
* ``triggers``: one ``WanRequestTrigger`` per request, each in a task with what Airflow's triggerer provides, with
  ``poll_interval=4.9``; nothing has been learned before.

The servers are separate processes that know beforehand when each request ends, since a sandbox would need
more CPU than the clients. Both sides see the same requests. Loop lag is how much longer a sleep of 50 ms
takes; a block of one second counts as the twenty sleeps that it delays.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import heapq
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

GENERATION_S = 120.0
SPREAD = 0.25
POLL_S = 5.0
#: How long the account has been busy when the wait begins.
BUSY_FOR_S = 900.0
#: Shorter, and the measurement would mostly show its own wake-ups.
_TICK_S = 0.05


# -- the server ----------------------------------------------------------------------------------------------


@dataclass
class Account:
    """Requests in the order of submission, with starts and ends that are known beforehand.

    :param concurrency: how many run at a time.
    """

    requests: int
    concurrency: int
    began_at: float = 0.0
    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    noticed_at: dict[int, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=lambda: {"status": 0, "result": 0})

    def __post_init__(self) -> None:
        rng = random.Random(7)
        busy_for_s = BUSY_FOR_S if self.concurrency < self.requests else 0.0
        slots = [-busy_for_s + rng.random() * min(busy_for_s, GENERATION_S) for _ in range(self.concurrency)]
        heapq.heapify(slots)
        while len(self.starts) < self.requests:
            start = heapq.heappop(slots)
            end = start + GENERATION_S * math.exp(rng.gauss(0, SPREAD))
            heapq.heappush(slots, end)
            if end > 0:  # the others have ended
                self.starts.append(start)
                self.ends.append(end)

    def status(self, number: int) -> dict[str, Any]:
        now = time.monotonic() - self.began_at
        self.calls["status"] += 1
        if now < self.starts[number]:
            position = number - bisect.bisect_right(self.starts, now)
            return {"status": "in_queue", "queue_position": position}
        if now < self.ends[number]:
            return {"status": "in_progress"}
        self.noticed_at.setdefault(number, now)
        return {"status": "completed"}

    def result(self, number: int) -> dict[str, Any]:
        self.calls["result"] += 1
        video = f"https://files.runcomfy.net/{number}.mp4"
        return {"status": "succeeded", "output": {"video": video}, "cost": 0.2}

    def report(self) -> dict[str, Any]:
        """Return how late ends were noticed, without those of the last 10 s, which may still be noticed in
        time.
        """
        now = time.monotonic() - self.began_at
        over = [number for number, end in enumerate(self.ends) if end < now - 10]
        late = [self.noticed_at.get(number, now) - self.ends[number] for number in over]
        queued = len(self.starts) - bisect.bisect_right(self.starts, now)
        return {"calls": self.calls, "late": late, "queued": queued}


class MinimalHttp(asyncio.Protocol):
    """As little of HTTP as both clients need."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *heads, self.rest = (self.rest + data).split(b"\r\n\r\n")
        for head in heads:
            path = head.split(b" ", 2)[1].decode()
            body = json.dumps(self.answer(path.partition("?")[0])).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            self.transport.write(head + body)  # type: ignore[attr-defined]

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/begin":
            self.account.began_at = time.monotonic()
            return {}
        if path == "/report":
            return self.account.report()
        name, call = path.rsplit("/", 2)[-2:]
        number = int(name.removeprefix("r-"))
        state = self.account.status(number) if call == "status" else self.account.result(number)
        return {"request_id": name, **state}


async def serve(account: Account) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: MinimalHttp(account), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def running_server(options: argparse.Namespace) -> Iterator[str]:
    with subprocess.Popen(command("serve", options), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


# -- the two ways to wait ----------------------------------------------------------------------------------


async def fixed_poll(api: str, requests: int) -> None:
    import aiohttp

    headers = {"Authorization": "Bearer sandbox-token"}

    async def wait(number: int) -> None:
        await asyncio.sleep(POLL_S * number / requests)
        while True:
            async with http.get(f"{api}/v1/requests/r-{number}/status", headers=headers) as answer:
                seen = await answer.json()
            if seen["status"] == "completed":
                break
            await asyncio.sleep(POLL_S)
        async with http.get(f"{api}/v1/requests/r-{number}/result", headers=headers) as answer:
            await answer.json()

    async with aiohttp.ClientSession() as http:
        await asyncio.gather(*(wait(number) for number in range(requests)))


async def run_triggers(api: str, requests: int, *, is_new: bool) -> None:
    """Start them as ``TriggerRunner`` does: a task each, with a greenback portal and its log."""
    import greenback
    from structlog.contextvars import bind_contextvars

    from airflow_provider_wan.triggers.wan import WanRequestTrigger

    async def run_trigger(number: int, trigger: WanRequestTrigger) -> None:
        await greenback.ensure_portal()
        bind_contextvars(trigger_id=number, dag_id="dag", task_id="wait", run_id="run", map_index=number)
        async for _ in trigger.run():
            pass

    tasks = []
    began_at = time.time() if is_new else None
    for number in range(requests):
        await asyncio.sleep(0)
        trigger = WanRequestTrigger(
            wan_conn_id="wan_default",
            request_id=f"r-{number}",
            deadline=time.time() + 6 * 3600,
            poll_interval=0.98 * POLL_S,
            submitted_at=began_at,
        )
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(run_trigger(number, trigger)))
    await asyncio.gather(*tasks)


async def lag_of_loop(lags: list[float]) -> None:
    while True:
        planned = time.perf_counter() + _TICK_S
        await asyncio.sleep(_TICK_S)
        late = time.perf_counter() - planned
        while late > 0:  # every sleep that would have ended meanwhile was late as well
            lags.append(late)
            late -= _TICK_S


async def measure(way: Coroutine[Any, Any, None], seconds: float) -> dict[str, Any]:
    lags: list[float] = []
    cpu, started = time.process_time(), time.monotonic()
    watching = asyncio.create_task(lag_of_loop(lags))
    waiting = asyncio.create_task(way)
    await asyncio.wait([waiting], timeout=10.0)
    first_cpu, first_lags = time.process_time() - cpu, len(lags)
    await asyncio.wait([waiting], timeout=seconds - 10.0)
    wall = time.monotonic() - started
    got = {
        "cpu_s": time.process_time() - cpu,
        "first_cpu_s": first_cpu,
        "wall_s": wall,
        "lag_ms": percentiles(lags, 0.5, 0.99, scale=1000),
        "first_lag_ms": percentiles(lags[:first_lags], 0.5, 0.99, scale=1000),
        "later_lag_ms": percentiles(lags[first_lags:], 0.5, 0.99, scale=1000),
    }
    for task in (watching, waiting):
        task.cancel()
    for result in await asyncio.gather(watching, waiting, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    return got


def percentiles(values: list[float], *shares: float, scale: float = 1.0) -> list[float]:
    """Return the values at the common shares of the sorted list, and the largest."""
    ordered = sorted(values)
    return [scale * ordered[int(share * len(ordered))] for share in shares] + [scale * ordered[-1]]


def run_way(options: argparse.Namespace) -> dict[str, Any]:
    # Both import what they need before they are measured: a triggerer does so once.
    if options.way == "fixed":
        import aiohttp  # noqa: F401

        way = fixed_poll(options.api, options.requests)
    else:
        from airflow.sdk.log import configure_logging

        import airflow_provider_wan.polling.drivers
        import airflow_provider_wan.triggers.wan  # noqa: F401

        nowhere = open(os.devnull, "wb")  # noqa: SIM115
        configure_logging(json_output=True, output=nowhere, sending_to_supervisor=True)
        is_new = options.concurrency >= options.requests
        way = run_triggers(options.api, options.requests, is_new=is_new)
    urllib.request.urlopen(f"{options.api}/begin").read()
    got = asyncio.run(measure(way, options.seconds))
    with urllib.request.urlopen(f"{options.api}/report") as answer:
        return got | json.load(answer)


@contextlib.contextmanager
def waiting(way: str, options: argparse.Namespace) -> Iterator[subprocess.Popen[str]]:
    with running_server(options) as api:
        connection = {"conn_type": "wan", "host": api, "password": "sandbox-token"}
        env = {**os.environ, "AIRFLOW_CONN_WAN_DEFAULT": json.dumps(connection)}
        client = command(way, options, f"--api={api}")
        with subprocess.Popen(client, env=env, stdout=subprocess.PIPE, text=True) as process:
            yield process


# -- measurements --------------------------------------------------------------------------------------------


def command(way: str, options: argparse.Namespace, *more: str) -> list[str]:
    common = [f"--requests={options.requests}", f"--concurrency={options.concurrency}"]
    return [sys.executable, __file__, f"--way={way}", f"--seconds={options.seconds}", *common, *more]


def compare(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Print both ways, and return the measurements of each."""
    print(
        f"{options.requests} requests, {options.concurrency} at a time, {GENERATION_S:.0f} s each (spread {SPREAD}), "
        f"{options.seconds:.0f} s of it; an end is noticed within {POLL_S:.0f} s"
    )
    print("            CPU     of a core  calls/s   noticed after: median   95 %    max    loop lag: p50, p99, max")
    cpu, found = {}, {}
    with contextlib.ExitStack() as stack:
        waits = {way: stack.enter_context(waiting(way, options)) for way in ("fixed", "triggers")}
        ended = {way: process.communicate()[0] for way, process in waits.items()}
    for way, printed in ended.items():
        got = json.loads(printed.strip().splitlines()[-1])
        cpu[way] = got["cpu_s"]
        late = percentiles(got["late"], 0.5, 0.95)
        found[way] = {
            "cpu_s": got["cpu_s"],
            "calls": sum(got["calls"].values()),
            "median_s": late[0],
            "95_s": late[1],
        }
        print(
            f"  {way:9}{got['cpu_s']:5.1f} s{100 * got['cpu_s'] / got['wall_s']:10.1f} %"
            f"{got['calls']['status'] / got['wall_s']:9.0f}   {late[0]:18.2f} s {late[1]:6.2f} s {late[2]:6.2f} s"
            f"   {got['lag_ms'][0]:8.1f}, {got['lag_ms'][1]:.1f}, {got['lag_ms'][2]:.0f} ms"
        )
        print(
            f"           of which the first 10 s: {got['first_cpu_s']:.1f} s, "
            f"loop lag p99 {got['first_lag_ms'][1]:.1f} ms, later {got['later_lag_ms'][1]:.1f} ms; "
            f"{len(got['late'])} ended, "
            f"mean {statistics.fmean(got['late']):.2f} s; {got['queued']} still queued; {got['calls']}"
        )
    print(f"  CPU, triggers over fixed: {cpu['triggers'] / cpu['fixed']:.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=500, help="how many the account runs at a time")
    parser.add_argument("--seconds", type=float, default=180.0, help="seconds to measure")
    parser.add_argument("--check", action="store_true", help="fail where the fixed poll is better in anything")
    parser.add_argument("--way", choices=("serve", "fixed", "triggers"), help=argparse.SUPPRESS)
    parser.add_argument("--api", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way == "serve":
        asyncio.run(serve(Account(options.requests, options.concurrency)))
    elif options.way:
        print(json.dumps(run_way(options)))
    else:
        found = compare(options)
        fixed, ours = found["fixed"], found["triggers"]
        if options.check and not all(ours[figure] <= fixed[figure] for figure in fixed):
            sys.exit("A goal is missed: no more calls, CPU or delay than a fixed poll.")


if __name__ == "__main__":
    main()
