# SPDX-License-Identifier: Apache-2.0
"""An outage of RunComfy or of the bucket, in each phase: what is bought is bought once, and lands."""

from __future__ import annotations

from tests.live.harness_live import Live
from tests.live.harness_scenarios import scenario
from tests.live.scenario_case import QUICK_S, Case

CHAIN, WAIT = "scenario_chain", "scenario_wait"


def lands_in_spite(case: Case, rule_id: str, *, hits: int) -> None:
    """It lands, with one purchase, though the fault has hit as often as it should."""
    run_id = case.start(WAIT)
    case.wait_hit(rule_id)
    case.harmed()
    case.finish(WAIT, run_id)
    case.wait_hit(rule_id, hits=hits)
    case.judge()


@scenario
def test_too_many_submits_are_sent_again_when_they_may_be(live: Live) -> None:
    case = Case(live, "submit-answered-429")
    rule_id = case.api_fault("submit", "overloaded", count=2, retry_after=1)
    lands_in_spite(case, rule_id, hits=2)
    assert [one for one in live.sandbox.ledger()["too_early"] if one["call"] == "submit"] == []


@scenario
def test_a_submit_that_met_an_outage_says_so_and_a_person_sends_it_again(live: Live) -> None:
    case = Case(live, "submit-answered-503", journal=True, account=True)
    unknown_submit(case, "status", "resubmit", bought=0)


@scenario
def test_a_submit_whose_answer_was_cut_off_says_so_and_a_person_names_the_request(live: Live) -> None:
    case = Case(live, "submit-answer-lost", journal=True, account=True)
    unknown_submit(case, "reset_after", None, bought=1)


def unknown_submit(case: Case, fault: str, answer: str | None, *, bought: int) -> None:
    case.api_fault("submit", fault, count=1)
    run_id = case.start(WAIT)
    case.ends(WAIT, run_id, "failed")
    make = case.task(WAIT, run_id, "make")
    assert case.live.client.task_instance(make)["try_number"] == 1
    assert "resolve={" in case.log(make)
    case.judge(bought=bought, landed=0)

    answer = answer or case.purchases()[0]["request_id"]
    case.give_up_on_answers_after(QUICK_S)
    case.settling()
    run_id = case.start(WAIT, resolve={case.img_url: answer})
    case.finish(WAIT, run_id)
    case.judge()


@scenario
def test_an_outage_while_it_waits_in_the_triggerer_loses_nothing(live: Live) -> None:
    case = Case(live, "status-answered-503")
    lands_in_spite(case, case.api_fault("status", "status", count=4), hits=4)


@scenario
def test_an_outage_when_it_reads_the_result_loses_nothing(live: Live) -> None:
    case = Case(live, "result-answered-503")
    lands_in_spite(case, case.api_fault("result", "status", count=3), hits=3)


@scenario
def test_an_outage_of_the_downloads_loses_nothing(live: Live) -> None:
    case = Case(live, "media-answered-503", journal=True)
    lands_in_spite(case, case.api_fault("media", "status", count=3), hits=3)


@scenario
def test_a_download_that_is_cut_off_is_taken_up_again(live: Live) -> None:
    case = Case(live, "media-cut-off")
    lands_in_spite(case, case.api_fault("media", "drop_at", count=2), hits=2)


@scenario
def test_a_bucket_that_is_out_at_the_claim_lets_nothing_be_bought_unseen(live: Live) -> None:
    case = Case(live, "bucket-out-at-claim", journal=True)
    lands_in_spite(case, case.journal_fault("status", count=2), hits=2)


@scenario
def test_a_bucket_that_is_out_when_the_id_is_there_gets_it_later(live: Live) -> None:
    case = Case(live, "bucket-out-at-id", journal=True)
    lands_in_spite(case, case.journal_fault("status", skip=1, count=2), hits=2)


@scenario
def test_a_bucket_that_is_out_when_the_video_is_there_gets_it_later(live: Live) -> None:
    case = Case(live, "bucket-out-at-landing", journal=True)
    lands_in_spite(case, case.video_fault("status", count=2), hits=2)


@scenario
def test_a_token_that_is_rotated_during_the_wait_loses_nothing(live: Live) -> None:
    case = Case(live, "token-rotated", account=True)
    case.api_fault("generation", "stuck_running")
    run_id = case.start(CHAIN)
    request_id = case.wait_purchase()
    case.wait_task(case.task(CHAIN, run_id, "wait"), "deferred")
    refused_before = len(refusals(live))

    case.revoke_token()
    case.harmed()
    case.wait_until(lambda: len(refusals(live)) > refused_before, "a call with the revoked token")
    case.rotate_token()
    live.force(request_id, "succeeded")

    case.finish(CHAIN, run_id)
    case.judge()


def refusals(live: Live) -> list[object]:
    return [one for one in live.sandbox.ledger()["refusals"] if one["code"] == 400004]
