# SPDX-License-Identifier: Apache-2.0
"""On Celery, nothing is bought twice and everything lands: undisturbed first, then with disturbances."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import unquote

import pytest

from demo.airflow_client import TaskKey
from tests.distributed.cluster import CHUNKS, QUEUED_TIMEOUT_S, CeleryAirflow
from tests.live.harness_live import VIDEOS_BUCKET, Live
from tests.live.scenario_case import Case
from tests.live.test_backfill_live import OF_DAY, begin, ended_well, publish, purchases, videos, wait_over

pytestmark = pytest.mark.live
DAILY, PRODUCER, DOWNSTREAM = "wan_daily_content", "wan_asset_producer", "wan_asset_downstream"
BATCH, CHAIN, IN_WORKER = "scenario_batch", "scenario_chain", "scenario_wait_in_worker"
IGNORED, REFUSED = "Task already running elsewhere, ignoring redelivered message", "Invalid auth token"
"""What a worker says of a second delivery, before and after the token in it expires."""
PATIENCE_S = 900
"""How long anything is waited for: a busy machine is slow, and that proves nothing."""
T = TypeVar("T")


def test_scheduled_backfilled_and_asset_triggered_runs(live: Live, airflow: CeleryAirflow) -> None:
    days = ("2026-03-01", "2026-03-02", "2026-03-03")
    for day in days:
        publish(live, day)
    airflow.wait_for_dags(DAILY, PRODUCER, DOWNSTREAM, timeout_s=PATIENCE_S)
    daily_image, campaign_image = live.image("daily"), live.image("campaign")
    set_catalogue(live, daily_image)

    for dag_id in (DAILY, DOWNSTREAM):
        live.client.unpause(dag_id)  # the latest day of the daily content is due
    backfill_id = begin(live, CHUNKS, *days)
    produced = live.start(PRODUCER, {"img_url": campaign_image, "bucket": VIDEOS_BUCKET})

    live.assert_ends(PRODUCER, produced, timeout_s=PATIENCE_S)
    for dag_id in (DAILY, DOWNSTREAM):
        live.assert_ends(dag_id, only_run(live, dag_id), timeout_s=PATIENCE_S)
    wait_over(live, backfill_id)
    ended_well(live, CHUNKS)

    assert purchases(live) == videos(live) == {f"dt={day}": len(OF_DAY) for day in days}
    assert Counter(one["img_url"] for one in live.sandbox.ledger()["purchases"]).most_common(1)[0][1] == 1
    assert len(live.videos("campaign/")) == 1
    assert [video["writes"] for video in live.videos()] == [1] * (len(days) * len(OF_DAY) + 2)
    # Both workers have had tasks, and each has written to its own folder only.
    for worker in airflow.workers:
        assert list((airflow.home / worker.name / "logs").rglob("attempt=*.log"))


def test_worker_triggerer_and_scheduler_killed_during_a_backfill(live: Live, airflow: CeleryAirflow) -> None:
    days = ("2026-03-04", "2026-03-05")
    for day in days:
        publish(live, day)
    live.sandbox.control("speed", {"generation_seconds": 3600})
    backfill_id = begin(live, CHUNKS, *days)
    requests = wait_until(live, lambda: bought(live, days), "all purchases")
    tasks = [
        TaskKey(CHUNKS, run["dag_run_id"], "make_videos", index)
        for run in live.client.pages(f"/dags/{CHUNKS}/dagRuns", "dag_runs", state="running")
        for index in range(len(OF_DAY))
    ]
    for task in tasks:
        live.wait_task(task, "deferred", timeout_s=PATIENCE_S)

    lost = airflow.triggerer_of(tasks[0], timeout_s=PATIENCE_S)
    airflow.kill_triggerer(lost)
    airflow.wait_taken_over(tasks[0], lost=lost, timeout_s=PATIENCE_S)
    slow = live.sandbox.add_fault("media", "shape", bytes_per_s=5_000)  # a minute for a video
    for request_id in requests:
        live.force(request_id, "succeeded")
    wait_until(live, lambda: has_hit(live, slow), "a landing")
    worker = airflow.worker_of(wait_until(live, lambda: one_running(live, tasks), "a chunk that lands"))
    airflow.kill(worker)
    airflow.kill(airflow.schedulers[0])
    live.sandbox.remove_fault(slow)
    live.sandbox.control("speed", {"generation_seconds": 3})
    airflow.start_scheduler()
    airflow.wait_ready(airflow.start_worker())
    airflow.start_triggerer(timeout_s=PATIENCE_S)

    wait_over(live, backfill_id)
    ended_well(live, CHUNKS)
    for seen in (purchases(live), videos(live)):
        assert [seen[f"dt={day}"] for day in days] == [len(OF_DAY)] * len(days)
    assert {video["writes"] for video in live.videos("backfill/dt=")} == {1}


def test_worker_shut_down_while_it_submits(live: Live, airflow: CeleryAirflow) -> None:
    batch = Case(live, "warm-shutdown")
    delay = batch.api_fault("submit", "delay", img_url=batch.name, seconds=15)
    images = batch.more_images(5)
    submitting = TaskKey(BATCH, batch.start(BATCH, images=batch.manifest(images)), "batch")
    batch.wait_hit(delay)

    worker = airflow.worker_of(submitting)
    airflow.shut_down(worker)

    airflow.wait_ready(airflow.start_worker())
    batch.ends(BATCH, submitting.run_id)
    assert batch.wait_task(submitting, "success") == 1
    batch.judge(bought=len(images), landed=len(images))
    assert worker.wait(timeout_s=PATIENCE_S)
    assert worker.exit_code == 0


def test_task_delivered_again_while_the_first_delivery_runs(live: Live, airflow: CeleryAirflow) -> None:
    early, late = (Case(live, name, journal=True) for name in ("delivered-early", "delivered-late"))
    early_task, early_request = waiting_in_a_worker(early)
    airflow.redeliver()
    wait_until(live, lambda: airflow.said(IGNORED, REFUSED), "a second delivery")

    late_task, late_request = waiting_in_a_worker(late)
    age, expired = (
        "extract(epoch FROM now() - queued_dttm)",
        QUEUED_TIMEOUT_S + 20,
    )  # Airflow allows 10 s more
    wait_until(live, lambda: late.database.task_instance(age, late_task)[0] > expired, "an expired token")
    airflow.redeliver()
    # Airflow takes the first delivery for failed, and the next try runs beside it for a moment.
    late.wait_task(late_task, "running", try_number=2)

    for case, task, request_id in ((early, early_task, early_request), (late, late_task, late_request)):
        live.force(request_id, "succeeded")
        case.ends(IN_WORKER, task.run_id)
        case.judge()


def test_broker_that_loses_all_messages(live: Live, airflow: CeleryAirflow) -> None:
    running, queued = (Case(live, name, journal=True) for name in ("without-broker", "lost-by-broker"))
    in_worker, request_id = waiting_in_a_worker(running)
    workers = [worker for worker in airflow.workers if worker in airflow.processes]
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)  # takes no message, so that the next one is in the broker when it dies
    run_id = queued.start(CHAIN)
    wait_until(live, lambda: airflow.redis.client.llen("default"), "a message in the broker")

    airflow.redis.restart()
    for worker in workers:
        worker.resume()

    queued.ends(CHAIN, run_id)
    queued.judge()
    live.force(request_id, "succeeded")
    running.ends(IN_WORKER, in_worker.run_id)
    running.judge()


def set_catalogue(live: Live, *images: str) -> None:
    """Make these images the ones of each day."""
    catalogue = [{"img_url": image, "prompt": "A slow move closer"} for image in images]
    value = json.dumps({"bucket": VIDEOS_BUCKET, "images": catalogue})
    live.client.api("POST", "/variables", {"key": DAILY, "value": value})


def only_run(live: Live, dag_id: str) -> str:
    """Wait until a Dag has a run, and return the id of the only one."""
    [run] = live.wait_until(lambda: live.client.pages(f"/dags/{dag_id}/dagRuns", "dag_runs"), f"a run of {dag_id}")
    return str(run["dag_run_id"])


def bought(live: Live, days: Sequence[str]) -> list[str]:
    """Return the request ids of all images of these days, or an empty list while some are not bought."""
    wanted = [f"/dt={day}/" for day in days]
    ledger = live.sandbox.ledger()["purchases"]
    ids = [one["request_id"] for one in ledger if any(part in unquote(one["img_url"]) for part in wanted)]
    return ids if len(ids) == len(days) * len(OF_DAY) else []


def one_running(live: Live, tasks: Sequence[TaskKey]) -> TaskKey | None:
    """Return one of the tasks that runs, if there is one."""
    return next((task for task in tasks if live.client.task_instance(task)["state"] == "running"), None)


def has_hit(live: Live, rule_id: str) -> bool:
    return any(rule["id"] == rule_id and rule["hits"] for rule in live.sandbox.control("faults")["faults"])


def waiting_in_a_worker(case: Case) -> tuple[TaskKey, str]:
    """Return a task that occupies a worker while its request is generated, and the request."""
    case.api_fault("generation", "stuck_running")
    task = TaskKey(IN_WORKER, case.start(IN_WORKER), "make")
    request_id = case.wait_purchase()
    case.wait_asked(request_id)
    return task, request_id


def wait_until(live: Live, check: Callable[[], T | None], what: str) -> T:
    return live.wait_until(check, what, timeout_s=PATIENCE_S)
