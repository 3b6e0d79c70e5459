# SPDX-License-Identifier: Apache-2.0
"""A triggerer that ends, dies or is frozen: another one goes on, and no request is cancelled."""

from __future__ import annotations

from harness_live import Live
from harness_scenarios import scenario
from scenario_case import HAS_ON_KILL, Case

from demo.airflow_client import TaskKey
from demo.local_airflow import Triggerer

WAIT = "scenario_wait"


def waiting_in_a_triggerer(case: Case) -> tuple[TaskKey, Triggerer, str]:
    """A queued request that is waited for, and that a false cancel would reach."""
    case.api_fault("generation", "stuck_queue")
    make = case.task(WAIT, case.start(WAIT), "make")
    case.wait_task(make, "deferred")
    case.wait_asked(request_id := case.wait_purchase())
    triggerer = case.live.airflow.triggerer_of(make)
    if len(case.live.airflow.triggerers) < 2:
        case.live.airflow.start_triggerer()
    return make, triggerer, request_id


def goes_on(case: Case, make: TaskKey, request_id: str) -> None:
    case.live.force(request_id, "succeeded")
    case.ends(WAIT, make.run_id)
    assert case.cancels() == []
    case.judge()


@scenario(alone=True)
def test_a_frozen_triggerer_that_wakes_up_cancels_nothing_that_another_one_waits_for(live: Live) -> None:
    case = Case(live, "triggerer-frozen", journal=True)
    make, frozen, request_id = waiting_in_a_triggerer(case)

    frozen.process.pause()
    case.harmed()
    try:
        live.airflow.wait_taken_over(make, lost=frozen)
        case.recovered()
    finally:
        frozen.process.resume()

    if HAS_ON_KILL:
        case.wait_log(make, "is left alone: the task's state is deferred")
    goes_on(case, make, request_id)


@scenario(alone=True)
def test_a_triggerer_that_is_asked_to_end_hands_its_requests_over(live: Live) -> None:
    case = Case(live, "triggerer-terminated", journal=True)
    make, ended, request_id = waiting_in_a_triggerer(case)

    case.harmed()
    live.airflow.terminate_triggerer(ended)

    live.airflow.wait_taken_over(make, lost=ended)
    case.recovered()
    goes_on(case, make, request_id)


@scenario(alone=True)
def test_the_requests_of_a_killed_triggerer_are_taken_over(live: Live) -> None:
    case = Case(live, "triggerer-killed", journal=True)
    make, killed, request_id = waiting_in_a_triggerer(case)

    live.airflow.kill_triggerer(killed)
    case.harmed()

    live.airflow.wait_taken_over(make, lost=killed)
    case.recovered()
    goes_on(case, make, request_id)
