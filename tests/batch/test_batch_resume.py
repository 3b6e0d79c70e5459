# SPDX-License-Identifier: Apache-2.0
"""Waits, clears and reruns of a batch: its plan, its limits and its report."""

from __future__ import annotations

from collections import Counter

import pytest
from google.cloud import storage

from airflow_provider_wan.batch.budget import BudgetLimits
from airflow_provider_wan.exceptions import WanBudgetError
from tests.batch.batch_support import (
    addresses,
    batch,
    finish,
    manifest,
    outcomes,
    purchases_per_image,
    run,
    run_over_a_wait,
    wait,
    waiting,
)
from tests.batch_runs import IMAGES, TaskInstance, run_try
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

SIGNATURE = "X-Amz-Signature=0123456789abcdef"
SET = "gs://videos/set.csv"


def put(rows: list[str], prompt: str = "waves") -> None:
    lines = ["image,prompt", *(f"{row},{prompt}" for row in rows)]
    storage.Client().bucket("videos").blob("set.csv").upload_from_string("\n".join(lines))


# -- the plan ----------------------------------------------------------------------------------------------


def test_a_dataset_that_changes_during_a_wait_does_not_change_the_batch(sandbox: Sandbox) -> None:
    put(addresses(3))
    limits = BudgetLimits(max_requests=3)
    report = run_over_a_wait(sandbox, SET, lambda: put(addresses(5), "snow"), budget=limits)
    assert report.error is None
    assert [line["image"] for line in manifest(report)] == addresses(3)
    assert outcomes(report) == {"landed": 3}
    assert purchases_per_image(sandbox) == dict.fromkeys(addresses(3), 1)


def test_a_dataset_deleted_during_a_wait_loses_nothing(sandbox: Sandbox) -> None:
    put([*addresses(2), "not an address"])
    report = run_over_a_wait(
        sandbox,
        SET,
        lambda: storage.Client().bucket("videos").blob("set.csv").delete(),
        limits={"max_in_flight": 1},
    )
    assert outcomes(report) == {"landed": 2, "refused": 1}


@pytest.mark.parametrize(("stays", "ends"), [(True, {"landed": 2}), (False, {"landed": 1, "refused": 1})])
def test_a_signed_address_is_not_saved_and_is_looked_up_again(
    sandbox: Sandbox, stays: bool, ends: dict[str, int]
) -> None:
    put([f"{address}?{SIGNATURE}" for address in addresses(2)])

    def meanwhile() -> None:
        texts = [blob.download_as_text() for blob in storage.Client().list_blobs("videos", prefix="_journal/")]
        assert len(texts) == 4  # a record, the plan, the checkpoint and the status file
        assert not any(SIGNATURE in text for text in texts)
        if not stays:
            put(addresses(1, first=7))

    report = run_over_a_wait(sandbox, SET, meanwhile, limits={"max_in_flight": 1})
    assert outcomes(report) == ends
    assert "not in the dataset any more" in str([line["error"] for line in manifest(report)]) or stays


# -- what a resume knows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("landed_before", [0, 3])
def test_a_resume_makes_the_same_calls_for_any_number_of_records(
    sandbox: Sandbox, bucket: Bucket, landed_before: int
) -> None:
    images = addresses(6)
    sandbox.control("speed", {"speed": 100_000})
    assert run(images[:landed_before]).error is None
    pause = waiting(sandbox, images)
    before = Counter(bucket.calls())
    again = batch(images)
    engine = again.resume({"ready": [], "learned": pause.learned})
    again.save(engine)
    assert engine.progress().done == landed_before
    assert set(engine.state.in_flight) == set(pause.request_ids)
    # Plan, checkpoint and price are read; checkpoint (twice) and status file are written.
    assert Counter(bucket.calls()) - before == {"bucket.get": 3, "bucket.upload": 3}


def test_a_resume_of_a_batch_too_large_for_a_checkpoint_lists_the_journal(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.batch import batch as module

    images = addresses(6)
    sandbox.control("speed", {"speed": 100_000})
    assert run(images[:2], owner="dag/other/task/-1").error is None
    monkeypatch.setattr(module, "_ALL_SAVED_UP_TO", 5)
    sandbox.add_fault("submit", "invalid", img_url_contains="00002.jpg")
    limits = BudgetLimits(max_requests=2)
    report = run_over_a_wait(sandbox, images, lambda: None, budget=limits, limits={"max_in_flight": 1})
    assert outcomes(report) == {"reused": 2, "landed": 2, "refused": 1, "left": 1}
    assert sandbox.ledger()["calls"]["submit"] == 5  # 2 of the other run, 2 purchases, and one refusal


def test_a_resume_keeps_the_requests_that_were_taken_over_from_another_run(sandbox: Sandbox, bucket: Bucket) -> None:
    images = addresses(3)
    waiting(sandbox, images, owner="dag/other/task/-1")
    pause = waiting(sandbox, images)
    before, statuses = Counter(bucket.calls()), sandbox.ledger()["calls"]["status"]
    again = batch(images)
    engine = again.resume({"ready": [], "learned": pause.learned})
    assert engine.run(may_pause=True) is not None
    assert set(engine.state.in_flight) == set(pause.request_ids)
    assert (Counter(bucket.calls()) - before)["bucket.get"] == 3
    assert sandbox.ledger()["calls"]["status"] == statuses


def test_a_repeated_resume_counts_what_the_first_one_has_bought(sandbox: Sandbox) -> None:
    images, more = addresses(8), {"budget": BudgetLimits(max_requests=5), "limits": {"max_in_flight": 2}}
    pause = waiting(sandbox, images, **more)
    sandbox.control("speed", {"speed": 100_000})
    event = {"ready": list(pause.request_ids), "learned": pause.learned}
    killed = batch(images, **more)
    killed.resume(event).run(may_pause=False)  # it ends without a word
    assert len(sandbox.ledger()["purchases"]) == 5

    again = batch(images, **more)
    report = finish(again, again.resume(event))
    assert outcomes(report) == {"landed": 5, "left": 3}
    assert (report.summary["bought"], len(sandbox.ledger()["purchases"])) == (5, 5)


def test_a_resume_takes_over_what_another_run_has_bought_meanwhile(sandbox: Sandbox) -> None:
    images = addresses(5)

    def meanwhile() -> None:
        sandbox.control("speed", {"speed": 100_000})
        assert run(images, owner="dag/other/task/-1").error is None

    report = run_over_a_wait(sandbox, images, meanwhile, limits={"max_in_flight": 2})
    assert outcomes(report) == {"landed": 2, "reused": 3}
    assert report.summary["bought"] == 2
    assert purchases_per_image(sandbox) == dict.fromkeys(images, 1)


def test_a_lost_submit_stays_unknown_over_a_wait_and_counts(sandbox: Sandbox) -> None:
    sandbox.add_fault("submit", "no_id", img_url_contains="00000.jpg", count=1)
    limits = BudgetLimits(max_requests=4)
    report = run_over_a_wait(sandbox, addresses(5), lambda: None, budget=limits, limits={"max_in_flight": 1})
    assert outcomes(report) == {"landed": 3, "unknown": 1, "left": 1}
    assert report.summary["bought"] == 4
    assert max(purchases_per_image(sandbox).values()) == 1


def test_results_before_a_wait_are_reported_as_they_were(sandbox: Sandbox) -> None:
    images, more = addresses(4), {"limits": {"max_in_flight": 2}}
    pause = waiting(sandbox, images, **more)
    sandbox.control("speed", {"speed": 100_000})
    event = wait(pause)
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    one = batch(images, **more)
    engine = one.resume(event)
    second = engine.run(may_pause=True)
    assert second is not None
    one.save(engine)
    sandbox.control("speed", {"speed": 100_000})
    again = batch(images, **more)
    report = finish(again, again.resume(wait(second)))
    assert outcomes(report) == {"landed": 4}
    assert all(line["finished_at"] for line in manifest(report))


# -- limits ------------------------------------------------------------------------------------------------


def test_limits_count_earlier_purchases_of_other_images_and_prompts(sandbox: Sandbox) -> None:
    limits = BudgetLimits(max_requests=5)
    assert run(addresses(4), budget=limits).error is None
    for more in ({"inputs": {"prompt": "snow"}}, {"inputs": {"prompt": "rain"}}):
        report = run(addresses(4), budget=limits, **more)
        assert isinstance(report.error, WanBudgetError)
    assert isinstance(run(addresses(4, first=10), budget=limits).error, WanBudgetError)
    assert len(sandbox.ledger()["purchases"]) == 5


def test_each_task_instance_counts_its_own_purchases(sandbox: Sandbox) -> None:
    sandbox.add_fault("generation", "fail", count=2)
    first, second = {"owner": "dag/run/first/-1"}, {"owner": "dag/run/second/-1"}
    assert run(addresses(2), budget=BudgetLimits(max_requests=3), **first).summary["bought"] == 2
    assert run(addresses(2), budget=BudgetLimits(max_requests=3), **second).summary["bought"] == 2
    report = run(addresses(4), budget=BudgetLimits(max_requests=3), **first)
    assert report.summary["bought"] == 3
    assert isinstance(report.error, WanBudgetError)
    assert outcomes(report) == {"reused": 2, "landed": 1, "left": 1}


@pytest.mark.parametrize("deferrable", [True, False])
def test_images_left_by_a_limit_fail_the_task_after_a_wait_too(sandbox: Sandbox, deferrable: bool) -> None:
    sandbox.control("account", {"concurrency": 1})
    sandbox.add_fault("generation", "fail", img_url_contains="000.jpg")
    images = IMAGES[:4]
    played = run_try(
        TaskInstance(),
        images=images,
        max_requests=len(images),
        retries_per_image=1,
        resume_when_ready=1,
        deferrable=deferrable,
    )
    assert len(sandbox.ledger()["purchases"]) == len(images)
    assert "max_requests=4 is reached" in str(played.error)
