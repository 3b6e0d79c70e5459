# SPDX-License-Identifier: Apache-2.0
"""What a batch occupies while nothing is ready: no process, and one trigger for all its requests."""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_batches import comes_back, processes_of, triggers_of
from tests.live.scenario_case import Case

BATCH = "scenario_batch"
COUNT = 24
LATE_S = 6
"""A submit takes so long: time to see the process that waits for it."""


@scenario
def test_while_nothing_is_ready_a_batch_has_no_process_and_one_trigger(live: Live) -> None:
    case = Case(live, "batch-waits", account=True)
    live.sandbox.control("account", {"account": case.name, "concurrency": COUNT})
    images = case.more_images(COUNT - 1)
    case.api_fault("generation", "stuck_running", img_url=case.name)
    late = case.api_fault("submit", "delay", seconds=LATE_S, count=1)
    run_id = case.start(BATCH, images=case.manifest(images))
    batch = case.task(BATCH, run_id, "batch")

    case.wait_hit(late)
    assert processes_of(case, batch), "the process of a running task is seen"
    request_ids = case.request_ids(COUNT)
    case.wait_task(batch, "deferred")
    for request_id in request_ids[:1]:
        case.wait_asked(request_id)

    case.wait_until(lambda: not processes_of(case, batch), "the end of the batch's process")
    case.wait_task(batch, "deferred")
    assert triggers_of(case, run_id) == ["airflow_provider_wan.triggers.wan_batch.WanBatchTrigger"]
    assert processes_of(case, batch) == []
    assert comes_back(case, batch) == 1

    for request_id in request_ids:
        live.force(request_id, "succeeded")
    case.finish(BATCH, run_id)
    # Not once a request: for as many as are ready, or when the first has waited long enough.
    assert comes_back(case, batch) <= COUNT // 4
    assert triggers_of(case, run_id) == []
    case.judge(bought=COUNT, landed=COUNT)
