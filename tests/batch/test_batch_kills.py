# SPDX-License-Identifier: Apache-2.0
"""Batches through kills, outages and an empty balance: nothing is bought twice, and nothing is lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.batch.report import Report
from airflow_provider_wan.batch.results import MaxFailures
from airflow_provider_wan.exceptions import WanBalanceError
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.model_api.fingerprints import take_of
from airflow_provider_wan.model_api.video_spec import make_video_spec
from airflow_provider_wan.utils.params import DEFAULT_MODEL_ID
from tests.batch.batch_support import (
    addresses,
    bad_first_take,
    connection,
    manifest,
    outcomes,
    point_at,
    purchases_per_image,
    run,
    videos,
)
from wan_sandbox.server import Sandbox

IMAGES, KILLS = 200, 10
REJECT_FIRST = VideoChecks((bad_first_take,), "reject")
ROOT = Path(__file__).resolve().parents[2]
_GIVE_UP_S = 240.0


class Workers:
    """Starts batches in processes of their own, which share no files with this one.

    :param importer: a process of ``batch_worker``, which has imported everything.
    :param env: environment variables of the workers.
    """

    def __init__(self, importer: subprocess.Popen[str], env: dict[str, str]) -> None:
        assert importer.stdin is not None
        assert importer.stdout is not None
        self._orders, self._answers = importer.stdin, importer.stdout
        self._env = env
        self._running: int | None = None

    def start(self, images: int, rebuys: int = 0) -> int:
        """Start a batch in a worker; return its process id."""
        order = {"images": images, "owner": "dag/run/task/-1", "rebuys": rebuys, "env": self._env}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        self._running = int(next(line for line in self._answers if line.strip().isdigit()))
        return self._running

    def kill(self) -> None:
        """Kill the worker if it runs, and wait until it has ended."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)
            next(line for line in self._answers if line.strip() == "over")
            self._running = None


@pytest.fixture(scope="module")
def faulty_sandbox() -> Iterator[Sandbox]:
    settings = {"speed": 100, "concurrency": 20, "video_bytes": 20_000, "check_images": False}
    with Sandbox(**settings, buckets=("videos",)) as started:
        yield started


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, faulty_sandbox: Sandbox) -> Sandbox:
    """A sandbox, and a connection to it whose timeout is the parameter in seconds, default 1: a claim lasts as long."""
    faulty_sandbox.reset()
    faulty_sandbox.add_fault("status", "status", rate=0.1, status=503)
    faulty_sandbox.add_fault("result", "status", rate=0.1, status=502)
    point_at(monkeypatch, faulty_sandbox, timeout=getattr(request, "param", 1))
    return faulty_sandbox


@pytest.fixture(scope="module")
def importer() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.batch.batch_worker"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as started:
        yield started
        started.kill()


@pytest.fixture
def workers(importer: subprocess.Popen[str], sandbox: Sandbox, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(importer, {name: os.environ[name] for name in sandbox.env()} | {"TMPDIR": str(tmp_path)})
    yield started
    started.kill()


def until(is_time: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _GIVE_UP_S
    while not is_time():
        assert time.monotonic() < deadline, f"the moment of the kill did not come in {_GIVE_UP_S:.0f} s"
        time.sleep(0.01)


def has_ended(worker: int) -> bool:
    try:
        os.kill(worker, 0)
    except ProcessLookupError:
        return True
    return False


def kill_worker_when(
    workers: Workers,
    is_time: Callable[[], bool],
    then_s: float = 0.0,
    *,
    images: int = IMAGES,
    rebuys: int = 0,
) -> None:
    """Run a worker until it is time and a bit longer, then kill it, unless it has ended before."""
    worker = workers.start(images, rebuys)
    until(lambda: is_time() or has_ended(worker))
    time.sleep(then_s)
    workers.kill()


def submits_seen(sandbox: Sandbox, count: int) -> Callable[[], bool]:
    """Return whether the sandbox has seen so many submits, when it is called."""
    return lambda: sandbox.control("ledger?summary=1")["submits_seen"] >= count


def has_hit(sandbox: Sandbox, rule: Any) -> Callable[[], bool]:
    """Return whether a fault has happened, when it is called."""
    return lambda: any(each["id"] == rule and each["hits"] for each in sandbox.control("faults")["faults"])


def test_ten_kills_at_random_moments_buy_each_image_once(sandbox: Sandbox, workers: Workers) -> None:
    moments = random.Random(20)
    for number in range(KILLS):
        # Each kill can leave claims whose request was never sent, so there may be fewer submits in the end.
        seen = number * IMAGES // KILLS + moments.randrange(1, IMAGES // KILLS)
        kill_worker_when(workers, submits_seen(sandbox, seen), moments.random() * 0.3)

    report = run(addresses(IMAGES), max_failures=MaxFailures(share=1.0))
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


def takes_per_image(sandbox: Sandbox) -> Counter[tuple[str, int | None]]:
    """Return how often each take of each image was bought: each has a seed of its own."""
    purchases = sandbox.ledger()["purchases"]
    return Counter((each["img_url"], each["inputs"].get("seed")) for each in purchases)


@pytest.mark.parametrize("moment", ["before the verdict is in the journal", "before the next take is claimed"])
def test_a_kill_between_verdict_and_next_purchase_loses_nothing_and_buys_nothing_twice(
    moment: str, sandbox: Sandbox, workers: Workers
) -> None:
    first = make_video_spec(DEFAULT_MODEL_ID, {"prompt": "waves", "img_url": addresses(1)[0]}).fingerprint
    _, second = take_of(first, 2)
    name, skip = (first, 2) if moment == "before the verdict is in the journal" else (second, 0)
    hangs = sandbox.add_fault("bucket.upload", "hang", object_contains=name, skip=skip)
    kill_worker_when(workers, has_hit(sandbox, hangs), images=1, rebuys=1)
    sandbox.clear_faults()
    assert list(takes_per_image(sandbox).values()) == [1]
    for _ in range(2):
        report = run(addresses(1), checks=REJECT_FIRST, rebuy_rejected=1)
        assert outcomes(report) == {"landed": 1}
        assert (report.summary["further_takes"], report.summary["bought"]) == (1, 2)
    assert list(takes_per_image(sandbox).values()) == [1, 1]


def test_kills_at_random_moments_buy_each_take_once(sandbox: Sandbox, workers: Workers) -> None:
    images, kills, moments = 24, 5, random.Random(4)
    for number in range(kills):
        seen = number * 6 + moments.randrange(1, 6)  # of at least 30, with some that end as unknown
        kill_worker_when(workers, submits_seen(sandbox, seen), moments.random() * 0.3, images=images, rebuys=1)
    report = run(
        addresses(images),
        checks=REJECT_FIRST,
        rebuy_rejected=1,
        max_failures=MaxFailures(share=1.0),
        deadline_s=300,
    )
    assert report.error is None
    ended = outcomes(report)
    assert ended["landed"] + ended["unknown"] == images
    assert ended["unknown"] <= kills * 8
    assert max(takes_per_image(sandbox).values()) == 1
    assert max(purchases_per_image(sandbox).values()) == 2
    assert len(videos(prefix="out/_rejected/")) == len([line for line in manifest(report) if line["takes"]])
    submits = len(sandbox.ledger()["submits"])
    assert submits <= report.summary["bought"] <= submits + ended["unknown"]


@dataclass(frozen=True)
class Eviction:
    """An eviction of a pod: SIGTERM, and SIGKILL after a grace period.

    :param at: the call at which it is told to end, and the fault that holds this call; None: while it submits.
    :param most_unknown: images whose submit may have an unknown outcome afterwards.
    """

    grace_s: float
    most_unknown: int
    at: tuple[str, str] | None = None


@pytest.mark.parametrize(
    ("sandbox", "eviction"),
    [
        pytest.param(60, Eviction(_GIVE_UP_S, most_unknown=0), id="with enough grace"),
        pytest.param(1, Eviction(0.2, 8, ("submit", "hang_after")), id="while a POST is in flight"),
        pytest.param(1, Eviction(0.2, 8, ("media", "stall")), id="while a video is downloaded"),
    ],
    indirect=["sandbox"],
)
def test_evicted_pod_buys_each_image_once_and_its_successor_lands_them(
    sandbox: Sandbox, workers: Workers, tmp_path: Path, eviction: Eviction
) -> None:
    images = addresses(30)
    is_time = submits_seen(sandbox, len(images) // 2)
    if eviction.at is not None:
        is_time = has_hit(sandbox, sandbox.add_fault(*eviction.at, count=1))
    worker = workers.start(len(images))
    until(is_time)
    os.kill(worker, signal.SIGTERM)
    killed_at = time.monotonic() + eviction.grace_s
    while Path(f"/proc/{worker}").exists() and time.monotonic() < killed_at:
        time.sleep(0.01)
    assert eviction.at is not None or not Path(f"/proc/{worker}").exists(), "it ends within its grace"
    workers.kill()
    bought_before = set(purchases_per_image(sandbox))
    assert bought_before
    assert list(tmp_path.iterdir()) == []

    report = run(images, max_failures=MaxFailures(share=1.0))

    unknown = {line["image"] for line in manifest(report) if line["outcome"] == "unknown"}
    assert report.error is None
    assert len(unknown) <= eviction.most_unknown
    assert outcomes(report)["landed"] + outcomes(report)["reused"] == len(images) - len(unknown) == len(videos())
    assert bought_before - unknown <= set(purchases_per_image(sandbox))
    assert set(purchases_per_image(sandbox).values()) == {1}


def test_two_runs_through_outages_and_an_empty_balance_buy_each_image_once(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No process dies here, so no claim has to expire soon; a short timeout would lose answers on a busy
    # machine.
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, timeout=60))
    images = addresses(60)
    sandbox.control("account", {"balance_usd": 6.0})  # for half of them
    sandbox.add_fault("bucket.*", "status", status=503, skip=100, count=25)

    def overlapping() -> list[Report]:
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(run, images, owner="dag/one/task/-1")
            other = pool.submit(run, images[::-1], owner="dag/other/task/-1")
            return [one.result(), other.result()]

    for report in overlapping():
        assert isinstance(report.error, WanBalanceError)
        ended = outcomes(report)
        assert ended["left"] > 0
        assert sum(ended.values()) == len(images)
    sandbox.control("account", {"balance_usd": 1000.0})
    assert [report.error for report in overlapping()] == [None, None]
    assert purchases_per_image(sandbox) == dict.fromkeys(images, 1)
    assert len(videos()) == len(images)

    again = run(images).summary
    assert again["reused"] + again["landed"] == len(images)
    assert again["bought"] == 0
    assert len(sandbox.ledger()["purchases"]) == len(images)
