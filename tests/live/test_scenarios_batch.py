# SPDX-License-Identifier: Apache-2.0
"""A batch whose task is marked while it is deferred."""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import Case, need_on_kill

BATCH = "scenario_batch"
COUNT = 5


@scenario
def test_batch_marked_failed_cancels_queued_and_keeps_running_requests(live: Live) -> None:
    need_on_kill()
    case = Case(live, "batch-marked-failed", account=True)
    live.sandbox.control("account", {"account": case.name, "concurrency": 2})
    images = case.more_images(COUNT - 1)
    for image in images:
        case.api_fault("generation", "stuck_running", img_url=image)
    run_id = case.start(BATCH, images=case.manifest(images))
    batch = case.task(BATCH, run_id, "batch")
    case.wait_task(batch, "deferred")
    # Airflow notifies only a trigger that runs; the polls of the worker do not show that.
    case.wait_log(batch, ") starting")

    live.client.set_state(batch, "failed")
    case.mark_failure()

    case.wait_log(batch, f"{COUNT - 2} of {COUNT} requests were still queued")
    case.recovered()
    case.judge(bought=COUNT, cancelled=COUNT - 2, landed=0)
