# SPDX-License-Identifier: Apache-2.0
"""Decide what to do about a video from its record and its state at RunComfy: one pure table, and its error messages.

``submission.py`` carries the decisions out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.exceptions import (
    WanError,
    WanRefusedError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.faults import HOW_TO_SETTLE

OnUnknownSubmission = Literal["fail", "resubmit"]
RESUBMIT = "resubmit"
_RESUBMIT = re.compile(rf"{RESUBMIT}(-\d+)?")


class RemoteState(StrEnum):
    """The state of a recorded request at RunComfy."""

    QUEUED = "queued"
    RUNNING = "running"
    UNKNOWN = "unknown"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: 404001 in the API's own JSON, three times over a minute.
    GONE = "gone"
    #: The same for its result alone, or for an old request: it has ended, so it may have been paid for.
    RESULT_GONE = "result_gone"
    #: A 403, or a 404 that is not the API's own.
    UNCLEAR = "unclear"


class Action(StrEnum):
    """The next step."""

    SUBMIT = "submit"
    ASK = "ask"
    ADOPT = "adopt"
    REUSE = "reuse"
    SETTLE = "settle"
    CANCEL_THEN_SUBMIT = "cancel_then_submit"
    SUBMIT_BESIDE = "submit_beside"
    WAIT_FOR_CLAIM = "wait_for_claim"
    FAIL_UNKNOWN = "fail_unknown"
    FAIL_PAID_AND_GONE = "fail_paid_and_gone"
    FAIL_UNCLEAR = "fail_unclear"
    FAIL_NO_CLAIM = "fail_no_claim"


@dataclass(frozen=True, slots=True)
class Policy:
    """The user's choices.

    :param on_unknown_submission: what to do about a submit whose outcome is not known.
    :param resolution: the answer of a person: a request id, or the word of :func:`resubmit_word`.
    :param claim_may_be_alive: whether the writer of the claim may still be sending its POST.
    """

    on_unknown_submission: OnUnknownSubmission = "fail"
    resolution: str | None = None
    claim_may_be_alive: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """One row of the table.

    :param why: a sentence for the log; may be empty.
    """

    do: Action
    request_id: str | None = None
    why: str = ""


def decide(record: Record | None, fingerprint: str, there: RemoteState | None, policy: Policy) -> Decision:
    """Decide what to do about a video.

    :param record: the record of this fingerprint, or of the one that the task asked for before its inputs changed.
    :param fingerprint: of the video to generate.
    :param there: the state of the recorded request at RunComfy; None: not asked yet.
    """
    if record is None:
        return _about_nothing(policy)
    if record.request_id is None:
        return _about_an_intent(record, policy)
    if record.fingerprint != fingerprint:
        return _about_a_changed_task(record, there)
    return _about_a_request(record, there)


def resubmit_word(record: Record | None) -> str:
    """Return the word that settles a lost submission as "send it again": ``resubmit``, ``resubmit-2``, ...

    Each lost submission has its own word, because a retry still finds the earlier word in its run's configuration.
    """
    earlier = record.lost_submissions if record is not None else 0
    return f"{RESUBMIT}-{earlier + 1}" if earlier else RESUBMIT


def is_resubmit_word(resolution: str) -> bool:
    """Return whether a resolution is such a word, of any submission."""
    return _RESUBMIT.fullmatch(resolution) is not None


def _about_nothing(policy: Policy) -> Decision:
    if policy.resolution is not None and not is_resubmit_word(policy.resolution):
        return Decision(Action.FAIL_NO_CLAIM, policy.resolution)
    return Decision(Action.SUBMIT)


def _about_an_intent(record: Record, policy: Policy) -> Decision:
    # First, so that two tasks that settle the same lost submission at once do not both send it.
    if policy.claim_may_be_alive:
        return Decision(Action.WAIT_FOR_CLAIM)
    if policy.resolution == resubmit_word(record):
        return Decision(Action.SUBMIT, why="The lost submission was settled as resubmit: it is sent again.")
    if _is_an_id_for(record, policy.resolution):
        assert policy.resolution is not None
        why = f"The lost submission was settled as request {policy.resolution}."
        return Decision(Action.SETTLE, policy.resolution, why)
    if policy.on_unknown_submission == "resubmit":
        return Decision(
            Action.SUBMIT,
            why="The outcome of an earlier submit is not known. It is sent again, as "
            'on_unknown_submission="resubmit" asks: this may buy the video a second time.',
        )
    return Decision(Action.FAIL_UNKNOWN)


def _is_an_id_for(record: Record, resolution: str | None) -> bool:
    """An earlier request id can't belong to this submission: it settled an earlier one."""
    if resolution is None or is_resubmit_word(resolution):
        return False
    return resolution not in record.earlier_request_ids


def _about_a_request(record: Record, there: RemoteState | None) -> Decision:
    request_id = record.request_id
    if record.stage is Stage.LANDED:
        return Decision(
            Action.REUSE,
            request_id,
            f"This video was bought earlier (request {request_id}) and has landed. Nothing is bought. "
            "Set a new variation to buy another one.",
        )
    match there:
        case None:
            return Decision(Action.ASK, request_id)
        case RemoteState.QUEUED | RemoteState.RUNNING | RemoteState.UNKNOWN:
            return Decision(Action.ADOPT, request_id, f"Request {request_id} is {there}: taking it over.")
        case RemoteState.SUCCEEDED:
            return Decision(
                Action.REUSE,
                request_id,
                f"This video was bought earlier (request {request_id}) and is ready. Nothing is bought. "
                "Set a new variation to buy another one.",
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
    """The inputs of the task have changed since it submitted this request."""
    request_id = record.request_id
    if record.stage is Stage.LANDED:
        return Decision(Action.SUBMIT, request_id)
    match there:
        case None:
            return Decision(Action.ASK, request_id)
        case RemoteState.QUEUED:
            return Decision(
                Action.CANCEL_THEN_SUBMIT,
                request_id,
                f"The inputs have changed since request {request_id} was submitted. It is still queued, and is "
                "cancelled before another one is bought.",
            )
        case RemoteState.FAILED | RemoteState.CANCELLED | RemoteState.GONE if not record.succeeded_once:
            return Decision(Action.SUBMIT, request_id, f"Earlier request {request_id} {_ended(there)}.")
        case RemoteState.UNCLEAR:
            return Decision(Action.FAIL_UNCLEAR, request_id)
        case _:
            return Decision(
                Action.SUBMIT_BESIDE,
                request_id,
                f"The inputs have changed since request {request_id} was submitted. It is {there} and paid for, and "
                "is left behind. To use it, pass it to WanRequestSensor or WanToGCSOperator as request=.",
            )


def _ended(there: RemoteState) -> str:
    return {
        RemoteState.FAILED: "failed",
        RemoteState.CANCELLED: "was cancelled",
        RemoteState.GONE: "is no longer known to RunComfy",
    }[there]


# -- messages ----------------------------------------------------------------------------------------------


def lost_answer(
    error: WanUnknownSubmissionError, intent: Record, where: str, *, is_resubmitted: bool
) -> WanUnknownSubmissionError:
    """Return the error of a submit whose answer was lost.

    :param where: the journal that holds the claim; empty if there is none.
    :param is_resubmitted: whether another try sends it again, as ``on_unknown_submission="resubmit"`` asks.
    """
    said = f"The submit was sent at {intent.claimed_at}. {str(error).replace(HOW_TO_SETTLE, '').strip()}"
    if is_resubmitted:
        said += ' Another try submits it again, as on_unknown_submission="resubmit" asks.'
    if not where:
        said += (
            " No journal keeps this submission, so another try would submit the video again. Look at the Generations "
            "page of your RunComfy account first: if the request is there, pass its id as request=."
        )
    else:
        said += f" The claim stays in {where}. {how_to_settle(intent, where)}"
    return WanUnknownSubmissionError(said, retry_helps=is_resubmitted)


def how_to_settle(intent: Record, where: str = "") -> str:
    """Return the advice about a submit whose outcome is not known."""
    key = intent.fingerprint
    about = f" (image {intent.image})" if intent.image else ""
    by_command = (
        f" Or settle it from the command line: python -m airflow_provider_wan journal settle {where} {key}."
        if where.startswith("gs://")
        else ""
    )
    return (
        f"Look at the Generations page of your RunComfy account{about}: if the request is there, pass "
        f'resolve={{"{key}": "<its request id>"}}, if not, resolve={{"{key}": "{resubmit_word(intent)}"}}.{by_command}'
    )


def refusal_of(decision: Decision, record: Record | None, fingerprint: str, where: str) -> WanError:
    """Return the error for a decision to buy nothing.

    :param fingerprint: of the video to generate; ``record`` may be of the one that the task asked for before.
    :param where: the journal that holds the record; empty if there is none.
    """
    request_id = decision.request_id
    match decision.do:
        case Action.FAIL_UNKNOWN:
            assert record is not None
            of = (
                "this video"
                if record.fingerprint == fingerprint
                else ("this task, for inputs that have changed since,")
            )
            return WanUnknownSubmissionError(
                f"A submit of {of} was sent at {record.claimed_at}, and its outcome is not known: it may have been "
                f"bought. Nothing was sent again. {how_to_settle(record, where)}"
            )
        case Action.FAIL_NO_CLAIM:
            return WanRefusedError(
                f"resolve= names request {request_id} for a video that has no open claim in "
                f"{where or 'a journal (none is set)'}, so there is nothing to settle. Nothing was bought. To take "
                f"over a request without a record, pass request={request_id!r}."
            )
        case Action.FAIL_PAID_AND_GONE:
            return WanRefusedError(
                f"Request {request_id} was bought and has ended, but RunComfy no longer has its result. It is not "
                "bought again. Set a new variation to buy the video again.",
                request_id=request_id,
            )
        case _:
            return WanTransientError(
                f"RunComfy gave no clear answer about request {request_id}, which {where} records as bought (a 403, or "
                "a 404 that is not the API's own: a proxy, another account's token?). Nothing was bought. Check host "
                "and token of the connection.",
                request_id=request_id,
            )
