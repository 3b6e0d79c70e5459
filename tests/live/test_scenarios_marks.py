# SPDX-License-Identifier: Apache-2.0
"""A task that is marked while it is deferred: queued requests are cancelled, running ones are reported.

Requests that another task owns are not cancelled.
"""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import Case, need_on_kill

CHAIN, MARK, MAPPED, TIMEOUT = (
    "scenario_chain",
    "scenario_mark",
    "scenario_mark_mapped",
    "scenario_run_timeout",
)
LEFT = "runs on and is charged"


@scenario
def test_queued_request_of_a_task_marked_failed_is_cancelled_and_not_charged(live: Live) -> None:
    marked(Case(live, "marked-failed-queued"), "failed", queued=True)


@scenario
def test_running_request_of_a_task_marked_success_is_kept_and_logged(live: Live) -> None:
    marked(Case(live, "marked-success-running"), "success", queued=False)


def marked(case: Case, state: str, *, queued: bool) -> None:
    need_on_kill()
    case.api_fault("generation", "stuck_queue" if queued else "stuck_running")
    run_id = case.start(MARK)
    make = case.task(MARK, run_id, "make")
    case.wait_task(make, "deferred")
    case.wait_asked(case.wait_purchase())

    case.live.client.set_state(make, state)
    case.mark_failure()

    case.wait_cancel()
    case.recovered()
    case.wait_log(make, "it is cancelled and not charged" if queued else LEFT)
    case.judge(cancelled=int(queued), landed=0)


@scenario
def test_mapped_tasks_marked_failed_lose_only_their_own_queued_request(live: Live) -> None:
    """Of three, the first is queued and the second runs when they are marked; the third goes on."""
    need_on_kill()
    case = Case(live, "mapped-marked-failed")
    images = case.more_images(2)
    for image, where in zip(images, ("queue", "running", "queue"), strict=True):
        case.api_fault("generation", f"stuck_{where}", img_url=image)
    run_id = case.start(MAPPED, img_urls=images)
    tasks = [case.task(MAPPED, run_id, "make", index) for index in range(3)]
    for task in tasks:
        case.wait_task(task, "deferred")
    by_image = {one["img_url"]: one["request_id"] for one in case.purchases()}
    for image in images:
        case.wait_asked(by_image[image])

    for task in tasks[:2]:
        case.live.client.set_state(task, "failed")
    case.mark_failure()

    case.wait_until(lambda: len(case.cancels()) == 2, "two cancels")
    case.recovered()
    assert {one["request_id"] for one in case.cancels()} == {by_image[image] for image in images[:2]}
    case.wait_log(tasks[1], LEFT)
    case.live.force(by_image[images[2]], "succeeded")
    case.wait_task(tasks[2], "success")
    case.judge(bought=3, cancelled=1, landed=0)


@scenario
def test_a_sensor_marked_failed_cancels_what_its_own_run_submitted(live: Live) -> None:
    need_on_kill()
    case = Case(live, "sensor-marked-failed-journal", journal=True)
    case.api_fault("generation", "stuck_queue")
    run_id = case.start(CHAIN)
    wait = case.task(CHAIN, run_id, "wait")
    case.wait_task(wait, "deferred")
    case.wait_asked(case.wait_purchase(), times=2)  # the task looks once; the second look is its trigger's

    live.client.set_state(wait, "failed")
    case.mark_failure()

    case.wait_cancel()
    case.recovered()
    case.ends(CHAIN, run_id, "failed")
    case.judge(cancelled=1, landed=0)


@scenario
def test_task_marked_failed_keeps_a_request_owned_by_another_run(live: Live) -> None:
    need_on_kill()
    case = Case(live, "marked-failed-shared", journal=True)
    case.api_fault("generation", "stuck_queue")
    first = case.start(MARK)
    request_id = case.wait_purchase()
    case.wait_task(case.task(MARK, first, "make"), "deferred")
    second = case.start("scenario_wait")
    case.wait_task(case.task("scenario_wait", second, "make"), "deferred")

    live.client.set_state(case.task(MARK, first, "make"), "failed")
    case.mark_failure()

    case.wait_log(case.task(MARK, first, "make"), "other tasks depend on it")
    live.force(request_id, "succeeded")
    case.finish("scenario_wait", second)
    assert case.cancels() == []
    case.judge()


@scenario
def test_run_that_times_out_cancels_queued_requests(live: Live) -> None:
    need_on_kill()
    case = Case(live, "run-timed-out")
    run_id = deferred_in_the_queue(case)

    case.database.change("UPDATE dag_run SET start_date = start_date - interval '2 hours' WHERE run_id = %s", run_id)
    case.mark_failure()

    case.wait_cancel()
    case.recovered()
    case.ends(TIMEOUT, run_id, "failed")
    case.judge(cancelled=1, landed=0)


@scenario
def test_run_marked_failed_cancels_queued_requests(live: Live) -> None:
    need_on_kill()
    case = Case(live, "run-marked-failed")
    run_id = deferred_in_the_queue(case)

    live.client.set_run_state(TIMEOUT, run_id, "failed")
    case.mark_failure()

    case.wait_cancel()
    case.recovered()
    case.judge(cancelled=1, landed=0)


def deferred_in_the_queue(case: Case) -> str:
    case.api_fault("generation", "stuck_queue")
    run_id = case.start(TIMEOUT)
    case.wait_task(case.task(TIMEOUT, run_id, "make"), "deferred")
    case.wait_asked(case.wait_purchase())
    return run_id
