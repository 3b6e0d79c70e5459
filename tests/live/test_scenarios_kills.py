# SPDX-License-Identifier: Apache-2.0
"""A killed worker buys nothing twice and loses no known purchase, as Airflow handles it.

Each scenario stops the task at one point with a fault of the sandbox, checks in the sandbox that it is there,
and kills the process of the operator. Kills at the other points are in `tests/operators/test_chain.py` and
`tests/durable/test_submission_processes.py`.
"""

from __future__ import annotations

import json

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import QUICK_S, Case

CHAIN, IN_WORKER = "scenario_chain", "scenario_wait_in_worker"


@scenario
def test_kill_between_post_and_id_is_reported_and_settled_by_a_person(live: Live) -> None:
    case = Case(live, "killed-between-post-and-id", account=True)
    case.api_fault("submit", "hang_after", count=1)
    run_id = case.start(CHAIN)
    request_id = case.wait_purchase()
    case.give_up_on_answers_after(QUICK_S)

    case.kill(case.task(CHAIN, run_id, "submit"))

    is_unknown(case, run_id)
    case.judge(landed=0)
    settled_in_the_same_run(case, run_id, request_id)


@scenario
def test_worker_killed_during_a_wait_has_its_request_adopted(live: Live) -> None:
    killed_while_waiting(Case(live, "killed-while-waiting"))


@scenario
def test_a_machine_that_dies_while_a_worker_waits_loses_nothing(live: Live) -> None:
    killed_while_waiting(Case(live, "machine-dies-while-waiting"), with_supervisor=True)


def killed_while_waiting(case: Case, **how: bool) -> None:
    case.api_fault("generation", "stuck_running")
    run_id = case.start(IN_WORKER)
    request_id = case.wait_purchase()
    case.wait_asked(request_id)

    case.kill(case.task(IN_WORKER, run_id, "make"), **how)

    case.live.force(request_id, "succeeded")
    case.finish(IN_WORKER, run_id)
    case.judge()


def is_unknown(case: Case, run_id: str) -> None:
    """The second try fails, without a third, and says how to settle what nobody can know."""
    submit = case.task(CHAIN, run_id, "submit")
    last_try = case.wait_task(submit, "failed")
    case.recovered()
    assert last_try == 2
    log = case.log(submit)
    assert "WanUnknownSubmissionError" in log
    assert "resolve={" in log
    case.ends(CHAIN, run_id, "failed")


def settled_in_the_same_run(case: Case, run_id: str, answer: str) -> None:
    """A person says in a Variable what the request was, and clears the task."""
    case.settling()
    value = json.dumps({case.img_url: answer})
    case.live.client.api("POST", "/variables", {"key": f"resolve-{case.name}", "value": value})
    case.live.client.clear(case.task(CHAIN, run_id, "submit"), downstream=True)
    case.wait_task(case.task(CHAIN, run_id, "land"), "success")
    case.recovered()
    case.judge()
