# SPDX-License-Identifier: Apache-2.0
"""The metrics of a batch over its waits and tries, as they arrive at a real StatsD port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_wan import metrics
from wan_sandbox.server import Sandbox

ROOT = Path(__file__).resolve().parents[2]

#: The first try stops at a limit with five purchases. The second needs several waits; the third has one more
#: image.
_TRIES = """
try:  # since 3.3 each part of Airflow switches its own stats on, a task's worker as here
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory
    stats.initialize(factory=get_stats_factory())
except (ImportError, AttributeError, TypeError):
    pass
import json
from tests.batch_runs import TaskInstance, run_try
from airflow_provider_wan import metrics
def mark(name):
    metrics.count("mark." + name)
images = [f"https://images.example.com/{number:03d}.jpg" for number in range(12)]
rows = [{"image": image} for image in images] + [{"image": "https://images.example.com/x.jpg", "resolution": "8K"}]
first = run_try(TaskInstance(), images=rows, max_requests=5, max_failures=5)
mark("first")
second = run_try(TaskInstance(), images=rows, max_failures=5, retries_per_image=1, resume_when_ready=2)
mark("second")
more = [*rows, {"image": "https://images.example.com/lost.jpg"}]
third = run_try(TaskInstance(), images=more, max_failures=5)
print("TOLD" + json.dumps([len(second.triggers), second.summary, third.summary]))
"""


@pytest.fixture
def sandbox(queueing_sandbox: Sandbox) -> Sandbox:
    return queueing_sandbox


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        opened.bind(("127.0.0.1", 0))
        yield opened


def by_try(port: socket.socket) -> list[Counter[str]]:
    """Return the sums of each try; for a timer, how often it was sent."""
    port.setblocking(False)
    tries = [Counter[str]()]
    try:
        while True:
            name, _, value = port.recv(65536).decode().partition(":")
            name = name.removeprefix("airflow.")
            if name.startswith("mark."):
                tries.append(Counter())
                continue
            number, _, kind = value.partition("|")
            tries[-1][name] += float(number) if kind.startswith("c") else 1
    except BlockingIOError:
        return tries


def metrics_of(code: str, port: socket.socket) -> list[Counter[str]]:
    """Run code in its own process that sends its metrics to the port; return the metrics of each try."""
    settings = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(port.getsockname()[1])}
    env = {**os.environ, **{f"AIRFLOW__METRICS__{name}": value for name, value in settings.items()}}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return by_try(port)


def test_each_event_of_a_batch_is_counted_once_over_waits_and_tries(sandbox: Sandbox, port: socket.socket) -> None:
    pytest.importorskip("statsd")
    sandbox.add_fault("generation", "fail", img_url_contains="007.jpg", count=1)
    sandbox.add_fault("generation", "fail", img_url_contains="008.jpg")
    sandbox.add_fault("submit", "no_id", img_url_contains="lost.jpg", count=1)
    first, second, third = metrics_of(_TRIES, port)

    assert first[metrics.SUBMITTED] == first[metrics.LANDED_VIDEOS] == 5
    assert second[metrics.REUSED] == 5
    assert second[metrics.SUBMITTED] == 9  # the remaining seven, and two that failed once
    assert second[metrics.FAILED] == 3
    assert second[metrics.LANDED_VIDEOS] == second[metrics.SUCCEEDED] == second[metrics.LANDING] == 6
    assert second[metrics.LANDED_BYTES] == 6 * 20_000
    assert second[metrics.COST_USD] == pytest.approx(6 * 0.2)
    assert second[metrics.TURNAROUND] == 6
    assert 1 <= second[metrics.QUEUED] == second[metrics.GENERATING] <= 6
    assert third[metrics.SUBMITTED] == 1  # an image that failed for good is bought again by the next try
    assert (
        third[metrics.UNKNOWN] == 1
    )  # its answer was lost: it may have been purchased, and is not counted as submitted
    assert third[metrics.REUSED] == 11
    bought = len(sandbox.ledger()["purchases"])
    assert bought == sum(one[metrics.SUBMITTED] + one[metrics.UNKNOWN] for one in (first, second, third))
    assert [one[metrics.REFUSED] for one in (second, third)] == [1, 1]


def test_try_that_takes_over_counts_the_requests_it_adopts(sandbox: Sandbox, port: socket.socket) -> None:
    pytest.importorskip("statsd")
    code = _TRIES[: _TRIES.index("rows = ")] + (
        "from tests.batch_runs import operator\n"
        "from wan_sandbox.server import call\n"
        f"speed = '{sandbox.url}/_sandbox/speed'\n"
        "call(speed, {'generation_seconds': 1000, 'speed': 1})\n"
        "from airflow.providers.common.compat.sdk import TaskDeferred\n"
        "try:\n    operator(images=images).execute({'ti': TaskInstance()})\nexcept TaskDeferred:\n    mark('first')\n"
        "call(speed, {'speed': 1000})\n"
        "assert run_try(TaskInstance(), images=images).error is None\n"
    )
    first, second = metrics_of(code, port)
    assert first[metrics.SUBMITTED] == second[metrics.ADOPTED] == 6
    assert second[metrics.SUBMITTED] == 6
    assert second[metrics.SUCCEEDED] == second[metrics.LANDED_VIDEOS] == 12
    assert len(sandbox.ledger()["purchases"]) == 12
