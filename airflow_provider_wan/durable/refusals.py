# SPDX-License-Identifier: Apache-2.0
"""The texts in which a submission says why it buys nothing, and how a person settles it."""

from __future__ import annotations

from airflow_provider_wan.durable.decide import Action, Decision, resubmit_word
from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.exceptions import (
    WanError,
    WanRefusedError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.faults import HOW_TO_SETTLE


def lost_answer(error: WanUnknownSubmissionError, intent: Record, where: str) -> WanUnknownSubmissionError:
    """Give the error of a submit whose answer got lost just now.

    :param where: the journal that keeps the intent; empty where nothing does.
    """
    said = str(error).replace(HOW_TO_SETTLE, "").strip()
    if not where:
        return WanUnknownSubmissionError(
            f"{said} Nothing remembers this submission, so another try would submit the video once more. Look at the "
            "Generations page of your RunComfy account first: if the request is there, take it over with request=."
        )
    return WanUnknownSubmissionError(f"{said} The intent stays in {where}. {how_to_settle(intent)}")


def how_to_settle(intent: Record) -> str:
    """Say what to do about a submit whose answer nobody got."""
    about = intent.image or intent.fingerprint
    return (
        "Look at the Generations page of your RunComfy account: if the request is there, pass "
        f'resolve={{"{about}": "<its request id>"}}, if not, resolve={{"{about}": "{resubmit_word(intent)}"}}. '
        f"(fingerprint {intent.fingerprint})"
    )


def refusal_of(decision: Decision, record: Record, where: str) -> WanError:
    """Give the error for a decision to buy nothing.

    :param where: the journal that holds the record.
    """
    request_id = record.request_id
    match decision.do:
        case Action.FAIL_UNKNOWN:
            return WanUnknownSubmissionError(
                f"A submit of this video went out at {record.claimed_at}, and nobody got the answer: it may have "
                f"been bought. Nothing was sent again. {how_to_settle(record)}"
            )
        case Action.FAIL_PAID_AND_GONE:
            return WanRefusedError(
                f"Request {request_id} was bought and has ended, as far as can be told, but RunComfy no longer has its "
                "result. It is not bought again. A new value of variation buys the video again.",
                request_id=request_id,
            )
        case _:
            return WanTransientError(
                f"RunComfy gave no clear answer about request {request_id}, which {where} remembers as bought (a "
                "403, or a 404 that is not the API's own: a proxy, another account's token?). Nothing was bought. "
                "Check the connection's host and token.",
                request_id=request_id,
            )
