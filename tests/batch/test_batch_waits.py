# SPDX-License-Identifier: Apache-2.0
"""A batch that resumes in another process after each wait, during failures: it resumes rarely, and ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.cloud import storage

from airflow_provider_wan.batch.batch import Batch
from airflow_provider_wan.batch.engine import BatchEngine, Pause
from airflow_provider_wan.exceptions import WanTransientError
from tests.batch.batch_support import addresses, batch, outcomes, point_at, purchases_per_image, wait
from tests.image_samples import encoded, photo
from wan_sandbox.server import Sandbox


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    settings = {"speed": 1, "generation_seconds": 3600, "video_bytes": 20_000, "check_images": False}
    with Sandbox(**settings, buckets=("videos", "images")) as started:
        point_at(monkeypatch, started)
        yield started


class Process:
    """The parts of one batch, each as in a process of its own.

    :param make: creates the batch again.
    """

    def __init__(self, make: Callable[[], Batch]) -> None:
        self._make = make
        self.batch = make()
        self.engine: BatchEngine = self.batch.begin()

    def run(self) -> Pause | None:
        """Run this part up to its wait, or its end."""
        pause = self.engine.run(may_pause=True)
        if pause is not None:
            self.batch.save(self.engine)
        return pause

    def resume(self, event: dict[str, Any]) -> None:
        """Start the next part."""
        self.batch = self._make()
        self.engine = self.batch.resume(event)

    def run_until_only_requests_are_due(self, waits: int) -> Pause:
        """Run and wait, up to this many times, until only a request can end the wait."""
        for _ in range(waits):
            pause = self.run()
            assert pause is not None
            if pause.not_later_than is None:
                return pause
            self.resume(wait(pause))
        raise AssertionError(f"after {waits} waits the batch still resumes for other reasons")


def test_a_result_that_is_not_ready_is_polled_less_and_less_often(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"speed": 100_000})
    sandbox.add_fault("result", "not_ready")
    process = Process(lambda: batch(addresses(1)))
    pause = process.run()
    for times in range(1, 4):
        assert pause is not None
        process.resume({"ready": list(pause.request_ids)})
        before = time.time()
        pause = process.run()
        assert pause is not None
        assert pause.poll_at[pause.request_ids[0]] >= before + 2 ** (times - 1)

    process.resume({"outcome": "due"})  # a return for other requests: this one is not polled before its time
    pause = process.run()
    assert pause is not None
    event = wait(pause, deadline_s=0.3)
    assert (event["outcome"], event["ready"]) == ("timeout", [])
    assert sandbox.ledger()["calls"]["status"] == 1  # the free call before the purchase, and no poll

    sandbox.clear_faults()
    process.resume(wait(pause))
    assert process.run() is None
    assert process.batch.report(process.engine).error is None


def test_a_submit_outage_over_several_waits_ends_the_batch_after_its_limit(
    sandbox: Sandbox,
) -> None:
    sandbox.add_fault("submit", "overloaded", skip=1)
    process = Process(lambda: batch(addresses(3), limits={"outage_s": 2.0}))
    pause = process.run_until_only_requests_are_due(5)
    assert isinstance(process.engine.state.halted, WanTransientError)

    sandbox.control("speed", {"speed": 100_000})
    process.resume(wait(pause))
    assert process.run() is None
    report = process.batch.report(process.engine)
    assert isinstance(report.error, WanTransientError)
    assert outcomes(report) == {"landed": 1, "left": 2}


@pytest.mark.parametrize("bought_first", [0, 1])
def test_a_too_long_retry_after_ends_the_batch_when_its_requests_have_finished(
    sandbox: Sandbox, bought_first: int
) -> None:
    sandbox.add_fault("submit", "overloaded", skip=bought_first, retry_after=86_400)
    process = Process(lambda: batch(addresses(3), limits={"submit_threads": 1}))
    if bought_first:
        pause = process.run_until_only_requests_are_due(1)
        sandbox.control("speed", {"speed": 100_000})
        process.resume(wait(pause))
    assert process.run() is None
    report = process.batch.report(process.engine)
    assert isinstance(report.error, WanTransientError)
    assert "no submits for 1440 minutes" in str(report.error)
    assert "clear the task after" in str(report.error)
    assert outcomes(report) == Counter(landed=bought_first, left=3 - bought_first)
    assert sandbox.ledger()["calls"]["submit"] == bought_first + 1  # and not one more before its time


def test_an_unreadable_image_is_refused_after_several_tries_across_waits(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.batch import submits as batch_submits

    monkeypatch.setattr(batch_submits, "_IMAGE_PAUSE_S", 0.3)
    for name in ("good.jpg", "bad.jpg"):
        blob = storage.Client().bucket("images").blob(name)
        blob.upload_from_string(encoded(photo(), "JPEG"), content_type="image/jpeg")
    sandbox.add_fault("bucket.get", "status", status=503, object_contains="bad.jpg")
    images = [f"{sandbox.bucket_url}/images/{name}" for name in ("good.jpg", "bad.jpg")]
    process = Process(lambda: batch(images, check_images=True))
    process.run_until_only_requests_are_due(4)
    (ending,) = process.engine.results.values()
    assert ending.outcome == "refused"
    assert ending.image == images[1]
    assert purchases_per_image(sandbox) == {images[0]: 1}


def test_a_request_whose_id_could_not_be_written_is_landed_after_the_wait(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.durable import submission

    monkeypatch.setattr(submission, "WRITE_ID_FOR_S", -1.0)
    sandbox.add_fault("bucket.upload", "forbidden", skip=4)  # plan, check (twice) and claim are written, the id is not
    process = Process(lambda: batch(addresses(1)))
    pause = process.engine.run(may_pause=True)
    assert pause is not None
    sandbox.clear_faults()
    process.batch.save(process.engine)
    process.resume({})
    again = process.run()
    assert again is not None
    assert again.request_ids == pause.request_ids
    sandbox.control("speed", {"speed": 100_000})
    for _ in range(5):  # on a slow machine the batch comes back once more, only to write the id
        process.resume(wait(again))
        again = process.run()
        if again is None:
            break
    report = process.batch.report(process.engine)
    assert report.error is None
    assert outcomes(report) == {"landed": 1}
    assert report.summary["bought"] == 1
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(1), 1)
