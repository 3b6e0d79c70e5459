# SPDX-License-Identifier: Apache-2.0
"""A worker that dies at each point of the way buys nothing twice, and loses nothing that is known to be bought.

Each scenario holds the task at its point with a fault of the sandbox, sees in the sandbox that it is there, and
kills the process in which the operator runs.
"""

from __future__ import annotations

import json
import re

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import QUICK_S, Case

CHAIN, IN_WORKER = "scenario_chain", "scenario_wait_in_worker"


@scenario
def test_killed_before_the_claim_it_buys_once(live: Live) -> None:
    case = Case(live, "killed-before-claim", journal=False)
    reading = case.image_fault("hang", count=1)
    run_id = case.start(CHAIN)
    case.wait_hit(reading)

    case.kill(case.task(CHAIN, run_id, "submit"))

    case.finish(CHAIN, run_id)
    case.judge()


@scenario
def test_killed_before_the_claim_is_written_to_the_journal_it_buys_once(live: Live) -> None:
    case = Case(live, "killed-before-claim-journal", journal=True)
    claiming = case.journal_fault("hang", count=1)
    run_id = case.start(IN_WORKER)
    case.wait_hit(claiming)

    case.kill(case.task(IN_WORKER, run_id, "make"))

    case.finish(IN_WORKER, run_id)
    case.judge()


@scenario
def test_killed_between_claim_and_post_it_says_so_and_a_person_sends_it_again(live: Live) -> None:
    case = Case(live, "killed-between-claim-and-post", journal=True, account=True)
    claiming = case.journal_fault("hang_after", count=1)
    run_id = case.start(CHAIN)
    case.wait_hit(claiming)
    case.give_up_on_answers_after(QUICK_S)

    case.kill(case.task(CHAIN, run_id, "submit"))

    is_unknown(case, run_id)
    case.judge(bought=0, landed=0)
    settled(case, "resubmit")


@scenario
def test_killed_between_post_and_id_it_says_so_and_a_person_names_the_request(live: Live) -> None:
    case = Case(live, "killed-between-post-and-id", journal=False, account=True)
    run_id, request_id = killed_between_post_and_id(case)
    settled_in_the_same_run(case, run_id, request_id)


@scenario
def test_killed_between_post_and_id_with_a_journal_it_says_so_and_a_person_names_the_request(
    live: Live,
) -> None:
    case = Case(live, "killed-between-post-and-id-journal", journal=True, account=True)
    _, request_id = killed_between_post_and_id(case)
    settled(case, request_id)


def killed_between_post_and_id(case: Case) -> tuple[str, str]:
    case.api_fault("submit", "hang_after", count=1)
    run_id = case.start(CHAIN)
    request_id = case.wait_purchase()
    case.give_up_on_answers_after(QUICK_S)

    case.kill(case.task(CHAIN, run_id, "submit"))

    is_unknown(case, run_id)
    case.judge(landed=0)
    return run_id, request_id


@scenario
def test_killed_before_the_id_is_written_the_log_has_the_id_to_settle_it_with(live: Live) -> None:
    case = Case(live, "killed-before-id-is-written", journal=True, account=True)
    writing_id = case.journal_fault("hang", skip=1, count=1)
    run_id = case.start(CHAIN)
    case.wait_hit(writing_id)
    case.give_up_on_answers_after(QUICK_S)
    submit = case.task(CHAIN, run_id, "submit")

    case.kill(submit)

    is_unknown(case, run_id)
    [logged] = re.findall(r"accepted the request: request_id=(\S+)", case.log(submit))
    case.judge(landed=0)
    settled(case, logged)


@scenario
def test_killed_when_the_id_is_written_it_takes_the_request_over(live: Live) -> None:
    case = Case(live, "killed-when-id-is-written", journal=True)
    writing_id = case.journal_fault("hang_after", skip=1, count=1)
    run_id = case.start(CHAIN)
    case.wait_hit(writing_id)

    case.kill(case.task(CHAIN, run_id, "submit"))

    case.finish(CHAIN, run_id)
    case.judge()


@scenario
def test_killed_while_it_waits_in_the_worker_it_takes_the_request_over(live: Live) -> None:
    killed_while_waiting(Case(live, "killed-while-waiting", journal=False))


@scenario
def test_killed_while_it_waits_in_the_worker_with_a_journal_it_takes_the_request_over(live: Live) -> None:
    killed_while_waiting(Case(live, "killed-while-waiting-journal", journal=True))


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


@scenario
def test_killed_while_downloading_it_lands_one_whole_video(live: Live) -> None:
    case = Case(live, "killed-while-downloading", journal=True)
    downloading = case.api_fault("media", "stall", count=1)
    run_id = case.start(IN_WORKER)
    case.wait_hit(downloading)

    case.kill(case.task(IN_WORKER, run_id, "land"))

    case.finish(IN_WORKER, run_id)
    case.judge()


@scenario
def test_killed_when_the_video_is_written_it_lands_it_once(live: Live) -> None:
    case = Case(live, "killed-when-video-is-written")
    uploading = case.video_fault("hang_after", count=1)
    run_id = case.start(CHAIN)
    case.wait_hit(uploading)

    case.kill(case.task(CHAIN, run_id, "land"))

    case.finish(CHAIN, run_id)
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


def settled(case: Case, answer: str) -> None:
    """A person starts another run and says there what the request was, or that there was none."""
    case.settling()
    run_id = case.start(IN_WORKER, resolve={case.img_url: answer})
    case.finish(IN_WORKER, run_id)
    case.judge()


def settled_in_the_same_run(case: Case, run_id: str, answer: str) -> None:
    """A person says in a Variable what the request was, and clears the task."""
    case.settling()
    value = json.dumps({case.img_url: answer})
    case.live.client.api("POST", "/variables", {"key": f"resolve-{case.name}", "value": value})
    case.live.client.clear(case.task(CHAIN, run_id, "submit"), downstream=True)
    case.wait_task(case.task(CHAIN, run_id, "land"), "success")
    case.recovered()
    case.judge()
