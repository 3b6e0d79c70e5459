# SPDX-License-Identifier: Apache-2.0
"""The meaning of an answer other than the expected one (refused, unknown or transient), and retries.

A submit costs money and has no idempotency key, so it has three outcomes. The table of all answers:

==========================================================  =========================  =========================
answer                                                      to a submit                to any other call
==========================================================  =========================  =========================
no connection (look-up, refused, TLS, proxy)                transient, nothing bought  transient
no whole answer (timeout, reset, cut)                       unknown                    transient
2xx without the expected content                            unknown                    transient
2xx with an error code of the family 4xx (but 408, 499)     as that status             as that status
3xx                                                         refused                    transient
408, 499                                                    unknown                    transient
429                                                         transient, nothing bought  transient
425                                                         refused                    transient
any other 4xx                                               refused                    refused
4xx whose own code is of the family 408, 499 or 5xx         unknown                    refused
1xx, 5xx, anything else                                     unknown                    transient
==========================================================  =========================  =========================

408 and 499 come from a gateway that stopped waiting, while the API may have continued. A refused submit was certainly
not bought; an unknown one may have been.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanBalanceError,
    WanCancelledError,
    WanError,
    WanGenerationFailedError,
    WanInputError,
    WanNoOutputError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.bodies import ErrorBody, clean_text, read_error_body
from airflow_provider_wan.model_api.states import State
from airflow_provider_wan.model_api.values import Reply, RequestResult

#: The API's own code for "the result is not ready yet".
NOT_READY_CODE = 400005
#: The codes that only the API itself gives; a body with one of them is always an error.
OWN_CODES = frozenset({400001, 400002, 400004, NOT_READY_CODE, 403001, 404001})

Verdict = Literal[
    "auth",
    "balance",
    "input",
    "malformed_id",
    "foreign",
    "gone",
    "redirect",
    "refused",
    "transient",
    "unknown",
]

_GAVE_UP_WAITING = frozenset({408, 499})
_NOT_FOUND_STATUSES = frozenset({200, 400, 404})
_VERDICT_OF_CODE: Mapping[int, Verdict] = {
    400001: "malformed_id",
    400002: "balance",
    400004: "auth",
    403001: "foreign",
}
_VERDICT_OF_STATUS: Mapping[int, Verdict] = {401: "auth", 402: "balance", 422: "input"}
#: The error for each definite no, and what to do about it.
_REFUSALS: Mapping[Verdict, tuple[type[WanRefusedError], str]] = {
    "auth": (WanAuthError, "Check the API token in {peer}, and that the account is active."),
    "balance": (WanBalanceError, "The account has no balance left: top it up at RunComfy."),
    "input": (WanInputError, "Correct the fields that it names."),
    "malformed_id": (WanRefusedError, "An id is malformed: check {which}."),
    "foreign": (
        WanRefusedError,
        "It belongs to another user: use the connection whose token made the request.",
    ),
    "gone": (
        WanNotFoundError,
        "RunComfy does not know this request: the id is wrong, or it was deleted or has expired.",
    ),
    "redirect": (WanRefusedError, "{redirect}"),
    "refused": (
        WanRefusedError,
        "Correct the request, the model id or {peer}: the same call gets the same answer.",
    ),
}
_NOT_THE_API = (
    "This is not an answer of the API itself: a proxy or gateway may be in between, or the host is wrong. Check {peer}."
)
IT_MAY_BE_BOUGHT = "It may have been bought, so it is not sent again by itself."
#: How a person settles that; code that knows the image and the fingerprint says something more exact instead.
HOW_TO_SETTLE = (
    "Look at RunComfy's Generations page: if the "
    'generation is there, pass its id as `request="<request id>"`, or settle it with '
    '`resolve={<fingerprint>: "<request id>"}`; if it is not, `resolve={<fingerprint>: "resubmit"}` sends it once more.'
)
_THE_CONNECTION = "the connection"


def error_of_reply(reply: Reply, *, what: str, request_id: str | None = None, submit: bool = False) -> WanError:
    """Return the error for an unexpected answer.

    :param reply: the HTTP answer, of any status.
    :param what: the subject of the call, as a noun: "status", "submit to wan-ai/...".
    :param request_id: the request that it was about, if any.
    :param submit: whether this was the one call that costs money.
    """
    body = read_error_body(reply.status, reply.body)
    verdict = verdict_of(reply.status, body, submit=submit)
    code = f", code {body.code}" if body.code is not None else ""
    said = f"HTTP {reply.status}{code}: {body.text}"
    subject = _subject(what, request_id)
    peer = reply.peer or _THE_CONNECTION
    if verdict == "unknown":
        return WanUnknownSubmissionError(
            f"RunComfy's answer to the {subject} does not say whether it was accepted ({said}). "
            f"{IT_MAY_BE_BOUGHT} {HOW_TO_SETTLE}{_id_in_damaged(reply.body)}",
            request_id=request_id,
        )
    if verdict == "transient":
        wait_s = retry_after_s(reply.headers, reply.received_at)
        asked = f" It asks to wait {wait_s:.0f} s." if wait_s else ""
        bought = " Nothing was bought." if submit else ""
        mistake = f" {_redirect_advice(reply, peer)}" if 300 <= reply.status < 400 else ""
        return WanTransientError(
            f"RunComfy has no usable answer to the {subject} now ({said}).{asked}{bought}{mistake} Try again later.",
            request_id=request_id,
            retry_after_s=wait_s,
        )
    error, advice = _REFUSALS[verdict]
    if verdict == "refused" and not body.readable:
        advice = _NOT_THE_API
    which = "the model id" if submit or request_id is None else "the request id"
    advice = advice.format(peer=peer, which=which, redirect=_redirect_advice(reply, peer))
    bought = " Nothing was bought." if submit else ""
    return error(f"RunComfy refused the {subject} ({said}).{bought} {advice}", request_id=request_id, code=body.code)


def error_of_no_reply(
    reason: str, *, sent: bool, what: str, request_id: str | None = None, submit: bool = False, peer: str = ""
) -> WanError:
    """Return the error for an exchange that gave no answer.

    The other parameters are those of :func:`error_of_reply`.

    :param reason: why, as a clause: "the connection was refused".
    :param sent: whether any byte of the request may have been sent.
    :param peer: connection and host, as in :class:`Reply`.
    """
    subject = _subject(what, request_id)
    why = f"{reason} ({peer})" if peer else reason
    if not submit:
        return WanTransientError(
            f"No answer from RunComfy to the {subject}: {why}. Try again later.", request_id=request_id
        )
    if not sent:
        return WanTransientError(
            f"The {subject} did not reach RunComfy: {why}. Nothing was bought. Try again later.",
            request_id=request_id,
        )
    return WanUnknownSubmissionError(
        f"The answer to the {subject} was lost: {why}. {IT_MAY_BE_BOUGHT} {HOW_TO_SETTLE}",
        request_id=request_id,
    )


def error_of_result(result: RequestResult) -> WanError | None:
    """Return the error of a request by its result; None if it succeeded.

    A success without output counts as paid. A request that has not ended is a :class:`WanTransientError`.
    """
    request_id = result.request_id
    match result.state:
        case State.SUCCEEDED:
            return None
        case State.FAILED if result.is_paid_without_output:
            return error_of_no_output(request_id)
        case State.FAILED:
            return WanGenerationFailedError(
                f"Request {request_id} failed at RunComfy: {result.error or 'no reason given'}. Correct the inputs if "
                "they are the cause; submitting it again buys a new one.",
                request_id=request_id,
            )
        case State.CANCELLED:
            return WanCancelledError(
                f"Request {request_id} was cancelled and is not charged. Submitting it again buys a new one.",
                request_id=request_id,
            )
    return WanTransientError(f"Request {request_id} is not finished ({result.state}).", request_id=request_id)


def error_of_no_output(request_id: str | None) -> WanNoOutputError:
    """Return the error of a request that succeeded without a video."""
    return WanNoOutputError(
        f"Request {request_id} succeeded, but its output has no video, as after content moderation. It counts as paid "
        "and is not bought again: look at it on RunComfy's Generations page. Change the inputs, or set a new "
        "variation, to buy another video.",
        request_id=request_id,
    )


def verdict_of(status: int, body: ErrorBody, *, submit: bool) -> Verdict:
    """Classify an answer without the expected content, by the table of this module."""
    if status == 429:
        return "transient"
    if submit and 300 <= status < 400:
        return "redirect"
    if not _is_certain(status, body, submit=submit):
        return "unknown" if submit else "transient"
    code = body.code
    family = _family(code) if 200 <= status < 300 else status
    if family == 429 or (code == NOT_READY_CODE and not submit):
        return "transient"
    if code == 404001 and status in _NOT_FOUND_STATUSES and not submit:
        return "gone"
    if code is not None and code in _VERDICT_OF_CODE:
        return _VERDICT_OF_CODE[code]
    if body.has_detail_list and family in (400, 422):
        return "input"
    return _VERDICT_OF_STATUS.get(family or 0, "refused")


def _is_certain(status: int, body: ErrorBody, *, submit: bool) -> bool:
    """Return whether an answer is a definite no; for a submit only where nothing in it contradicts that."""
    family = _family(body.code)
    if 200 <= status < 300:
        return family is not None and 400 <= family < 500 and family not in _GAVE_UP_WAITING
    if not 400 <= status < 500 or status in _GAVE_UP_WAITING or (status == 425 and not submit):
        return False
    contradicts = family is not None and (family >= 500 or family in _GAVE_UP_WAITING)
    return not (submit and contradicts)


def _family(code: int | None) -> int | None:
    """Return the HTTP status of an error code: 404 for 404001 and 404."""
    if code is None:
        return None
    family = code if code < 1000 else code // 1000
    return family if 100 <= family < 600 else None


def _redirect_advice(reply: Reply, peer: str) -> str:
    """Name the likely mistake behind a redirect: API calls follow none, since the token would go along."""
    leads_to = clean_text(reply.headers.get("location", ""), 120)
    to = f" to {leads_to}" if leads_to else ""
    return (
        f"It redirects{to}, and API calls follow no redirect. The host is probably wrong, or has the wrong scheme "
        f"(http:// instead of https://): correct it in {peer}."
    )


def _subject(what: str, request_id: str | None) -> str:
    return f"{what} of request {request_id}" if request_id and request_id not in what else what


_ID_IN_CUT_JSON = re.compile(rb'"request_id"\s*:\s*"([a-zA-Z0-9_-]{1,128})"')


def _id_in_damaged(body: bytes) -> str:
    """Return a sentence with the request id that a damaged answer still shows, for the person who settles it."""
    found = _ID_IN_CUT_JSON.search(body[:65536])
    return f' The damaged answer names the request id "{found[1].decode()}".' if found else ""


def is_about_the_id(error: BaseException) -> bool:
    """Return whether the API itself says that a request id is malformed, another account's or unknown."""
    return isinstance(error, WanRefusedError) and error.code in (400001, 403001, 404001)


_SECONDS = re.compile(r"\d{1,400}(\.\d{0,400})?", re.ASCII)
#: A longer wait than this (100 years) is returned as this, so that it stays a number.
RETRY_AFTER_CEILING_S = 100 * 365 * 86_400.0


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return ``Retry-After`` in seconds, or None if it is missing or invalid.

    A date is measured against the server's own ``Date`` if there is one, so that a clock that is off on
    our side does not shorten the wait; it is never less than zero.

    :param headers: the answer's headers with lowercased names.
    :param now: when the answer came, for a date without a ``Date`` header; aware.
    """
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), RETRY_AFTER_CEILING_S)
    until, since = _date(value), _date(headers.get("date", "")) or now
    if until is None or since is None:
        return None
    if since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    return min(max((until - since).total_seconds(), 0.0), RETRY_AFTER_CEILING_S)


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast one call is retried: full jitter, within a budget of time.

    :param tries: tries in all, the first included, default 4.
    :param first_s: the longest first pause, in seconds, default 0.5.
    :param factor: how much longer each next pause may be, default 2.
    :param max_s: the longest pause that the server did not ask for, in seconds, default 30.
    :param budget_s: the time that all tries may take together, in seconds, default 120.
    """

    tries: int = 4
    first_s: float = 0.5
    factor: float = 2.0
    max_s: float = 30.0
    budget_s: float = 120.0

    def delay_s(self, attempt: int, error: WanError, rnd: float, spent_s: float) -> float | None:
        """Return the seconds to wait before the next try, or None to give up and raise the error.

        Only a :class:`WanTransientError` is retried, and never before ``Retry-After`` allows: if that
        does not fit into the budget, the call is given up.

        :param attempt: the number of the try that has just failed, from 1.
        :param error: the error of that try.
        :param rnd: a fresh random number from 0 to 1.
        :param spent_s: seconds since the first try began.
        """
        if attempt >= self.tries or not isinstance(error, WanTransientError):
            return None
        longest_s = min(self.max_s, self.first_s * self.factor ** min(attempt - 1, 60))
        delay_s = rnd * longest_s + (error.retry_after_s or 0.0)
        return delay_s if spent_s + delay_s <= self.budget_s else None
