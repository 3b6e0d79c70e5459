# SPDX-License-Identifier: Apache-2.0
"""What a wait in a triggerer survives: its end, a freeze, a rotated token. No request is cancelled."""

from __future__ import annotations

from demo.airflow_client import TaskKey
from demo.local_airflow import Triggerer
from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import HAS_ON_KILL, Case
from tests.live.scenario_waits import goes_on, waiting_in_a_triggerer

BATCH, CHAIN = "scenario_batch", "scenario_chain"
LEFT = "the task's state is deferred"


def batch_waiting_in_a_triggerer(case: Case) -> tuple[TaskKey, Triggerer]:
    images = case.more_images(1)
    for image in images:
        case.api_fault("generation", "stuck_queue", img_url=image)
    batch = case.task(BATCH, case.start(BATCH, images=case.manifest(images)), "batch")
    case.wait_task(batch, "deferred")
    for request_id in case.request_ids(2):
        case.wait_asked(request_id)
    return batch, case.live.airflow.triggerer_of(batch)


def with_another(live: Live) -> None:
    if len(live.airflow.triggerers) < 2:
        live.airflow.start_triggerer()


@scenario(alone=True)
def test_a_frozen_triggerer_that_wakes_up_cancels_nothing_that_another_one_waits_for(live: Live) -> None:
    case, crowd = Case(live, "triggerer-frozen", journal=True), Case(live, "triggerer-frozen-batch")
    make, frozen, request_id = waiting_in_a_triggerer(case)
    batch, frozen_too = batch_waiting_in_a_triggerer(crowd)
    live.airflow.start_triggerer()

    for triggerer in {frozen, frozen_too}:
        triggerer.process.pause()
    case.mark_failure()
    crowd.mark_failure()
    try:
        live.airflow.wait_taken_over(make, lost=frozen)
        case.recovered()
        live.airflow.wait_taken_over(batch, lost=frozen_too)
        crowd.recovered()
    finally:
        for triggerer in {frozen, frozen_too}:
            triggerer.process.resume()

    if HAS_ON_KILL:
        case.wait_log(make, LEFT)
        crowd.wait_log(batch, LEFT)
    for one in crowd.request_ids(2):
        live.force(one, "succeeded")
    goes_on(case, make, request_id)
    crowd.ends(BATCH, batch.run_id)
    assert crowd.cancels() == []
    crowd.judge(bought=2, landed=2)


@scenario(alone=True)
def test_stopped_triggerer_hands_its_requests_over(live: Live) -> None:
    case = Case(live, "triggerer-terminated", journal=True)
    make, ended, request_id = waiting_in_a_triggerer(case)
    with_another(live)

    case.mark_failure()
    live.airflow.terminate_triggerer(ended)

    live.airflow.wait_taken_over(make, lost=ended)
    case.recovered()
    goes_on(case, make, request_id)


@scenario
def test_a_token_that_is_rotated_during_the_wait_loses_nothing(live: Live) -> None:
    case = Case(live, "token-rotated", account=True)
    case.api_fault("generation", "stuck_running")
    run_id = case.start(CHAIN)
    request_id = case.wait_purchase()
    case.wait_task(case.task(CHAIN, run_id, "wait"), "deferred")
    refused_before = len(refusals(live))

    case.revoke_token()
    case.mark_failure()
    case.wait_until(lambda: len(refusals(live)) > refused_before, "a call with the revoked token")
    case.rotate_token()
    live.force(request_id, "succeeded")

    case.finish(CHAIN, run_id)
    case.judge()


def refusals(live: Live) -> list[object]:
    return [one for one in live.sandbox.ledger()["refusals"] if one["code"] == 400004]
