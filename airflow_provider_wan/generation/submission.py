# SPDX-License-Identifier: Apache-2.0
"""The way around the one call that costs money.

The order is the promise: claim (write the intent) immediately before, POST, log the id, write the id, and only
then anything that can raise. A definite refusal takes the intent back before it is raised: nothing was bought.
What to do when something is remembered is decided in ``decide.py``; this file carries it out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from logging import Logger
from typing import Any, Literal, Protocol

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanCancelledError,
    WanError,
    WanGenerationFailedError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.generation.decide import Decision, Do, OnUnknownSubmission, Policy, There, decide
from airflow_provider_wan.generation.journal import Held, Journal, Lost
from airflow_provider_wan.generation.records import Record, Stage, new_claim, utc_text
from airflow_provider_wan.model_api.calls import (
    CancelOutcome,
    RequestResult,
    RequestStatus,
    SubmittedRequest,
    check_request_id,
)
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.model_api.states import State

#: A claim is believed to be alive for the time that a POST may take, and this much longer, in seconds.
CLAIM_MARGIN_S = 5.0
#: How long the id of a bought request is tried to be written, in seconds, before the task gives up.
WRITE_ID_FOR_S = 900.0
_LOOK_AGAIN_AT_CLAIM_S = 1.0


class Api(Protocol):
    """What is needed of a hook."""

    @property
    def submit_takes_at_most_s(self) -> float:
        """The most that one attempt at a submit can take, in seconds."""

    @property
    def not_found_patience_s(self) -> float:
        """For how long a request must be answered 404001 before it counts as gone, in seconds."""

    def submit(
        self,
        model_id: str,
        inputs: Mapping[str, Any],
        *,
        retry: bool = True,
        send_within_s: float | None = None,
    ) -> SubmittedRequest:
        """Buy one generation."""

    def get_status(self, request_id: str, *, retry: bool = True) -> RequestStatus:
        """Ask for the status."""

    def get_result(self, request_id: str, *, retry: bool = True) -> RequestResult:
        """Ask for the result."""

    def cancel(self, request_id: str, *, retry: bool = True) -> CancelOutcome:
        """Cancel, if it is still queued."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One video that somebody wants.

    :param make_inputs: gives what is sent, links with their signatures included. Called only when a purchase
        is about to be made: an image is looked at, and a link signed, no earlier.
    :param recorded_inputs: the same as it may be remembered: without signatures.
    :param watcher: the task instance that wants it.
    """

    model_id: str
    make_inputs: Callable[[], Mapping[str, Any]] = field(repr=False)
    recorded_inputs: Mapping[str, Any]
    fingerprint: str
    image: str | None = None
    variation: str | None = None
    watcher: str | None = None


@dataclass(frozen=True, slots=True)
class Obtained:
    """A request that will give, or has given, the wanted video."""

    record: Record
    how: Literal["submitted", "adopted", "reused"]

    @property
    def request_id(self) -> str:
        """Its id at RunComfy."""
        assert self.record.request_id is not None
        return self.record.request_id


class Submission:
    """Obtains the request for one wanted video, buying at most one.

    :param hook: the API.
    :param journal: where the record lives; None: nothing is remembered.
    :param log: a logger; the request id goes there the moment it is known.
    :param on_unknown_submission: what to do about an earlier submit whose answer nobody got.
    :param resolution: how a person settled that: a request id, or ``"resubmit"``.
    :param retry: how a submit that was certainly not accepted (429, no connection) is tried again.
    """

    def __init__(
        self,
        hook: Api,
        journal: Journal | None,
        log: Logger,
        *,
        on_unknown_submission: OnUnknownSubmission = "fail",
        resolution: str | None = None,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._hook = hook
        self._journal = journal
        self._log = log
        self._on_unknown = on_unknown_submission
        self._resolution = resolution
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._claim_window_s = hook.submit_takes_at_most_s + CLAIM_MARGIN_S
        self._claims_seen: dict[str, float] = {}

    def obtain(self, wanted: Wanted) -> Obtained:
        """Take over, reuse or buy, as the decision table says.

        :raises WanUnknownSubmissionError: it may have been bought, now or by an earlier try.
        :raises WanRefusedError: the API said no; nothing was bought.
        :raises WanTransientError: no connection, or overload; nothing was bought, or what was is remembered.
        """
        while True:
            held = self._journal.read(wanted.fingerprint) if self._journal else None
            there: There | None = None
            record = held.record if held else None
            decision = decide(record, wanted.fingerprint, None, self._policy(held))
            try:
                if decision.do is Do.LOOK:
                    assert held is not None
                    there, held = self._look(held)
                    decision = decide(held.record, wanted.fingerprint, there, self._policy(held))
                obtained = self._carry_out(decision, wanted, held)
            except Lost:
                continue  # somebody else wrote the record in between
            if obtained is not None:
                return obtained

    def take_over(self, wanted: Wanted, request_id: str) -> Obtained:
        """Remember a request that somebody else submitted, and go on with it: nothing is bought."""
        check_request_id(request_id)
        while True:
            held = self._journal.read(wanted.fingerprint) if self._journal else None
            try:
                if held is not None and held.record.request_id == request_id:
                    return self._adopt(wanted, held)
                record = self._intent(wanted, held)
                return self._adopt(
                    wanted, held, replace(record, stage=Stage.SUBMITTED, request_id=request_id)
                )
            except Lost:
                continue

    def _policy(self, held: Held | None) -> Policy:
        return Policy(self._on_unknown, self._resolution, self._claim_may_be_alive(held))

    def _carry_out(self, decision: Decision, wanted: Wanted, held: Held | None) -> Obtained | None:
        """Do what was decided; None: look again from the start."""
        if decision.why and decision.do is not Do.WAIT_FOR_CLAIM:
            self._log.info(decision.why)
        match decision.do:
            case Do.SUBMIT | Do.SUBMIT_BESIDE:
                return self._buy(wanted, held)
            case Do.CANCEL_THEN_SUBMIT:
                assert decision.request_id is not None
                self._cancel_former(decision.request_id)
                return self._buy(wanted, held)
            case Do.ADOPT if held is not None and held.record.request_id != decision.request_id:
                assert decision.request_id is not None
                return self.take_over(wanted, decision.request_id)
            case Do.ADOPT:
                assert held is not None
                return self._adopt(wanted, held)
            case Do.REUSE:
                assert held is not None
                return Obtained(held.record, "reused")
            case Do.WAIT_FOR_CLAIM:
                self._sleep(_LOOK_AGAIN_AT_CLAIM_S)
                return None
        assert held is not None
        raise self._failure(decision, wanted, held.record)

    def _buy(self, wanted: Wanted, held: Held | None) -> Obtained:
        """Claim, POST, log, write. See the head of this file before changing the order of anything here."""
        inputs = wanted.make_inputs()
        started = time.monotonic()
        attempt = 0
        while True:
            intent = self._intent(wanted, held)
            claimed = self._journal.write(intent, replaces=held) if self._journal else None
            try:
                submitted = self._hook.submit(
                    wanted.model_id,
                    inputs,
                    retry=False,
                    send_within_s=self._hook.submit_takes_at_most_s,
                )
            except WanUnknownSubmissionError as error:
                raise self._lost_answer(wanted, error) from error
            except (WanRefusedError, WanTransientError) as error:
                held = self._take_back(claimed, held)
                attempt += 1
                spent = time.monotonic() - started
                delay = (
                    self._retry.delay_s(attempt, error, rnd=random.random(), spent_s=spent)
                    if isinstance(error, WanTransientError)
                    else None
                )
                if delay is None:
                    raise
                self._log.warning("%s Nothing was bought; trying again in %.1f s.", error, delay)
                self._sleep(delay)
                continue
            self._log.info("RunComfy accepted the request: request_id=%s", submitted.request_id)
            record = replace(
                intent, stage=Stage.SUBMITTED, request_id=submitted.request_id, submitted_at=utc_text()
            )
            return Obtained(self._write_id(record, claimed), "submitted")

    def _intent(self, wanted: Wanted, held: Held | None) -> Record:
        intent = Record(
            fingerprint=wanted.fingerprint,
            model_id=wanted.model_id,
            stage=Stage.INTENT,
            inputs=dict(wanted.recorded_inputs),
            image=wanted.image,
            variation=wanted.variation,
            claim=new_claim(),
            claimed_at=utc_text(),
            watchers=(wanted.watcher,) if wanted.watcher else (),
        )
        return held.record.as_new_intent(intent) if held else intent

    def _take_back(self, claimed: Held | None, before: Held | None) -> Held | None:
        """Nothing was bought: leave the journal as it was before the claim."""
        if self._journal is None or claimed is None:
            return None
        try:
            if before is not None:
                return self._journal.write(before.record, replaces=claimed)
            self._journal.forget(claimed)
        except (WanStorageError, Lost) as error:
            self._log.error(
                "Nothing was bought, but the claim in %s could not be taken back (%s). If a later try reports an "
                'unknown submission for fingerprint %s, settle it with resolve={"%s": "resubmit"}.',
                self._journal.where,
                error,
                claimed.record.fingerprint,
                claimed.record.fingerprint,
            )
        return None

    def _write_id(self, record: Record, claimed: Held | None) -> Record:
        """Write the id of what was just bought, whatever it takes."""
        if self._journal is None or claimed is None:
            return record
        deadline = time.monotonic() + WRITE_ID_FOR_S
        while True:
            try:
                return self._journal.write(record, replaces=claimed).record
            except Lost as error:
                raise WanStorageError(
                    f"Request {record.request_id} was bought, and meanwhile somebody else changed its record in "
                    f"{self._journal.where}. It is not lost: pass request={record.request_id!r} to take it over.",
                    request_id=record.request_id,
                ) from error
            except Exception as error:
                if time.monotonic() > deadline:
                    raise WanStorageError(
                        f"Request {record.request_id} was bought, but its id could not be written to "
                        f"{self._journal.where}: {error} It is not lost: pass request={record.request_id!r} to "
                        "take it over.",
                        request_id=record.request_id,
                    ) from error
                self._log.warning(
                    "The id of request %s could not be written yet: %s", record.request_id, error
                )
                self._sleep(2.0)

    def _adopt(self, wanted: Wanted, held: Held | None, record: Record | None = None) -> Obtained:
        record = (record or (held and held.record) or self._intent(wanted, None)).watched_by(wanted.watcher)
        if self._journal is not None and (held is None or record != held.record):
            record = self._journal.write(record, replaces=held).record
        return Obtained(record, "adopted")

    def _cancel_former(self, request_id: str) -> None:
        outcome = self._hook.cancel(request_id)
        if outcome.cancelled:
            self._log.info("Request %s was cancelled and is not charged.", request_id)
        else:
            self._log.warning(
                "Request %s could not be cancelled any more: it runs on and is charged. It is left behind; "
                "WanRequestSensor and WanToGCSOperator take it as request=.",
                request_id,
            )

    def _look(self, held: Held) -> tuple[There, Held]:
        """Ask RunComfy about a remembered request, patiently where it says that it does not know it."""
        record = held.record
        assert record.request_id is not None
        there, result = look(self._hook, record.request_id, sleep=self._sleep)
        changed = with_result(record, result) if result else record
        if changed != record and self._journal is not None:
            held = self._journal.write(changed, replaces=held)
        return there, held

    def _claim_may_be_alive(self, held: Held | None) -> bool:
        if self._journal is None or held is None or held.record.request_id is not None:
            return False
        claim = held.record.claim
        if claim not in self._claims_seen:
            self._claims_seen[claim] = time.monotonic()
            self._log.info(
                "Somebody claimed this video at %s and has not written a request id. Waiting up to %.0f s for it.",
                held.record.claimed_at,
                self._claim_window_s,
            )
        seen_for_s = time.monotonic() - self._claims_seen[claim]
        if seen_for_s > self._claim_window_s:
            return False
        return self._journal.age_s(held) <= self._claim_window_s

    def _lost_answer(self, wanted: Wanted, error: WanUnknownSubmissionError) -> WanUnknownSubmissionError:
        where = f" The intent stays in {self._journal.where}." if self._journal else ""
        return WanUnknownSubmissionError(f"{error}{where} {_how_to_settle(wanted)}")

    def _failure(self, decision: Decision, wanted: Wanted, record: Record) -> WanError:
        where = self._journal.where if self._journal else ""
        match decision.do:
            case Do.FAIL_UNKNOWN:
                return WanUnknownSubmissionError(
                    f"A submit of this video went out at {record.claimed_at}, and nobody got the answer: it may "
                    f"have been bought. Nothing was sent again. {_how_to_settle(wanted)}"
                )
            case Do.FAIL_PAID_AND_GONE:
                return WanRefusedError(
                    f"Request {record.request_id} was bought and had succeeded, but RunComfy no longer has its "
                    "result. A new value of variation buys the video again.",
                    request_id=record.request_id,
                )
            case _:
                return WanTransientError(
                    f"RunComfy gave no clear answer about request {record.request_id}, which {where} remembers "
                    "as bought (a 403, or a 404 that is not the API's own: a proxy, another account's token?). "
                    "Nothing was bought. Check the connection's host and token.",
                    request_id=record.request_id,
                )


def _how_to_settle(wanted: Wanted) -> str:
    about = wanted.image or wanted.fingerprint
    return (
        "Look at the Generations page of your RunComfy account: if the request is there, pass "
        f'resolve={{"{about}": "<its request id>"}}, if not, resolve={{"{about}": "resubmit"}}. '
        f"(fingerprint {wanted.fingerprint})"
    )


def look(
    hook: Api, request_id: str, *, sleep: Callable[[float], None] = time.sleep
) -> tuple[There, RequestResult | None]:
    """Ask RunComfy where a request stands.

    "Gone" is believed only when the API itself says so three times over
    :attr:`Api.not_found_patience_s`: buying again rests on it.

    :raises WanTransientError: no answer; the request is remembered, and a later try can ask again.
    """
    for again in range(3):
        try:
            status = hook.get_status(request_id)
            if not status.is_over:
                return There(str(status.state).lower()), None
            result = hook.get_result(request_id)
            there = result.state if result.state.is_terminal else State.RUNNING
            return There(str(there).lower()), result
        except WanNotFoundError:
            if again < 2:
                sleep(hook.not_found_patience_s / 2)
        except WanAuthError as error:
            raise WanTransientError(
                f"Request {request_id} is bought and remembered, but can't be asked for: {error}",
                request_id=request_id,
            ) from error
        except WanRefusedError:
            return There.UNCLEAR, None
    return There.GONE, None


def with_result(record: Record, result: RequestResult) -> Record:
    """Give a record what a result tells."""
    stage = {
        State.SUCCEEDED: Stage.SUCCEEDED,
        State.FAILED: Stage.FAILED,
        State.CANCELLED: Stage.CANCELLED,
    }.get(result.state)
    if stage is None or record.stage is Stage.LANDED:
        return record
    return replace(
        record,
        stage=stage,
        succeeded_once=record.succeeded_once or stage is Stage.SUCCEEDED,
        cost_usd=record.cost_usd if result.cost_usd is None else result.cost_usd,
        created_at=result.created_at or record.created_at,
        finished_at=result.finished_at or record.finished_at,
        error=result.error,
    )


def raise_unless_succeeded(result: RequestResult) -> None:
    """Raise what a result says went wrong.

    :raises WanGenerationFailedError: it failed.
    :raises WanCancelledError: it was cancelled; the message says that this is not charged.
    :raises WanTransientError: it is not finished.
    """
    request_id = result.request_id
    match result.state:
        case State.SUCCEEDED:
            return
        case State.FAILED:
            raise WanGenerationFailedError(
                f"Request {request_id} failed at RunComfy: {result.error or 'no reason given'}. Another try buys "
                "a new one.",
                request_id=request_id,
            )
        case State.CANCELLED:
            raise WanCancelledError(
                f"Request {request_id} was cancelled and is not charged. Another try buys a new one.",
                request_id=request_id,
            )
    raise WanTransientError(f"Request {request_id} is not finished ({result.state}).", request_id=request_id)


def amend(
    journal: Journal, fingerprint: str, request_id: str, change: Callable[[Record], Record], log: Logger
) -> Record | None:
    """Change the record of a request, if it is still this request's; never fails the task.

    What is written here (succeeded, cost, landed) makes a later run cheaper or clearer. Nothing is lost
    without it, so a bucket that is out must not fail a video that is there.
    """
    try:
        while True:
            held = journal.read(fingerprint)
            if held is None or held.record.request_id != request_id:
                return None
            changed = change(held.record)
            if changed == held.record:
                return changed
            try:
                return journal.write(changed, replaces=held).record
            except Lost:
                continue
    except WanStorageError as error:
        log.warning("The record of request %s could not be brought up to date: %s", request_id, error)
        return None
