# SPDX-License-Identifier: Apache-2.0
"""A batch against a sandbox, checked by the ledger: every image is landed or reported, and bought once."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from google.cloud import storage

from airflow_provider_wan.batch.budget import BudgetLimits
from airflow_provider_wan.batch.engine import Pause
from airflow_provider_wan.batch.results import MaxFailures
from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanBatchError,
    WanBudgetError,
    WanTimeoutError,
)
from tests.batch.batch_support import (
    JOURNAL,
    TIMEOUT_S,
    addresses,
    batch,
    connection,
    manifest,
    outcomes,
    purchases_per_image,
    run,
    videos,
)
from tests.image_samples import encoded, photo
from wan_sandbox.server import Sandbox


@pytest.fixture
def sandbox(batch_sandbox: Sandbox) -> Sandbox:
    return batch_sandbox


def test_every_image_becomes_one_video(sandbox: Sandbox) -> None:
    report = run(addresses(20))
    assert report.error is None
    assert report.summary["landed"] == report.summary["total"] == report.summary["bought"] == 20
    assert report.summary["cost_usd"] == pytest.approx(4.0)
    assert report.summary["cost_is_exact"]
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(20), 1)
    lines = manifest(report)
    assert [line["image"] for line in lines] == addresses(20)
    assert all(line["finished_at"] >= line["created_at"] > "2" for line in lines)
    assert sorted(line["uri"].rpartition("/")[2] for line in lines) == [name.rpartition("/")[2] for name in videos()]


def test_a_rerun_of_a_finished_batch_buys_nothing_and_reads_no_record(sandbox: Sandbox) -> None:
    run(addresses(12))
    calls = sandbox.ledger()["calls"]
    sandbox.bucket_control("calls", method="DELETE")
    report = run(addresses(12), owner="dag/another run/task/-1", price_usd=0.2)
    assert report.error is None
    assert report.summary["reused"] == 12
    assert report.summary["bought"] == 0
    assert sandbox.ledger()["calls"] == calls
    asked = sandbox.bucket_control("calls")["calls"]
    assert asked.get("bucket.list") == 2
    assert asked.get("bucket.get") == 1  # what this task planned before: nothing
    assert len(manifest(report)) == 12


def test_a_landing_does_not_read_a_record_or_name_of_a_purchase_of_its_process(sandbox: Sandbox) -> None:
    report = run(addresses(20))
    assert outcomes(report) == {"landed": 20}
    asked = sandbox.bucket_control("calls")["calls"]
    assert asked["bucket.get"] < 10  # the plan and the prices of this task
    assert asked.get("bucket.metadata", 0) < 10
    assert sum(asked.values()) < 8 * 20


def test_equal_rows_become_one_video(sandbox: Sandbox) -> None:
    report = run(addresses(3) + addresses(3))
    assert report.error is None
    assert len(sandbox.ledger()["purchases"]) == 3


def test_a_bad_image_does_not_stop_the_others(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "invalid", img_url_contains="00003.jpg")
    report = run([*addresses(12), "ftp://nowhere/x.jpg", {"image": addresses(20)[19], "seed": "many"}])
    assert isinstance(report.error, WanBatchError)
    assert not report.error.retry_helps  # a retry would be refused in the same way
    assert "00003.jpg" in str(report.error)
    assert outcomes(report) == {"landed": 11, "refused": 3}
    assert len(sandbox.ledger()["purchases"]) == 11


def test_an_unexpected_error_before_the_submit_counts_as_a_refusal(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resolve = socket.getaddrinfo

    def fail(host: Any, *more: Any, **named: Any) -> Any:
        if host == "broken.example":
            raise RuntimeError("a bug in a library")
        return resolve(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    blob = storage.Client().bucket("videos").blob("photo.jpg")
    blob.upload_from_string(encoded(photo(), "JPEG"), content_type="image/jpeg")
    images = ["https://broken.example/photo.jpg", f"{sandbox.bucket_url}/videos/photo.jpg"]
    report = run(images, max_failures=MaxFailures(count=1), check_images=True)
    assert report.error is None
    assert outcomes(report) == {"refused": 1, "landed": 1}
    assert "nothing was sent" in manifest(report)[0]["error"]
    assert "a bug in a library" in manifest(report)[0]["error"]
    assert "Traceback" in caplog.text
    assert (report.summary["bought"], report.summary["cost_usd"]) == (1, pytest.approx(0.2))
    assert purchases_per_image(sandbox) == {images[1]: 1}


def test_failures_within_max_failures_do_not_fail_the_batch(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "invalid", img_url_contains="00003.jpg")
    assert run(addresses(10), max_failures=MaxFailures.of("10%")).error is None


def test_a_failed_generation_is_retried_retries_per_image_times(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="00002.jpg", count=1)
    sandbox.add_fault("generation", "fail", img_url_contains="00004.jpg")
    report = run(addresses(8), limits={"retries_per_image": 1})
    assert isinstance(report.error, WanBatchError)
    assert report.error.retry_helps
    assert outcomes(report) == {"landed": 7, "failed": 1}
    counts = purchases_per_image(sandbox)
    assert counts[addresses(8)[2]] == counts[addresses(8)[4]] == 2
    assert sum(counts.values()) == 10


def test_failed_requests_are_retried_within_the_limits(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="00001.jpg")
    report = run(addresses(3), limits={"retries_per_image": 5}, budget=BudgetLimits(max_requests=5))
    assert isinstance(report.error, WanBudgetError)
    assert outcomes(report) == {"landed": 2, "left": 1}
    assert purchases_per_image(sandbox)[addresses(3)[1]] == 3


def test_an_empty_account_leaves_the_rest_and_a_rerun_continues(sandbox: Sandbox) -> None:
    sandbox.control("account", {"balance_usd": 1.0})
    report = run(addresses(12))
    assert isinstance(report.error, WanBalanceError)
    assert outcomes(report) == {"landed": 5, "left": 7}
    assert "7 of 12 images are not done" in str(report.error)
    sandbox.control("account", {"balance_usd": 100.0})
    assert run(addresses(12)).error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(12), 1)


@pytest.mark.parametrize("limits", [BudgetLimits(max_requests=5), BudgetLimits(max_cost_usd=1.19)])
def test_a_limit_holds_across_retries_of_the_task(sandbox: Sandbox, limits: BudgetLimits) -> None:
    for _ in range(2):
        report = run(addresses(12), budget=limits)
        assert isinstance(report.error, WanBudgetError)
        assert not report.error.retry_helps
        assert outcomes(report) == {"landed": 5, "left": 7}
    assert len(sandbox.ledger()["purchases"]) == 5
    other = run(addresses(12), budget=limits, owner="dag/next run/task/-1")
    assert outcomes(other) == {"reused": 5, "landed": 5, "left": 2}


def test_an_image_is_not_left_because_of_purchases_that_are_refused(sandbox: Sandbox) -> None:
    for number in range(6):
        sandbox.add_fault("submit", "invalid", img_url_contains=f"0000{number}.jpg")
    report = run(addresses(7), budget=BudgetLimits(max_requests=1))
    assert outcomes(report)["landed"] == 1, "only the last one is accepted"
    assert report.summary["bought"] == 1


def test_a_limit_without_a_price_buys_nothing(sandbox: Sandbox) -> None:
    sandbox.add_fault("model", "malformed_id")
    with pytest.raises(Exception, match="400001"):
        run(addresses(3), budget=BudgetLimits(max_cost_usd=5.0))
    assert sandbox.ledger()["submits"] == []
    assert run(addresses(3), budget=BudgetLimits(max_cost_usd=5.0), price_usd=0.2).error is None


def test_a_dry_run_sends_nothing(sandbox: Sandbox) -> None:
    run(addresses(5))
    report = batch([*addresses(12), {"image": addresses(14)[13], "seed": "x"}]).dry_run()
    assert report.summary["to_buy"] == 7
    assert report.summary["reused"] == 5
    assert report.summary["cost_usd"] == pytest.approx(1.4)
    assert report.summary["refused"] == 1
    assert len(sandbox.ledger()["submits"]) == 5


def test_a_dry_run_counts_failed_images_and_not_images_in_flight(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", img_url_contains="00001.jpg", count=1)
    run(addresses(3))
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    batch(addresses(5)).begin().run(may_pause=True)  # buys the failed one again, and two more
    summary = batch(addresses(6)).dry_run().summary
    assert (summary["reused"], summary["in_journal"], summary["to_buy"]) == (2, 3, 1)

    sandbox.control("speed", {"speed": 100_000})
    sandbox.add_fault("generation", "fail", img_url_contains="00005.jpg", count=1)
    run(addresses(6))
    summary = batch(addresses(6)).dry_run().summary
    assert (summary["reused"], summary["in_journal"], summary["to_buy"]) == (5, 0, 1)


def test_a_lost_submit_is_reported_and_not_resent(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twice a connect and an answer: its claim counts as open at once.
    monkeypatch.setattr("airflow_provider_wan.durable.submission.CLAIM_MARGIN_S", -4 * TIMEOUT_S)
    lost = addresses(8)[5]
    sandbox.add_fault("submit", "no_id", img_url_contains="00005.jpg", count=1)
    for _ in range(2):
        report = run(addresses(8), max_failures=MaxFailures(count=1))
        assert report.error is None
        assert outcomes(report)["unknown"] == 1
    assert purchases_per_image(sandbox)[lost] == 1
    report = run(addresses(8), resolve={lost: "resubmit"})
    assert report.error is None
    assert purchases_per_image(sandbox)[lost] == 2


def test_failing_calls_only_cost_time(sandbox: Sandbox) -> None:
    for call in ("status", "result", "media", "bucket.get", "bucket.list"):
        sandbox.add_fault(call, "status", rate=0.1, status=503)
    report = run(addresses(30))
    assert report.error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(30), 1)
    assert len(videos()) == 30


def test_a_pending_result_is_waited_for(sandbox: Sandbox) -> None:
    sandbox.add_fault("result", "pending", img_url_contains="0000", rate=0.5)
    report = run(addresses(8))
    assert report.error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(8), 1)


def test_a_request_without_a_video_is_reported_and_never_bought_again(sandbox: Sandbox) -> None:
    sandbox.add_fault("result", "output_shape", shape="image", img_url_contains="00001.jpg")
    for _ in range(2):  # a rerun takes it over
        report = run(addresses(2), limits={"retries_per_image": 2}, max_failures=MaxFailures(count=1))
        assert report.error is None
        assert outcomes(report) == {"landed": 1, "no_output": 1}
        line = manifest(report)[1]
        assert f"Request {line['request_id']} succeeded, but its output has no video" in line["error"]
        assert "variation" in line["error"]
        assert line["cost_usd"] == pytest.approx(0.2)
        assert report.summary["cost_is_exact"]
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(2), 1)
    assert sandbox.ledger()["calls"]["result"] < 12
    sandbox.clear_faults()
    assert run(addresses(2)).error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(2), 1)


def test_two_images_of_a_batch_never_share_a_request(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    pause = batch(addresses(2)).begin().run(may_pause=True)
    assert pause is not None
    journal = BucketJournal(storage.Client(), JOURNAL)
    records = [journal.read(summary.fingerprint) for summary in journal.listing()]
    first, second = sorted((found for found in records if found), key=lambda found: str(found.record.image))
    wrong = replace(second.record, request_id=first.record.request_id)
    journal.write(wrong, replaces=second)
    sandbox.control("speed", {"speed": 100_000})
    report = run(addresses(2))
    assert outcomes(report) == {"landed": 1, "unknown": 1}
    line = next(line for line in manifest(report) if line["outcome"] == "unknown")
    assert str(first.record.request_id) in line["error"]
    assert "belongs to" in line["error"]
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(2), 1)


def test_two_runs_at_once_buy_each_image_once(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(2) as pool:
        images = addresses(24)
        first = pool.submit(run, images, owner="dag/a/task/-1")
        second = pool.submit(run, images[::-1], owner="dag/b/task/-1")
        reports = [first.result(), second.result()]
    assert [report.error for report in reports] == [None, None]
    assert purchases_per_image(sandbox) == dict.fromkeys(images, 1)
    assert len(videos()) == 24


def test_a_bucket_outage_is_waited_for(sandbox: Sandbox) -> None:
    sandbox.add_fault("bucket.*", "status", status=503, skip=40, count=25)
    report = run(addresses(20))
    assert report.error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(20), 1)


def test_a_rate_limit_on_submits_is_respected(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "overloaded", rate=0.2, retry_after=1)
    report = run(addresses(20))
    assert report.error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(20), 1)
    assert sandbox.ledger()["too_early"] == []


def test_a_rotated_token_does_not_end_the_batch(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    one = batch(addresses(10), limits={"max_in_flight": 3})
    engine = one.begin()
    sandbox.control("tokens", {"add": "new-token", "revoke": sandbox.token})
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox).replace(sandbox.token, "new-token"))
    try:
        engine.run(may_pause=False)
        assert one.report(engine).error is None
    finally:
        sandbox.control("tokens", {"add": sandbox.token})


def test_a_refused_token_ends_the_batch_before_it_buys(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox).replace(sandbox.token, "wrong"))
    with pytest.raises(WanAuthError):
        run(addresses(10), price_usd=0.1)
    assert sandbox.ledger()["submits_seen"] == 0


def test_queued_requests_are_cancelled_at_the_deadline(sandbox: Sandbox) -> None:
    sandbox.control("account", {"concurrency": 2})
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    one = batch(addresses(10))
    engine = one.begin()
    pause = engine.run(may_pause=True)  # all are submitted
    assert isinstance(pause, Pause)
    one.save(engine)
    late = batch(addresses(10), deadline_s=0.0)
    engine = late.resume({"ready": [], "learned": pause.learned})
    engine.run(may_pause=False)
    report = late.report(engine)
    assert isinstance(report.error, WanTimeoutError)
    assert outcomes(report) == {"left": 10}
    assert sandbox.ledger()["states"] == {"running": 2, "cancelled": 8}
    sandbox.control("speed", {"speed": 100_000})
    assert run(addresses(10)).error is None
    assert sandbox.ledger()["states"] == {"succeeded": 10, "cancelled": 8}


@pytest.mark.parametrize(("call", "fault"), [("submit", "delay"), ("result", "hang")])
def test_requests_accepted_after_the_deadline_are_left_too(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, call: str, fault: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, timeout=1.5 if call == "result" else 20))
    speed = {"submit": {"speed": 1, "generation_seconds": 3600}, "result": {"speed": 100_000}}[call]
    sandbox.control("speed", speed)
    sandbox.add_fault(call, fault, seconds=8)  # under way at the deadline
    report = run(addresses(1), deadline_s=6.0)
    assert isinstance(report.error, WanTimeoutError)
    assert "1 are left running" in str(report.error)
    assert [(line["outcome"], bool(line["request_id"])) for line in manifest(report)] == [("left", True)]


def test_a_stopped_batch_has_recorded_every_request(sandbox: Sandbox) -> None:
    stop = threading.Event()
    one = batch(addresses(20), stop=stop)
    engine = one.begin()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, may_pause=False)
        while len(sandbox.ledger()["purchases"]) < 5:
            pass
        stop.set()
        running.result()
    assert run(addresses(20)).error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(20), 1)


def test_a_batch_pauses_when_it_only_waits_and_resumes_in_another_process(sandbox: Sandbox) -> None:
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    sandbox.add_fault("submit", "invalid", img_url_contains="00001.jpg")
    one = batch(addresses(12), limits={"max_in_flight": 8})
    engine = one.begin()
    pause = engine.run(may_pause=True)
    assert isinstance(pause, Pause)
    assert len(pause.request_ids) == 8
    one.save(engine)
    sandbox.control("speed", {"speed": 100_000})
    refused = [line for line in sandbox.ledger()["refusals"] if line["call"] == "submit"]

    # Another process, which has only the checkpoint, the journal and the event.
    again = batch(addresses(12), limits={"max_in_flight": 8}, max_failures=MaxFailures(count=1))
    engine = again.resume({"ready": list(pause.request_ids), "learned": pause.learned})
    assert engine.run(may_pause=False) is None
    report = again.report(engine)
    assert report.error is None
    assert outcomes(report) == {"landed": 11, "refused": 1}
    assert [line for line in sandbox.ledger()["refusals"] if line["call"] == "submit"] == refused


def test_a_lost_or_broken_checkpoint_loses_nothing(sandbox: Sandbox) -> None:
    run(addresses(6))
    again = batch(addresses(8))
    for blob in storage.Client().list_blobs("videos", prefix="_journal/_notes/"):
        blob.upload_from_string("{")
    engine = again.resume({"ready": ["unknown-id"], "gone": ["unknown-id"], "started": {"x": 1}})
    engine.run(may_pause=False)
    assert again.report(engine).error is None
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(8), 1)


def test_in_a_large_journal_only_the_records_of_the_batch_are_read(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.batch import planner as module

    run(addresses(12))
    monkeypatch.setattr(module, "_LIST_AT_LEAST", 4)
    monkeypatch.setattr(module, "_LIST_PER_IMAGE", 1)
    report = run([*addresses(3), *addresses(3, first=20)])
    assert outcomes(report) == {"landed": 6}
    assert len(sandbox.ledger()["purchases"]) == 15


@pytest.mark.parametrize("listed_up_to", [5_000, 1])
def test_an_unreadable_record_fails_only_its_own_image(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, listed_up_to: int
) -> None:
    from google.cloud import storage

    from airflow_provider_wan.batch import planner as module

    run(addresses(2))
    broken = manifest(run(addresses(2)))[0]["fingerprint"]
    storage.Client().bucket("videos").blob(f"_journal/{broken}.json").upload_from_string("{")
    monkeypatch.setattr(module, "_LIST_AT_LEAST", listed_up_to)
    monkeypatch.setattr(module, "_LIST_PER_IMAGE", 0)
    report = run(addresses(4), deadline_s=120)
    assert outcomes(report) == {"unknown": 1, "landed": 3}
    assert f"gs://videos/_journal/{broken}.json" in manifest(report)[0]["error"]
    assert isinstance(report.error, WanBatchError)
    assert not report.error.retry_helps
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(4), 1)


@pytest.mark.parametrize("metadata", [{}, {"stage": "landed", "cost_usd": "much"}])
def test_a_record_whose_metadata_is_broken_is_read(sandbox: Sandbox, metadata: dict[str, str]) -> None:
    from google.cloud import storage

    fingerprint = manifest(run(addresses(2)))[0]["fingerprint"]
    blob = storage.Client().bucket("videos").get_blob(f"_journal/{fingerprint}.json")
    blob.metadata, text = metadata, blob.download_as_bytes()
    blob.upload_from_string(text)
    report = run(addresses(3), owner="dag/2/task/-1")
    assert outcomes(report) == {"reused": 2, "landed": 1}
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(3), 1)


def test_a_request_that_vanishes_before_it_succeeds_is_bought_again(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "vanish", img_url_contains="00001.jpg", when="submitted", count=1)
    report = run(addresses(4))
    assert report.error is None
    assert purchases_per_image(sandbox)[addresses(4)[1]] == 2
