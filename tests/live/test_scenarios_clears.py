# SPDX-License-Identifier: Apache-2.0
"""A retried, cleared or repeated task adopts what was bought before."""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import Case

CHAIN, IN_WORKER, WAIT = "scenario_chain", "scenario_wait_in_worker", "scenario_wait"


@scenario
def test_task_cleared_while_deferred_adopts_its_request(live: Live) -> None:
    case = Case(live, "cleared-while-deferred")
    case.api_fault("generation", "stuck_queue")
    run_id = case.start(WAIT)
    make = case.task(WAIT, run_id, "make")
    case.wait_task(make, "deferred")
    case.wait_asked(request_id := case.wait_purchase())

    case.live.client.clear(make)
    case.mark_failure()

    case.wait_task(make, "deferred", try_number=2)
    case.recovered()
    case.live.force(request_id, "succeeded")
    case.finish(WAIT, run_id)
    case.judge()


@scenario
def test_task_cleared_while_running_adopts_its_request_from_the_journal(live: Live) -> None:
    case = Case(live, "cleared-while-running-journal", journal=True)
    case.api_fault("generation", "stuck_queue")
    run_id = case.start(IN_WORKER)
    make = case.task(IN_WORKER, run_id, "make")
    case.wait_asked(request_id := case.wait_purchase())

    case.live.client.clear(make)
    case.mark_failure()

    case.wait_task(make, "running", try_number=2)
    case.live.force(request_id, "succeeded")
    case.finish(IN_WORKER, run_id)
    case.judge()


@scenario
def test_task_cleared_after_success_buys_and_writes_nothing(live: Live) -> None:
    case = Case(live, "cleared-after-success")
    run_id = case.start(CHAIN)
    case.ends(CHAIN, run_id)

    case.live.client.clear(case.task(CHAIN, run_id, "submit"), downstream=True)
    case.mark_failure()

    case.wait_task(case.task(CHAIN, run_id, "land"), "success", try_number=2)
    case.finish(CHAIN, run_id)
    case.judge()


@scenario
def test_two_runs_at_once_over_one_image_buy_once(live: Live) -> None:
    case = Case(live, "two-runs-at-once", journal=True)
    runs = [case.start(CHAIN) for _ in range(2)]

    for run_id in runs:
        case.ends(CHAIN, run_id)
    case.judge()


@scenario
def test_a_run_after_a_run_that_was_deleted_buys_nothing(live: Live) -> None:
    case = Case(live, "run-after-deleted-run", journal=True)
    first = case.start(WAIT)
    case.ends(WAIT, first)
    live.client.delete_run(WAIT, first)
    case.mark_failure()

    second = case.start(WAIT)

    case.finish(WAIT, second)
    case.judge()
