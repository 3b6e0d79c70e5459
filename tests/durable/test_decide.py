# SPDX-License-Identifier: Apache-2.0
"""The decision table, row by row, and invariants of every combination."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_wan.durable.decide import Action, Decision, Policy, RemoteState, decide, resubmit_word
from airflow_provider_wan.durable.record import Record, Stage

WANTED, FORMER = "f" * 64, "e" * 64


def a_record(**changes: object) -> Record:
    fields: dict[str, object] = {
        "fingerprint": WANTED,
        "model_id": "wan-ai/wan-2-2/image-to-video",
        "stage": Stage.SUBMITTED,
        "request_id": "req-1",
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def an_intent(**changes: object) -> Record:
    return a_record(stage=Stage.INTENT, request_id=None, **changes)


PLAIN = Policy()
ASKED_TO_RESUBMIT = Policy(on_unknown_submission="resubmit")
SETTLED_AS_RESUBMIT = Policy(resolution="resubmit")
SETTLED_AS_AN_ID = Policy(resolution="req-9")
PAID = a_record(stage=Stage.SUCCEEDED, succeeded_once=True)
CHANGED = a_record(fingerprint=FORMER)

TABLE = [
    # record, what RunComfy says, policy, what to do
    ("nothing is remembered", None, None, PLAIN, Action.SUBMIT),
    ("nothing is remembered, resubmit", None, None, SETTLED_AS_RESUBMIT, Action.SUBMIT),
    ("nothing is recorded, settled as an id", None, None, SETTLED_AS_AN_ID, Action.FAIL_NO_CLAIM),
    ("remembered and not asked yet", a_record(), None, PLAIN, Action.ASK),
    ("queued", a_record(), RemoteState.QUEUED, PLAIN, Action.ADOPT),
    ("running", a_record(), RemoteState.RUNNING, PLAIN, Action.ADOPT),
    ("an unknown word", a_record(), RemoteState.UNKNOWN, PLAIN, Action.ADOPT),
    ("landed, and nobody needs to ask", a_record(stage=Stage.LANDED), None, PLAIN, Action.REUSE),
    ("landed, expired", a_record(stage=Stage.LANDED, succeeded_once=True), RemoteState.GONE, PLAIN, Action.REUSE),
    ("succeeded, result there", a_record(), RemoteState.SUCCEEDED, PLAIN, Action.REUSE),
    ("succeeded once, result gone", PAID, RemoteState.GONE, PLAIN, Action.FAIL_PAID_AND_GONE),
    ("succeeded once, now said to have failed", PAID, RemoteState.FAILED, PLAIN, Action.FAIL_PAID_AND_GONE),
    ("ended, and only the result is gone", a_record(), RemoteState.RESULT_GONE, PLAIN, Action.FAIL_PAID_AND_GONE),
    ("failed", a_record(), RemoteState.FAILED, PLAIN, Action.SUBMIT),
    ("cancelled", a_record(), RemoteState.CANCELLED, PLAIN, Action.SUBMIT),
    ("gone, and never seen succeeded", a_record(), RemoteState.GONE, PLAIN, Action.SUBMIT),
    ("a 403, or a 404 of somebody else", a_record(), RemoteState.UNCLEAR, PLAIN, Action.FAIL_UNCLEAR),
    ("task changed, former not asked for", CHANGED, None, PLAIN, Action.ASK),
    ("task changed, former queued", CHANGED, RemoteState.QUEUED, PLAIN, Action.CANCEL_THEN_SUBMIT),
    ("task changed, former running", CHANGED, RemoteState.RUNNING, PLAIN, Action.SUBMIT_BESIDE),
    ("task changed, former done", CHANGED, RemoteState.SUCCEEDED, PLAIN, Action.SUBMIT_BESIDE),
    ("task changed, former failed", CHANGED, RemoteState.FAILED, PLAIN, Action.SUBMIT),
    ("task changed, former unclear", CHANGED, RemoteState.UNCLEAR, PLAIN, Action.FAIL_UNCLEAR),
    ("task changed, former landed", a_record(fingerprint=FORMER, stage=Stage.LANDED), None, PLAIN, Action.SUBMIT),
    ("intent, its writer may be alive", an_intent(), None, Policy(claim_may_be_alive=True), Action.WAIT_FOR_CLAIM),
    ("intent without id", an_intent(), None, PLAIN, Action.FAIL_UNKNOWN),
    ("intent of a former task", an_intent(fingerprint=FORMER), None, PLAIN, Action.FAIL_UNKNOWN),
    ("intent, asked to resubmit", an_intent(), None, ASKED_TO_RESUBMIT, Action.SUBMIT),
    ("intent, settled as resubmit", an_intent(), None, SETTLED_AS_RESUBMIT, Action.SUBMIT),
    ("intent, settled as an id", an_intent(), None, SETTLED_AS_AN_ID, Action.SETTLE),
    ("intent of a former task, settled as an id", an_intent(fingerprint=FORMER), None, SETTLED_AS_AN_ID, Action.SETTLE),
    ("second lost submission, first one's word", an_intent(lost_submissions=1), None, SETTLED_AS_RESUBMIT,
     Action.FAIL_UNKNOWN),
    ("second lost submission, its own word", an_intent(lost_submissions=1), None, Policy(resolution="resubmit-2"),
     Action.SUBMIT),
    ("lost after what the settlement names", an_intent(earlier_request_ids=("req-9",)), None, SETTLED_AS_AN_ID,
     Action.FAIL_UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "there", "policy", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_decision_table(record: Record | None, there: RemoteState | None, policy: Policy, expected: Action) -> None:
    assert decide(record, WANTED, there, policy).do is expected


def test_a_request_that_is_not_bought_again_says_how_to_buy_another_take() -> None:
    for record, there in ((a_record(stage=Stage.LANDED), None), (a_record(), RemoteState.SUCCEEDED)):
        why = decide(record, WANTED, there, PLAIN).why
        assert "req-1" in why
        assert "variation" in why


def test_request_left_by_a_changed_task_is_named() -> None:
    why = decide(CHANGED, WANTED, RemoteState.RUNNING, PLAIN).why
    assert "req-1" in why
    assert "paid for" in why


texts = st.sampled_from(["req-1", "req-2", "req-9"])
records = st.builds(
    a_record,
    fingerprint=st.sampled_from([WANTED, FORMER]),
    stage=st.sampled_from([stage for stage in Stage if stage is not Stage.INTENT]),
    request_id=texts,
    succeeded_once=st.booleans(),
    lost_submissions=st.integers(0, 3),
    earlier_request_ids=st.lists(texts, max_size=2).map(tuple),
)
intents = st.builds(
    an_intent,
    fingerprint=st.sampled_from([WANTED, FORMER]),
    lost_submissions=st.integers(0, 3),
    earlier_request_ids=st.lists(texts, max_size=2).map(tuple),
)
policies = st.builds(
    Policy,
    on_unknown_submission=st.sampled_from(["fail", "resubmit"]),
    resolution=st.sampled_from([None, "resubmit", "resubmit-2", "req-9", "req-1"]),
    claim_may_be_alive=st.booleans(),
)
answers = st.sampled_from([None, *RemoteState])
BUYS = {Action.SUBMIT, Action.CANCEL_THEN_SUBMIT, Action.SUBMIT_BESIDE}


def buys(decision: Decision) -> bool:
    return decision.do in BUYS


@given(records, answers, policies)
def test_adoptable_or_reusable_request_is_never_bought_again(
    record: Record, there: RemoteState | None, policy: Policy
) -> None:
    alive = there in (RemoteState.QUEUED, RemoteState.RUNNING, RemoteState.UNKNOWN, RemoteState.SUCCEEDED)
    if record.fingerprint == WANTED and (alive or record.stage is Stage.LANDED or record.succeeded_once):
        assert not buys(decide(record, WANTED, there, policy))


@given(records, policies)
def test_nothing_is_bought_before_runcomfy_was_asked(record: Record, policy: Policy) -> None:
    decision = decide(record, WANTED, None, policy)
    assert not buys(decision) or (record.fingerprint != WANTED and record.stage is Stage.LANDED)


@given(records, policies)
def test_an_unclear_answer_buys_nothing(record: Record, policy: Policy) -> None:
    decision = decide(record, WANTED, RemoteState.UNCLEAR, policy)
    assert not buys(decision) or (record.fingerprint != WANTED and record.stage is Stage.LANDED)


@given(intents, answers, policies)
def test_lost_submission_is_resubmitted_only_on_explicit_request(
    record: Record, there: RemoteState | None, policy: Policy
) -> None:
    decision = decide(record, WANTED, there, policy)
    assert not buys(decision) or (
        not policy.claim_may_be_alive
        and (policy.on_unknown_submission == "resubmit" or policy.resolution == resubmit_word(record))
    )


@given(intents, policies)
def test_settlement_of_one_lost_submission_does_not_settle_the_next(record: Record, policy: Policy) -> None:
    word = resubmit_word(record)
    lost_again = record.as_new_intent(an_intent())
    assert decide(lost_again, WANTED, None, Policy(resolution=word)).do is Action.FAIL_UNKNOWN


@given(st.none() | records | intents, answers, policies)
def test_every_case_has_an_answer(record: Record | None, there: RemoteState | None, policy: Policy) -> None:
    decision = decide(record, WANTED, there, policy)
    assert isinstance(decision.do, Action)
    if there is not None:
        assert decision.do is not Action.ASK
