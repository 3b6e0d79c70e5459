# SPDX-License-Identifier: Apache-2.0
"""What to do about a wanted video, given what is remembered and what RunComfy says. Pure, and one table.

Everything about paying once lives here and in ``submission.py``, which carries these decisions out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from airflow_provider_wan.durable.record import Record, Stage

OnUnknownSubmission = Literal["fail", "resubmit"]
RESUBMIT = "resubmit"
_RESUBMIT = re.compile(rf"{RESUBMIT}(-\d+)?")


class RemoteState(StrEnum):
    """What RunComfy says about a remembered request."""

    QUEUED = "queued"
    RUNNING = "running"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: 404001 in the API's own JSON, three times over a minute.
    GONE = "gone"
    #: The same of its result alone, or of one that is old: it has ended, so it may well have been paid for.
    RESULT_GONE = "result_gone"
    #: A 403, or a 404 that is not the API's own.
    UNCLEAR = "unclear"


class Action(StrEnum):
    """What to do next."""

    SUBMIT = "submit"
    LOOK = "look"
    ADOPT = "adopt"
    REUSE = "reuse"
    SETTLE = "settle"
    CANCEL_THEN_SUBMIT = "cancel_then_submit"
    SUBMIT_BESIDE = "submit_beside"
    WAIT_FOR_CLAIM = "wait_for_claim"
    FAIL_UNKNOWN = "fail_unknown"
    FAIL_PAID_AND_GONE = "fail_paid_and_gone"
    FAIL_UNCLEAR = "fail_unclear"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user wants where there is a choice.

    :param on_unknown_submission: what to do about a submit whose answer nobody got.
    :param resolution: how a person settled exactly that: a request id, or the word of :func:`resubmit_word`.
    :param claim_may_be_alive: whether the writer of the intent may still be at its POST.
    """

    on_unknown_submission: OnUnknownSubmission = "fail"
    resolution: str | None = None
    claim_may_be_alive: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """One row of the table.

    :param why: a sentence for the log; empty where there is nothing to say.
    """

    do: Action
    request_id: str | None = None
    why: str = ""


def decide(record: Record | None, fingerprint: str, there: RemoteState | None, policy: Policy) -> Decision:
    """Decide what to do about a wanted video.

    :param record: what is remembered, or None.
    :param fingerprint: of what is wanted now. Only the task state store can hold another one.
    :param there: what RunComfy says of the remembered request; None: not asked yet.
    :param policy: the user's choices.
    """
    if record is None:
        return _about_nothing(policy)
    if record.request_id is None:
        return _about_an_intent(record, policy)
    if record.fingerprint != fingerprint:
        return _about_a_changed_task(record, there)
    return _about_a_request(record, there)


def resubmit_word(record: Record | None) -> str:
    """Give the word that settles a lost submission as "send it again": ``resubmit``, ``resubmit-2``, ...

    Each lost submission has its own, for the word outlives what it settled: it stands in the configuration of
    a run, where a retry, or a second task that wants the same video, finds it again.
    """
    earlier = record.lost_submissions if record is not None else 0
    return f"{RESUBMIT}-{earlier + 1}" if earlier else RESUBMIT


def is_resubmit_word(resolution: str) -> bool:
    """Tell whether a resolution is such a word, of whichever submission."""
    return _RESUBMIT.fullmatch(resolution) is not None


def _about_nothing(policy: Policy) -> Decision:
    # The record of a lost submission can be out of reach: the task state store of another run, say.
    if policy.resolution is not None and not is_resubmit_word(policy.resolution):
        return _settled_as(policy.resolution)
    return Decision(Action.SUBMIT)


def _about_an_intent(record: Record, policy: Policy) -> Decision:
    # First of all: two who settle the same lost submission at once must not both send it.
    if policy.claim_may_be_alive:
        return Decision(Action.WAIT_FOR_CLAIM, why="Another task is submitting the same video just now.")
    if policy.resolution == resubmit_word(record):
        return Decision(Action.SUBMIT, why="The lost submission was settled as resubmit: it is sent again.")
    if _is_an_id_for(record, policy.resolution):
        assert policy.resolution is not None
        return _settled_as(policy.resolution)
    if policy.on_unknown_submission == "resubmit":
        return Decision(
            Action.SUBMIT,
            why="An earlier submit may have been accepted, and nobody got the answer. It is sent again, as "
            'on_unknown_submission="resubmit" asks: this may buy it a second time.',
        )
    return Decision(Action.FAIL_UNKNOWN)


def _is_an_id_for(record: Record, resolution: str | None) -> bool:
    """An id of before this submission can't be its own: it settled an earlier one."""
    if resolution is None or is_resubmit_word(resolution):
        return False
    return resolution not in record.earlier_request_ids


def _settled_as(request_id: str) -> Decision:
    return Decision(Action.SETTLE, request_id, f"The lost submission was settled as request {request_id}.")


def _about_a_request(record: Record, there: RemoteState | None) -> Decision:
    request_id = record.request_id
    if record.stage is Stage.LANDED:
        return Decision(
            Action.REUSE,
            request_id,
            f"This video was bought before (request {request_id}) and has landed: nothing is bought. "
            "A new value of variation buys another take.",
        )
    match there:
        case None:
            return Decision(Action.LOOK, request_id)
        case RemoteState.QUEUED | RemoteState.RUNNING | RemoteState.UNKNOWN:
            return Decision(Action.ADOPT, request_id, f"Request {request_id} is {there}: taking it over.")
        case RemoteState.SUCCEEDED:
            return Decision(
                Action.REUSE,
                request_id,
                f"This video was bought before (request {request_id}) and is ready: nothing is bought. "
                "A new value of variation buys another take.",
            )
        case RemoteState.RESULT_GONE:
            return Decision(Action.FAIL_PAID_AND_GONE, request_id)
        case RemoteState.FAILED | RemoteState.CANCELLED | RemoteState.GONE if record.succeeded_once:
            return Decision(Action.FAIL_PAID_AND_GONE, request_id)
        case RemoteState.FAILED | RemoteState.CANCELLED:
            return Decision(Action.SUBMIT, request_id, f"Earlier request {request_id} {_ended(there)}.")
        case RemoteState.GONE:
            return Decision(
                Action.SUBMIT,
                request_id,
                f"RunComfy no longer knows request {request_id}, which never succeeded.",
            )
        case RemoteState.UNCLEAR:
            return Decision(Action.FAIL_UNCLEAR, request_id)
    raise AssertionError(there)


def _about_a_changed_task(record: Record, there: RemoteState | None) -> Decision:
    """The task asks for something else than it did before: in a task state store only."""
    request_id = record.request_id
    if record.stage is Stage.LANDED:
        return Decision(Action.SUBMIT, request_id)
    match there:
        case None:
            return Decision(Action.LOOK, request_id)
        case RemoteState.QUEUED:
            return Decision(
                Action.CANCEL_THEN_SUBMIT,
                request_id,
                f"The inputs have changed since request {request_id} was submitted: cancelling it.",
            )
        case RemoteState.FAILED | RemoteState.CANCELLED | RemoteState.GONE if not record.succeeded_once:
            return Decision(Action.SUBMIT, request_id, f"Earlier request {request_id} {_ended(there)}.")
        case RemoteState.UNCLEAR:
            return Decision(Action.FAIL_UNCLEAR, request_id)
        case _:
            return Decision(
                Action.SUBMIT_BESIDE,
                request_id,
                f"The inputs have changed since request {request_id} was submitted. It is {there} and paid "
                "for, and is left behind: WanRequestSensor and WanToGCSOperator take it as request=.",
            )


def _ended(there: RemoteState) -> str:
    return {
        RemoteState.FAILED: "failed",
        RemoteState.CANCELLED: "was cancelled",
        RemoteState.GONE: "is no longer known to RunComfy",
    }[there]
