# SPDX-License-Identifier: Apache-2.0
"""Lost answers and unwritten ids: a batch stops buying at once, and only what was under way is in doubt."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_provider_wan.batch.results import MaxFailures
from airflow_provider_wan.exceptions import WanDownloadError, WanStorageError, WanTransientError
from tests.batch.batch_support import (
    addresses,
    batch,
    connection,
    manifest,
    outcomes,
    purchases_per_image,
    run,
    videos,
    wait,
)
from wan_sandbox.server import Sandbox

UNDER_WAY, TRIALS = 8, 3
ANY = MaxFailures(share=1.0)


@pytest.fixture
def sandbox(batch_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    # Some tests wait for calls that hang. No other answer may count as lost on a busy machine.
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(batch_sandbox, timeout=4))
    return batch_sandbox


@contextmanager
def outage_after(sandbox: Sandbox, submits: int, seconds: float) -> Iterator[None]:
    """Answer 503 to every API call for some time, beginning with the submit of this number; nothing is accepted."""
    sandbox.add_fault("submit", "status", status=503, skip=submits)
    ended = threading.Event()

    def play() -> None:
        while sandbox.control("ledger?summary=1")["submits_seen"] <= submits and not ended.is_set():
            time.sleep(0.02)
        for call in ("status", "result", "model"):
            sandbox.add_fault(call, "status", status=503)
        ended.wait(seconds)
        sandbox.clear_faults()

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_an_outage_leaves_only_submits_under_way_in_doubt_and_the_rest_is_made(sandbox: Sandbox) -> None:
    with outage_after(sandbox, 10, 4.0):
        report = run(addresses(28), max_failures=ANY)
    assert report.error is None
    ended = outcomes(report)
    assert 1 <= ended["unknown"] <= UNDER_WAY + TRIALS
    assert ended["landed"] == 28 - ended["unknown"]
    assert max(purchases_per_image(sandbox).values()) == 1
    assert len(videos()) == ended["landed"]


def test_submits_that_stay_unclear_end_the_batch_after_three_trials_and_a_retry_makes_the_rest(
    sandbox: Sandbox,
) -> None:
    sandbox.add_fault("submit", "status", status=503, skip=10)  # the free call succeeds meanwhile
    report = run(addresses(36), max_failures=ANY)
    assert isinstance(report.error, WanTransientError)
    assert report.error.retry_helps
    assert "retry or clear the task after 20" in str(report.error)
    ended = outcomes(report)
    assert ended["unknown"] <= UNDER_WAY + TRIALS
    assert ended["landed"] == 10
    assert ended["left"] == 26 - ended["unknown"]

    sandbox.clear_faults()
    unknown = {line["image"] for line in manifest(report) if line["outcome"] == "unknown"}
    again = run(addresses(36), max_failures=ANY)
    assert again.error is None
    assert outcomes(again) == {"landed": 36 - len(unknown), "unknown": len(unknown)}
    assert {line["image"] for line in manifest(again) if line["outcome"] == "unknown"} == unknown
    assert not unknown & set(purchases_per_image(sandbox))


def test_late_acceptance_of_an_earlier_submit_does_not_end_a_pause(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "delay", seconds=3, img_url_contains="00000.jpg")
    sandbox.add_fault("submit", "status", status=503)  # the free call succeeds meanwhile
    report = run(addresses(20), max_failures=ANY, limits={"submit_threads": 2})
    assert isinstance(report.error, WanTransientError)
    assert outcomes(report) == {"landed": 1, "unknown": 1 + TRIALS, "left": 18 - TRIALS}


def test_one_lost_answer_affects_only_its_image(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "no_id", img_url_contains="00005.jpg", count=1)
    report = run(addresses(16), max_failures=ANY)
    assert report.error is None
    assert outcomes(report) == {"landed": 15, "unknown": 1}
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(16), 1)


def test_a_long_outage_is_waited_for_without_a_worker(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "status", status=503)
    sandbox.add_fault("status", "status", status=503, retry_after=30)
    one = batch(addresses(20), max_failures=ANY, limits={"outage_s": 60.0})
    engine = one.begin()
    pause = engine.run(may_pause=True)
    assert pause is not None
    assert pause.request_ids == ()
    assert pause.not_later_than is not None
    assert pause.not_later_than > time.time() + 10
    one.save(engine)
    assert wait(pause, deadline_s=0.2)["outcome"] == "timeout"  # it does not return at once

    sandbox.clear_faults()
    again = batch(addresses(20), max_failures=ANY)
    engine = again.resume({"outcome": "due"})
    assert engine.run(may_pause=False) is None
    report = again.report(engine)
    assert report.error is None
    ended = outcomes(report)
    assert ended["unknown"] <= UNDER_WAY
    assert ended["landed"] == 20 - ended["unknown"]


def test_after_an_id_that_can_not_be_written_nothing_more_is_bought_and_every_id_is_named(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.durable import submission

    monkeypatch.setattr(submission, "WRITE_ID_FOR_S", -1.0)
    sandbox.add_fault("bucket.upload", "forbidden", object_contains="_journal/", skip=20)
    one = batch(addresses(40), limits={"outage_s": 1.0, "submit_threads": 4})
    engine = one.begin()
    engine.run(may_pause=False)
    refused = one.report(engine)  # the manifest can't be written either
    sandbox.clear_faults()
    report = one.report(engine)
    assert isinstance(report.error, WanStorageError)
    purchases = {purchase["request_id"]: purchase["img_url"] for purchase in sandbox.ledger()["purchases"]}
    lines = manifest(report)
    named = {line["request_id"]: line["image"] for line in lines if line["request_id"]}
    assert named == purchases
    landed = {line["request_id"] for line in lines if line["outcome"] == "landed"}
    lost = [request_id for request_id in purchases if request_id not in landed]
    assert lost
    assert all(request_id in str(error) for request_id in lost for error in (refused.error, report.error))
    assert len(purchases) <= 14


def test_a_wait_that_can_not_be_saved_ends_with_an_error_that_names_the_unwritten_ids(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.durable import submission

    monkeypatch.setattr(submission, "WRITE_ID_FOR_S", -1.0)
    # Plan, check (twice) and claim are written, the id and the checkpoint are not.
    sandbox.add_fault("bucket.upload", "forbidden", skip=4)
    one = batch(addresses(1), deadline_s=8)
    engine = one.begin()
    assert one.run(engine, may_pause=True) is None
    report = one.report(engine)
    (purchase,) = sandbox.ledger()["purchases"]
    assert purchase["request_id"] in str(report.error)


def test_a_batch_sleeps_while_a_call_is_under_way(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_wan.batch.submits import Submits

    begin, begun = Submits.begin, []

    def counted(submits: Submits, now: float) -> None:
        begun.append(now)
        begin(submits, now)

    monkeypatch.setattr(Submits, "begin", counted)
    sandbox.add_fault("submit", "status", status=503, count=1)  # the answer is lost
    sandbox.add_fault("status", "hang", skip=1, count=1)  # the free call after it takes 4 s
    report = run(addresses(2), max_failures=ANY, limits={"submit_threads": 1})
    assert outcomes(report) == {"landed": 1, "unknown": 1}
    assert len(begun) < 150


@pytest.mark.parametrize(("asked_s", "fetched", "outcome"), [(7200, 1, "not_landed"), (2, 2, "landed")])
def test_a_download_is_not_tried_again_before_the_server_allows_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, asked_s: int, fetched: int, outcome: str
) -> None:
    from airflow_provider_wan.landing.download import Downloader

    fetch, times = Downloader.fetch, []

    def refused_at_first(downloader: Downloader, url: str, *, request_id: str) -> Any:
        times.append(time.monotonic())
        if len(times) == 1:
            raise WanDownloadError("It is busy.", request_id=request_id, retry_after_s=asked_s)
        return fetch(downloader, url, request_id=request_id)

    monkeypatch.setattr(Downloader, "fetch", refused_at_first)
    report = run(addresses(1), max_failures=ANY)
    assert outcomes(report) == {outcome: 1}
    assert len(times) == fetched
    assert all(later - times[0] >= asked_s for later in times[1:])


def test_a_record_that_can_not_be_updated_for_an_adopted_request_is_not_called_an_unwritten_purchase(
    sandbox: Sandbox,
) -> None:
    """Its id is in the journal: only the bucket has a problem."""
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    other = batch(addresses(1), owner="dag/run/another/-1")
    assert other.begin().run(may_pause=True) is not None
    sandbox.control("speed", {"speed": 200, "generation_seconds": None})
    one = batch(addresses(5), limits={"outage_s": 1.0})
    engine = one.begin()
    sandbox.add_fault("bucket.upload", "forbidden", object_contains=next(iter(engine.state.plan.known)))
    engine.run(may_pause=False)
    report = one.report(engine)
    assert isinstance(report.error, WanStorageError)
    assert "were bought" not in str(report.error)
    sandbox.clear_faults()
    report = run(addresses(5))
    assert report.error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(5), 1)


def test_any_error_of_one_cancel_leaves_the_others_cancelled(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_wan.hooks.wan import WanHook

    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    sandbox.control("account", {"concurrency": 1})
    one = batch(addresses(4))
    engine = one.begin()
    assert engine.run(may_pause=True) is not None
    cancel, cancelled = WanHook.cancel, []

    def without_secrets_at_first(hook: WanHook, request_id: str, **options: Any) -> Any:
        cancelled.append(request_id)
        if len(cancelled) == 1:
            raise RuntimeError("The secrets backend does not answer.")
        return cancel(hook, request_id, **options)

    monkeypatch.setattr(WanHook, "cancel", without_secrets_at_first)
    assert "left running" in engine.cancel_queued()
    assert len(cancelled) > 2
    assert len(sandbox.ledger()["cancels"]) == len(cancelled) - 1
