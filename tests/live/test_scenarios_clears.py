# SPDX-License-Identifier: Apache-2.0
"""Whatever is retried, cleared or run again takes up what was bought before."""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import Case

CHAIN, IN_WORKER, SHORT, WAIT = (
    "scenario_chain",
    "scenario_wait_in_worker",
    "scenario_short_wait",
    "scenario_wait",
)


@scenario
def test_a_try_that_runs_out_of_time_leaves_what_runs_to_the_next(live: Live) -> None:
    case = Case(live, "timed-out-while-running")
    case.api_fault("generation", "stuck_running")
    run_id = case.start(SHORT)
    request_id = case.wait_purchase()
    make = case.task(SHORT, run_id, "make")
    case.wait_task(make, "deferred", try_number=2)

    live.force(request_id, "succeeded")

    case.finish(SHORT, run_id)
    assert {one["outcome"] for one in case.cancels()} == {"not_cancellable"}
    case.judge()


@scenario
def test_a_request_that_ran_out_of_time_in_the_queue_is_cancelled_and_bought_anew(live: Live) -> None:
    case = Case(live, "timed-out-while-queued")
    case.api_fault("generation", "stuck_queue", count=1)
    run_id = case.start(SHORT)
    case.wait_cancel()
    case.harmed()

    case.finish(SHORT, run_id)
    case.judge(bought=2, cancelled=1)


@scenario
def test_a_generation_that_failed_is_bought_again_by_the_retry_and_charged_once(live: Live) -> None:
    case = Case(live, "generation-fails-once")
    case.api_fault("generation", "fail", count=1)
    run_id = case.start(WAIT)

    case.ends(WAIT, run_id)
    case.judge(bought=2, charged=1)


@scenario
def test_cleared_while_deferred_it_takes_the_request_over(live: Live) -> None:
    cleared_while_deferred(Case(live, "cleared-while-deferred", journal=False), "queue")


@scenario
def test_cleared_while_deferred_with_a_journal_it_takes_the_request_over(live: Live) -> None:
    cleared_while_deferred(Case(live, "cleared-while-deferred-journal", journal=True), "running")


def cleared_while_deferred(case: Case, where: str) -> None:
    case.api_fault("generation", f"stuck_{where}")
    run_id = case.start(WAIT)
    make = case.task(WAIT, run_id, "make")
    case.wait_task(make, "deferred")
    case.wait_asked(request_id := case.wait_purchase())

    case.live.client.clear(make)
    case.harmed()

    case.wait_task(make, "deferred", try_number=2)
    case.recovered()
    case.live.force(request_id, "succeeded")
    case.finish(WAIT, run_id)
    case.judge()


@scenario
def test_cleared_while_it_runs_it_takes_the_request_over(live: Live) -> None:
    cleared_while_running(Case(live, "cleared-while-running", journal=False))


@scenario
def test_cleared_while_it_runs_with_a_journal_it_takes_the_request_over(live: Live) -> None:
    cleared_while_running(Case(live, "cleared-while-running-journal", journal=True))


def cleared_while_running(case: Case) -> None:
    case.api_fault("generation", "stuck_queue")
    run_id = case.start(IN_WORKER)
    make = case.task(IN_WORKER, run_id, "make")
    case.wait_asked(request_id := case.wait_purchase())

    case.live.client.clear(make)
    case.harmed()

    case.wait_task(make, "running", try_number=2)
    case.live.force(request_id, "succeeded")
    case.finish(IN_WORKER, run_id)
    case.judge()


@scenario
def test_cleared_after_success_it_buys_and_writes_nothing(live: Live) -> None:
    cleared_after_success(Case(live, "cleared-after-success", journal=False))


@scenario
def test_cleared_after_success_with_a_journal_it_buys_and_writes_nothing(live: Live) -> None:
    cleared_after_success(Case(live, "cleared-after-success-journal", journal=True))


def cleared_after_success(case: Case) -> None:
    run_id = case.start(CHAIN)
    case.ends(CHAIN, run_id)

    case.live.client.clear(case.task(CHAIN, run_id, "submit"), downstream=True)
    case.harmed()

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
    case.harmed()

    second = case.start(WAIT)

    case.finish(WAIT, second)
    case.judge()
