# SPDX-License-Identifier: Apache-2.0
"""Two hundred images through kills, outages and an empty balance: nothing is bought twice, and nothing is
lost.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_provider_wan.batch.report import MaxFailures, Report
from airflow_provider_wan.exceptions import WanBalanceError
from tests.batch.batch_support import addresses, connection, outcomes, purchases_per_image, run, videos
from wan_sandbox.server import Sandbox

IMAGES, KILLS = 200, 10
ROOT = Path(__file__).resolve().parents[2]
_GIVE_UP_S = 60.0


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    with Sandbox(
        speed=100,
        concurrency=20,
        video_bytes=20_000,
        check_images=False,
        buckets=("videos",),
        faults=("status:status:rate=0.1,status=503", "result:status:rate=0.1,status=502"),
    ) as started:
        for name, value in started.env().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(started, timeout=1))
        yield started


@pytest.fixture
def workers(sandbox: Sandbox) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.batch.batch_worker"],
        cwd=ROOT,
        env=dict(os.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as started:
        yield started
        started.kill()


def kill_worker_when(sandbox: Sandbox, workers: subprocess.Popen[str], seen: int, then_s: float) -> None:
    """Run a worker until so many submits were seen and a bit longer, then kill it."""
    assert workers.stdin is not None
    assert workers.stdout is not None
    workers.stdin.write(f"{IMAGES} dag/run/task/-1\n")
    workers.stdin.flush()
    worker = int(next(line for line in workers.stdout if line.strip().isdigit()))
    deadline = time.monotonic() + _GIVE_UP_S
    while sandbox.control("ledger?summary=1")["submits_seen"] < seen:
        assert time.monotonic() < deadline, f"fewer than {seen} submits in {_GIVE_UP_S:.0f} s"
        time.sleep(0.01)
    time.sleep(then_s)
    os.kill(worker, signal.SIGKILL)
    next(line for line in workers.stdout if line.strip() == "over")


def test_ten_kills_at_random_moments_buy_each_image_once(
    sandbox: Sandbox, workers: subprocess.Popen[str]
) -> None:
    moments = random.Random(20)
    for number in range(KILLS):
        seen = number * IMAGES // KILLS + moments.randrange(1, IMAGES // KILLS)
        kill_worker_when(sandbox, workers, seen, moments.random() * 0.3)

    report = run(addresses(IMAGES), max_failures=MaxFailures(share=1.0), deadline_s=300)
    assert report.error is None
    ended = outcomes(report)
    # A kill between a POST and its answer leaves a claim that only a person can settle; it is reported, not
    # resubmitted.
    assert ended["landed"] + ended["reused"] + ended["unknown"] == IMAGES
    assert ended["unknown"] <= KILLS * 8
    assert max(purchases_per_image(sandbox).values()) == 1
    assert len(videos()) == ended["landed"] + ended["reused"]

    purchases = len(sandbox.ledger()["purchases"])
    again = run(addresses(IMAGES), max_failures=MaxFailures(share=1.0))
    assert again.summary["unknown"] == ended["unknown"]
    assert len(sandbox.ledger()["purchases"]) == purchases


def test_two_runs_through_outages_and_an_empty_balance_buy_each_image_once(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No process dies here, so no claim has to expire soon; a short timeout would lose answers on a busy
    # machine.
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, timeout=60))
    images = addresses(IMAGES)
    sandbox.control("account", {"balance_usd": 20.0})  # for half of them
    sandbox.add_fault("bucket.*", "status", status=503, skip=250, count=25)

    def overlapping() -> list[Report]:
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(run, images, owner="dag/one/task/-1")
            other = pool.submit(run, images[::-1], owner="dag/other/task/-1")
            return [one.result(), other.result()]

    for report in overlapping():
        assert isinstance(report.error, WanBalanceError)
        ended = outcomes(report)
        assert ended["left"] > 0
        assert sum(ended.values()) == IMAGES
    sandbox.control("account", {"balance_usd": 1000.0})
    assert [report.error for report in overlapping()] == [None, None]
    assert purchases_per_image(sandbox) == dict.fromkeys(images, 1)
    assert len(videos()) == IMAGES

    again = run(images).summary
    assert again["reused"] + again["landed"] == IMAGES
    assert again["bought"] == 0
    assert len(sandbox.ledger()["purchases"]) == IMAGES
