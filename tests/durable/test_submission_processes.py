# SPDX-License-Identifier: Apache-2.0
"""Processes that race for the same video, and processes that are killed around the POST."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.exceptions import WanUnknownSubmissionError
from tests.durable import racing_worker
from tests.durable.submission_support import a_video, bucket_journal, connect, submission
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

ROUNDS = 40


def test_two_processes_that_claim_at_once_buy_once_in_each_round(sandbox: Sandbox, bucket: Bucket) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    fresh = multiprocessing.get_context("spawn")  # a fork would copy the sandbox's thread
    barrier, results = fresh.Barrier(2), fresh.Queue()
    racers = [fresh.Process(target=racing_worker.race, args=(barrier, ROUNDS, results)) for _ in range(2)]
    for racer in racers:
        racer.start()
    one, other = results.get(timeout=120), results.get(timeout=120)
    for racer in racers:
        racer.join()

    bought = [purchase["prompt"] for purchase in sandbox.ledger()["purchases"]]
    assert sorted(bought) == sorted(f"round {number}" for number in range(ROUNDS))
    assert sandbox.ledger()["submits_seen"] == ROUNDS
    assert [request_id for request_id, _ in one] == [request_id for request_id, _ in other]
    ways = {tuple(sorted((first[1], second[1]))) for first, second in zip(one, other, strict=True)}
    assert ways == {("adopted", "submitted")}


def until(holds: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


class Killed:
    """A worker with several videos on their way, killed when each is stuck at a point of its own."""

    def __init__(self, sandbox: Sandbox, bucket: Bucket, output: Path) -> None:
        self._bucket = bucket
        for prompt, call, fault, more in (
            ("before the POST", "bucket.upload", "hang_after", {"count": 1}),
            ("POST not processed", "submit", "hang", {}),
            ("POST processed", "submit", "hang_after", {}),
            ("id not written", "bucket.upload", "hang", {"skip": 1, "count": 1}),
            ("id written", "bucket.upload", "hang_after", {"skip": 1, "count": 1}),
        ):
            about = "object_contains" if call == "bucket.upload" else "prompt_contains"
            sandbox.add_fault(
                call, fault, **{about: a_video(prompt).fingerprint if "object" in about else prompt}, **more
            )
        with open(output, "w") as log:
            worker = subprocess.Popen(
                [sys.executable, racing_worker.__file__, *POINTS],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            )
        try:
            until(lambda: len(bucket.objects("_journal/")) == 5, "five claims")
            until(lambda: sandbox.ledger()["submits_seen"] == 4, "four POSTs")
            until(lambda: self.stage("id written") == "submitted", "the id is written")
            until(lambda: output.read_text().count("request_id=") == 2, "two ids in the log")
        finally:
            worker.kill()
            worker.wait()
        sandbox.clear_faults()

    def stage(self, prompt: str) -> str:
        name = f"_journal/{a_video(prompt).fingerprint}.json"
        return str(self._bucket.objects("_journal/").get(name, {}).get("metadata", {}).get("stage"))


#: Where the worker dies -> (bought, stage that it leaves in the journal)
POINTS = {
    "before the POST": (False, Stage.INTENT),
    "POST not processed": (False, Stage.INTENT),
    "POST processed": (True, Stage.INTENT),
    "id not written": (True, Stage.INTENT),
    "id written": (True, Stage.SUBMITTED),
}


def test_a_killed_worker_leaves_one_purchase_or_an_unknown_one(
    sandbox: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sandbox.control("speed", {"generation_seconds": 3600})
    connect(monkeypatch, sandbox, timeout=20)
    killed = Killed(sandbox, bucket, tmp_path / "worker.log")
    assert {prompt: killed.stage(prompt) for prompt in POINTS} == {p: str(stage) for p, (_, stage) in POINTS.items()}
    bought = {purchase["prompt"]: purchase["request_id"] for purchase in sandbox.ledger()["purchases"]}
    assert set(bought) == {prompt for prompt, (was_bought, _) in POINTS.items() if was_bought}

    # Twice a connect and an answer: the next tries do not wait for the dead process.
    monkeypatch.setattr("airflow_provider_wan.durable.submission.CLAIM_MARGIN_S", -4 * 20.0)

    def again(prompt: str, **resolve: str) -> Any:
        video = a_video(prompt)
        try:
            settled = {video.fingerprint: resolve["settled"]} if resolve else None
            return submission(bucket_journal(), resolve=settled).obtain(video).request_id
        except WanUnknownSubmissionError as error:
            return error

    with ThreadPoolExecutor() as pool:
        second_tries = dict(zip(POINTS, pool.map(again, POINTS), strict=True))
    assert second_tries.pop("id written") == bought["id written"]
    assert all(isinstance(outcome, WanUnknownSubmissionError) for outcome in second_tries.values())
    assert sandbox.ledger()["submits_seen"] == 4, "nothing was sent again"

    # A person looks at the Generations page and settles each.
    settled = {prompt: again(prompt, settled=bought.get(prompt, "resubmit")) for prompt in second_tries}
    now_bought = {purchase["prompt"]: purchase["request_id"] for purchase in sandbox.ledger()["purchases"]}
    assert len(sandbox.ledger()["purchases"]) == len(POINTS) == len(now_bought)
    assert {**settled, "id written": bought["id written"]} == now_bought
