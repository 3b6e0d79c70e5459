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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from logging import Logger
from typing import Literal

from airflow_provider_wan.durable.api import Api
from airflow_provider_wan.durable.claims import ClaimWatch
from airflow_provider_wan.durable.decide import (
    Action,
    Decision,
    OnUnknownSubmission,
    Policy,
    RemoteState,
    decide,
    is_resubmit_word,
)
from airflow_provider_wan.durable.journal import Journal, RecordConflict, VersionedRecord
from airflow_provider_wan.durable.reconcile import (
    amend,
    as_paid,
    check_it_exists,
    look,
    raise_unless_succeeded,
    with_result,
)
from airflow_provider_wan.durable.record import Record, Stage, new_claim, utc_text
from airflow_provider_wan.durable.refusals import how_to_settle, lost_answer, refusal_of
from airflow_provider_wan.exceptions import (
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.model_api.calls import SubmittedRequest, check_request_id
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.model_api.inputs import canonical_url
from airflow_provider_wan.model_api.video_spec import VideoSpec

__all__ = [
    "Api",
    "SubmitResult",
    "Submission",
    "amend",
    "look",
    "raise_unless_succeeded",
    "with_result",
]

#: How long the id of a bought request is tried to be written, in seconds, before the task gives up.
WRITE_ID_FOR_S = 900.0
#: A request that is older than this has ended, in seconds: a clip takes minutes, and a queue some hours.
ENDED_AFTER_S = 86_400.0
_BEFORE_WRITING_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class SubmitResult:
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
    :param resolve: how a person settled that: ``{image or fingerprint: request id or "resubmit"}``.
    :param retry: how a submit that was certainly not accepted (429, no connection) is tried again.
    """

    def __init__(
        self,
        hook: Api,
        journal: Journal | None,
        log: Logger,
        *,
        on_unknown_submission: OnUnknownSubmission = "fail",
        resolve: Mapping[str, str] | None = None,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Take in how to go about it.

        :raises WanInputError: ``resolve`` names an id that is none.
        """
        self._hook = hook
        self._journal = journal
        self._log = log
        self._on_unknown = on_unknown_submission
        self._resolve = {canonical_url(key): _resolution(value) for key, value in (resolve or {}).items()}
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._claims = ClaimWatch(hook, journal, log, sleep=sleep)

    def obtain(self, wanted: VideoSpec, *, is_new: bool = False) -> SubmitResult:
        """Take over, reuse or buy, as the decision table says.

        :param is_new: whether a listing has just told that there is no record, so that the first look for one can
            be left out. Nothing rests on it: a claim is written only where there is none.
        :raises WanUnknownSubmissionError: it may have been bought, now or by an earlier try.
        :raises WanRefusedError: the API said no; nothing was bought.
        :raises WanTransientError: no connection, or overload; nothing was bought, or what was is remembered.
        """
        while True:
            held = self._journal.read(wanted.fingerprint) if self._journal and not is_new else None
            is_new = False
            policy = self._policy(wanted, held)
            decision = decide(held.record if held else None, wanted.fingerprint, None, policy)
            try:
                if decision.do is Action.LOOK:
                    assert held is not None
                    there, held = self._look(held)
                    decision = decide(held.record, wanted.fingerprint, there, policy)
                obtained = self._carry_out(decision, wanted, held)
            except RecordConflict:
                continue  # somebody else wrote the record in between
            if obtained is not None:
                return obtained

    def take_over(self, wanted: VideoSpec, request_id: str, *, named_in: str = "request=") -> SubmitResult:
        """Remember a request that somebody else submitted, and go on with it: nothing is bought.

        :param named_in: the parameter that names it, for a message.
        :raises WanRefusedError: RunComfy does not know it; then nothing is changed.
        """
        check_request_id(request_id)
        while True:
            held = self._journal.read(wanted.fingerprint) if self._journal else None
            if held is not None and held.record.request_id == request_id:
                record = held.record
            else:
                check_it_exists(self._hook, request_id, named_in=named_in)
                record = replace(self._intent(wanted, held), stage=Stage.SUBMITTED, request_id=request_id)
            try:
                return self._adopt(wanted, held, record)
            except RecordConflict:
                continue

    def _policy(self, wanted: VideoSpec, held: VersionedRecord | None) -> Policy:
        remembered = (held.record.fingerprint, held.record.image) if held else ()
        names = [name for name in (*remembered, wanted.fingerprint, wanted.image) if name]
        resolution = next((self._resolve[name] for name in names if name in self._resolve), None)
        return Policy(self._on_unknown, resolution, self._claims.may_be_alive(held))

    def _carry_out(
        self, decision: Decision, wanted: VideoSpec, held: VersionedRecord | None
    ) -> SubmitResult | None:
        """Do what was decided; None: look again from the start."""
        if decision.why and decision.do is not Action.WAIT_FOR_CLAIM:
            self._log.info(decision.why)
        match decision.do:
            case Action.SUBMIT | Action.SUBMIT_BESIDE:
                return self._buy(wanted, held)
            case Action.CANCEL_THEN_SUBMIT:
                assert decision.request_id is not None
                self._cancel_former(decision.request_id)
                return self._buy(wanted, held)
            case Action.SETTLE:
                assert decision.request_id is not None
                return self._settle(wanted, held, decision.request_id)
            case Action.ADOPT:
                assert held is not None
                return self._adopt(wanted, held, held.record)
            case Action.REUSE:
                assert held is not None
                return SubmitResult(held.record, "reused")
            case Action.WAIT_FOR_CLAIM:
                assert held is not None
                self._claims.nap_beside(held.record)
                return None
        assert held is not None
        raise refusal_of(decision, held.record, self._journal.where if self._journal else "")

    def _buy(self, wanted: VideoSpec, held: VersionedRecord | None) -> SubmitResult:
        """Claim, POST, log, write. See the head of this file before changing the order of anything here."""
        inputs = wanted.make_inputs()
        started = time.monotonic()
        attempt = 0
        while True:
            # Before the claim: nobody may come to believe that a claim is dead while it waits for its turn.
            self._hook.take_turn()
            send_by = time.monotonic() + self._claims.send_within_s
            intent = self._intent(wanted, held)
            claimed = self._claim(intent, held)
            try:
                submitted = self._hook.submit(wanted.model_id, inputs, retry=False, send_by=send_by)
            except WanUnknownSubmissionError as error:
                raise lost_answer(error, intent, self._journal.where if self._journal else "") from error
            except (WanRefusedError, WanTransientError) as error:
                is_as_before, held = self._take_back(claimed, held)
                attempt += 1
                delay = self._delay(attempt, error, spent_s=time.monotonic() - started)
                if delay is None or not is_as_before:
                    raise
                self._log.warning("%s Trying again in %.1f s.", error, delay)
                self._sleep(delay)
            else:
                return SubmitResult(self._accepted(submitted, intent, claimed), "submitted")

    def _accepted(
        self, submitted: SubmittedRequest, intent: Record, claimed: VersionedRecord | None
    ) -> Record:
        self._log.info("RunComfy accepted the request: request_id=%s", submitted.request_id)
        record = replace(
            intent, stage=Stage.SUBMITTED, request_id=submitted.request_id, submitted_at=utc_text()
        )
        return self._write_id(record, claimed)

    def _delay(
        self, attempt: int, error: WanRefusedError | WanTransientError, *, spent_s: float
    ) -> float | None:
        return self._retry.delay_s(attempt, error, rnd=random.random(), spent_s=spent_s)

    def _claim(self, intent: Record, held: VersionedRecord | None) -> VersionedRecord | None:
        """Write the intent.

        :raises RecordConflict: somebody else has written in between.
        """
        if self._journal is None:
            return None
        try:
            return self._journal.write(intent, replaces=held)
        except WanStorageError:
            # It may have been written all the same. Left there, it would look like a submit that was lost.
            found = self._journal.read(intent.fingerprint)
            if found is not None and found.record.claim == intent.claim:
                return found
            raise

    def _intent(self, wanted: VideoSpec, held: VersionedRecord | None) -> Record:
        intent = Record(
            fingerprint=wanted.fingerprint,
            model_id=wanted.model_id,
            stage=Stage.INTENT,
            inputs=wanted.recorded_inputs,
            image=wanted.image,
            variation=wanted.variation,
            claim=new_claim(),
            claimed_at=utc_text(),
            watchers=(wanted.owner,) if wanted.owner else (),
        )
        return held.record.as_new_intent(intent) if held else intent

    def _take_back(
        self, claimed: VersionedRecord | None, before: VersionedRecord | None
    ) -> tuple[bool, VersionedRecord | None]:
        """Nothing was bought: leave the journal as it was before the claim; tells whether that worked."""
        if self._journal is None or claimed is None:
            return True, None
        try:
            if before is not None:
                return True, self._journal.write(before.record, replaces=claimed)
            self._journal.forget(claimed)
        except (WanStorageError, RecordConflict) as error:
            self._log.error(
                "Nothing was bought, but the claim in %s could not be taken back: %s. A later try may take it for a "
                "lost submission, which then is settled as not there. %s",
                self._journal.where,
                error or "somebody else has written in between",
                how_to_settle(claimed.record),
            )
            return False, None
        return True, None

    def _write_id(self, record: Record, claimed: VersionedRecord | None) -> Record:
        """Write the id of what was just bought, whatever it takes."""
        if self._journal is None or claimed is None:
            return record
        deadline = time.monotonic() + WRITE_ID_FOR_S
        replaces: VersionedRecord | None = claimed
        while True:
            try:
                return self._journal.write(record, replaces=replaces).record
            except RecordConflict:
                trouble: Exception | None = None
            except Exception as error:
                trouble = error
            if time.monotonic() > deadline:
                raise self._id_not_written(record, str(trouble or "it kept changing"))
            if trouble is not None:
                self._log.warning("The id of request %s is not written yet: %s", record.request_id, trouble)
                self._sleep(_BEFORE_WRITING_AGAIN_S)
            try:
                replaces = self._journal.read(record.fingerprint)
            except Exception as error:
                self._log.warning("The id of request %s is not written yet: %s", record.request_id, error)
                continue
            found = replaces.record if replaces is not None else None
            if found is not None and found.request_id == record.request_id:
                return found
            if found is not None and found.claim != record.claim:
                raise self._id_not_written(
                    record, "somebody else has claimed or settled this video meanwhile."
                )

    def _id_not_written(self, record: Record, why: str) -> WanStorageError:
        where = self._journal.where if self._journal else ""
        return WanStorageError(
            f"Request {record.request_id} was bought, but its id could not be written to {where}: {why} It is not "
            f"lost: pass request={record.request_id!r} to take it over.",
            request_id=record.request_id,
        )

    def _settle(
        self, wanted: VideoSpec, held: VersionedRecord | None, request_id: str
    ) -> SubmitResult | None:
        """Take in which request a lost submission was; what to do about that one is decided anew."""
        if held is None or self._journal is None:
            return self.take_over(wanted, request_id, named_in="resolve=")
        check_it_exists(self._hook, request_id, named_in="resolve=")
        settled = replace(
            held.record, stage=Stage.SUBMITTED, request_id=request_id, submitted_at=held.record.claimed_at
        )
        self._journal.write(settled, replaces=held)
        return None

    def _adopt(self, wanted: VideoSpec, held: VersionedRecord | None, record: Record) -> SubmitResult:
        if record.stage is Stage.LANDED:
            return SubmitResult(record, "reused")
        record = record.watched_by(wanted.owner)
        if self._journal is not None and (held is None or record != held.record):
            record = self._journal.write(record, replaces=held).record
        return SubmitResult(record, "adopted")

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

    def _look(self, held: VersionedRecord) -> tuple[RemoteState, VersionedRecord]:
        """Ask RunComfy about a remembered request, patiently where it says that it does not know it."""
        record = held.record
        assert record.request_id is not None
        there, result = look(self._hook, record.request_id, sleep=self._sleep)
        changed = with_result(record, result) if result else record
        if there is RemoteState.GONE and _has_surely_ended(record):
            there = RemoteState.RESULT_GONE
        if there is RemoteState.RESULT_GONE:
            changed = as_paid(record)
        if changed != record and self._journal is not None:
            held = self._journal.write(changed, replaces=held)
        return there, held


def _has_surely_ended(record: Record) -> bool:
    """A request that RunComfy knows no more was deleted early on, or has ended and expired: its age tells."""
    if record.submitted_at is None:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(record.submitted_at).astimezone(UTC)
    return age.total_seconds() > ENDED_AFTER_S


def _resolution(given: str) -> str:
    return given if is_resubmit_word(str(given)) else check_request_id(str(given).strip())
