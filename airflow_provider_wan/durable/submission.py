# SPDX-License-Identifier: Apache-2.0
"""The one call that costs money, and the steps around it.

Theory of operation. A purchase is: prove that the journal can be overwritten (once a task), claim (write the intent),
POST, log the id, write the id, and only then anything that can raise. A definite refusal takes the claim back before
it is raised: nothing was bought. ``decide.py`` decides what to do about an existing record; this file carries it
out.

A claim without an id is *open*. Its writer may still be sending its POST for a known time; after that its outcome is
unknown, and only a person, or ``on_unknown_submission="resubmit"``, settles it.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from logging import Logger
from typing import TYPE_CHECKING, ClassVar, Literal

from airflow_provider_wan.durable.decide import (
    Action,
    Decision,
    OnUnknownSubmission,
    Policy,
    RemoteState,
    decide,
    how_to_settle,
    is_resubmit_word,
    lost_answer,
    refusal_of,
)
from airflow_provider_wan.durable.journal import Journal, RecordConflict, VersionedRecord
from airflow_provider_wan.durable.reconcile import (
    as_paid,
    check_it_exists,
    read_state,
    with_result,
)
from airflow_provider_wan.durable.record import Record, Stage, new_claim, utc_text
from airflow_provider_wan.exceptions import (
    WanError,
    WanJournalError,
    WanNotFoundError,
    WanRefusedError,
    WanStorageError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.hooks.common import TEST_REQUEST_ID
from airflow_provider_wan.model_api.faults import RetryPolicy, error_of_no_output
from airflow_provider_wan.model_api.fingerprints import canonical_url, encoded_url
from airflow_provider_wan.model_api.values import SubmittedRequest, check_request_id
from airflow_provider_wan.model_api.video_spec import VideoSpec

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook

#: How long writing the id of a bought request is retried, in seconds, before the task fails.
WRITE_ID_FOR_S = 900.0
#: An older request has ended, in seconds: a clip takes minutes and a queue some hours.
ENDED_AFTER_S = 86_400.0
_BEFORE_WRITING_AGAIN_S = 2.0
#: How long a failed submit makes the other tasks of this process ask whether the API answers, in seconds.
_DOUBT_S = 300.0
#: Added to the time that a POST may take before its claim counts as open, in seconds: for writing the id.
CLAIM_MARGIN_S = 5.0
_FIRST_NAP_S = 0.1
_LONGEST_NAP_S = 2.0


class ClaimWindow:
    """Distinguishes claims whose writer may still be sending its POST from open ones.

    :param hook: the API, for how long a submit takes.
    """

    def __init__(self, hook: WanHook, journal: Journal | None, log: Logger, *, sleep: Callable[[float], None]) -> None:
        #: A POST is sent within this time after its claim, and answered, or lost, within as much again.
        self.send_within_s = hook.submit_takes_at_most_s
        self._window_s = self.send_within_s + hook.submit_takes_at_most_s + CLAIM_MARGIN_S
        self._journal = journal
        self._log = log
        self._sleep = sleep
        self._seen: dict[str, float] = {}
        self._logged: set[str] = set()

    def may_be_alive(self, held: VersionedRecord | None) -> bool:
        """Return whether a record is a claim whose writer may still be sending its POST."""
        if self._journal is None or held is None or held.record.request_id is not None:
            return False
        if self._seen_for_s(held.record) > self._window_s:
            return False
        return self._journal.age_s(held) <= self._window_s

    def wait(self, record: Record) -> None:
        """Sleep before another process's claim is read again, longer each time."""
        if record.claim not in self._logged:
            self._logged.add(record.claim)
            self._log.info(
                "Another task claimed this video at %s and has not written a request id yet. Waiting up to %.0f s.",
                record.claimed_at,
                self._window_s,
            )
        self._sleep(min(max(_FIRST_NAP_S, self._seen_for_s(record) / 2), _LONGEST_NAP_S))

    def _seen_for_s(self, record: Record) -> float:
        now = time.monotonic()
        return now - self._seen.setdefault(record.claim, now)


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """A request for a video, and how it was obtained.

    :param version: of its record in the journal, if it was written by this call; else 0.
    """

    record: Record
    how: Literal["submitted", "adopted", "reused"]
    version: int = 0

    @property
    def request_id(self) -> str:
        """The request's id at RunComfy."""
        assert self.record.request_id is not None
        return self.record.request_id


class _SharedCall:
    """A call that several threads need: one makes it, and those that wait for it meanwhile share its outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended_at = -math.inf
        self._error: WanError | None = None

    def make(self, call: Callable[[], None]) -> None:
        """Make the call, or raise what the call that ended while this thread waited has raised."""
        asked_at = time.monotonic()
        with self._lock:
            if self._ended_at < asked_at:
                self._error = None
                try:
                    call()
                except WanError as error:
                    self._error = error
                self._ended_at = time.monotonic()
            failure = self._error
        if failure is not None:
            raise copy.copy(failure) from failure  # a copy: who handles it may change its message


class Submission:
    """Obtains the request for one video, buying at most one. Safe to use from several threads.

    :param hook: the API.
    :param journal: where the records live; None: nothing is recorded.
    :param log: a logger; it gets the request id as soon as that is known.
    :param on_unknown_submission: what to do about an earlier submit whose outcome is not known.
    :param resolve: a person's answers about such submits: ``{fingerprint or image: request id or "resubmit"}``. One
        applies to an open claim of that fingerprint, or to the only open claim of that image.
    :param retry: how a submit that was certainly not accepted (429, no connection) is retried.
    :param follows_task: whether a request that the task instance asked for before its inputs changed is settled first.
    :param is_retry: whether the API is asked, by a free call, whether it answers before anything is claimed.
    """

    #: When a submit of this process last failed without an answer, by API origin.
    _doubts: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        hook: WanHook,
        journal: Journal | None,
        log: Logger,
        *,
        on_unknown_submission: OnUnknownSubmission = "fail",
        resolve: Mapping[str, str] | None = None,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], None] = time.sleep,
        follows_task: bool = False,
        is_retry: bool = False,
    ) -> None:
        """Create it.

        :raises WanInputError: ``resolve`` names something that is not a request id.
        """
        self._hook = hook
        self._journal = journal
        self._log = log
        self._where = journal.where if journal else ""
        self._on_unknown = on_unknown_submission
        self._resolve = {canonical_url(encoded_url(key)): _resolution(value) for key, value in (resolve or {}).items()}
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._follows_task = follows_task
        self._is_retry = is_retry
        self._claims = ClaimWindow(hook, journal, log, sleep=sleep)
        self._settling = threading.Lock()
        self._journal_check, self._api_check = _SharedCall(), _SharedCall()
        self._is_checked = False

    def obtain(self, spec: VideoSpec, *, is_new: bool = False) -> SubmitResult:
        """Adopt, reuse or buy, as the decision table says.

        :param is_new: whether a listing has just shown that there is no record, so that the first read can be left
            out. Nothing depends on it: a claim is written only where there is no record.
        :raises WanUnknownSubmissionError: it may have been bought, now or by an earlier try.
        :raises WanRefusedError: the API refused it; nothing was bought.
        :raises WanTransientError: no connection, or overload; nothing was bought, or it is recorded.
        """
        cancel_former = self._settle_former(spec)
        while True:
            held = self._journal.read(spec.fingerprint) if self._journal and not is_new else None
            is_new = False
            try:
                decision, held = self._decide(spec, held)
                if decision.do is Action.SUBMIT:
                    return self._buy(spec, held, cancel_former)
                obtained = self._use(decision, spec, held)
            except RecordConflict:
                continue
            cancel_former()
            return obtained

    def take_over(self, spec: VideoSpec, request_id: str) -> SubmitResult:
        """Record a request that a person named, and continue with it: nothing is bought.

        :raises WanRefusedError: RunComfy does not know it; then nothing is changed.
        """
        check_request_id(request_id)
        while True:
            held = self._journal.read(spec.fingerprint) if self._journal else None
            record = held.record if held else None
            if record is None or record.request_id != request_id:
                check_it_exists(self._hook, request_id, named_in="request=")
                claim = self._claim_to_settle(spec, record)
                record = replace(claim, stage=Stage.SUBMITTED, request_id=request_id, taken_over=True)
            with suppress(RecordConflict):
                return self._adopt(spec, held, record)

    def record_purchase(self, spec: VideoSpec, request_id: str) -> Record:
        """Record a request that this task instance bought, after its id could not be written.

        A request that another task has recorded for the video meanwhile stays the video's; this one joins its history.

        :return: the record of this request, even where the journal has it only in the history of another.
        """
        assert self._journal is not None
        while True:
            held = self._journal.read(spec.fingerprint)
            found = held.record if held else None
            if found is not None and found.request_id == request_id:
                return found
            claim = self._claim_to_settle(spec, found)
            mine = record = replace(claim, stage=Stage.SUBMITTED, request_id=request_id)
            if found is not None and request_id in found.earlier_request_ids:
                return mine
            if found is not None and found.stage not in (Stage.INTENT, Stage.FAILED, Stage.CANCELLED):
                self._log.warning(
                    "Another task has recorded request %s for the video of request %s: both were bought.",
                    found.request_id,
                    request_id,
                )
                record = found.with_earlier(request_id, mine.buyer)
            with suppress(RecordConflict):
                self._journal.write(record, replaces=held)
                return mine

    def _claim_to_settle(self, spec: VideoSpec, found: Record | None) -> Record:
        """Return the claim that a request belongs to: this task instance's own open one, or a new one."""
        if found is not None and found.request_id is None and found.buyer == (spec.owner or ""):
            return found
        return self._intent(spec, found)

    def _decide(self, spec: VideoSpec, held: VersionedRecord | None) -> tuple[Decision, VersionedRecord | None]:
        """Decide about a record: ask RunComfy about its request, wait for its claim or settle it, where needed.

        :raises RecordConflict: the record has to be read again.
        """
        policy = Policy(self._on_unknown, self._resolution_of(spec, held), self._claims.may_be_alive(held))
        decision = decide(held.record if held else None, spec.fingerprint, None, policy)
        if decision.do is Action.ASK:
            assert held is not None
            there, held = self._read_state(held)
            decision = decide(held.record, spec.fingerprint, there, policy)
        if decision.why:
            self._log.info(decision.why)
        if decision.do is Action.WAIT_FOR_CLAIM:
            assert held is not None
            self._claims.wait(held.record)
            raise RecordConflict
        if decision.do is Action.SETTLE:
            assert held is not None
            assert decision.request_id is not None
            self._settle(held, decision.request_id)
            raise RecordConflict
        return decision, held

    def _resolution_of(self, spec: VideoSpec, held: VersionedRecord | None) -> str | None:
        """Return how ``resolve`` settles the claim of a video; an image counts only if it has one open claim."""
        if held is not None and held.record.request_id is not None:
            return None
        fingerprint, image = spec.fingerprint, spec.image
        if held is not None:
            fingerprint, image = held.record.fingerprint, held.record.image
        if fingerprint in self._resolve:
            return self._resolve[fingerprint]
        if image is None or image not in self._resolve:
            return None
        resolution = self._resolve[image]
        if self._journal is None:
            return resolution
        claims = [claim for claim in self._journal.open_claims() if claim.record.image == image]
        if held is None:  # the image's claim is of another video, or was settled as another video's request
            is_spent = not is_resubmit_word(resolution) and self._journal.fingerprint_of(resolution) is not None
            return None if claims or is_spent else resolution
        if len(claims) > 1:
            self._log.warning(
                "resolve= names the image %s, which has %d open claims. Name the fingerprint instead: %s",
                image,
                len(claims),
                ", ".join(claim.record.fingerprint for claim in claims),
            )
        return resolution if len(claims) <= 1 else None

    def _use(self, decision: Decision, spec: VideoSpec, held: VersionedRecord | None) -> SubmitResult:
        """Adopt or reuse a recorded request, or raise why nothing is bought."""
        record = held.record if held else None
        if decision.do is Action.ADOPT:
            assert held is not None
            return self._adopt(spec, held, held.record)
        if decision.do is Action.REUSE:
            assert record is not None
            return SubmitResult(record, "reused")
        if decision.do is Action.FAIL_PAID_AND_GONE and record is not None and record.stage is Stage.FAILED:
            raise error_of_no_output(record.request_id)  # a failed request counts as paid only if it had no output
        raise refusal_of(decision, record, spec.fingerprint, self._where)

    # -- a task whose inputs have changed ------------------------------------------------------------------

    def _settle_former(self, spec: VideoSpec) -> Callable[[], None]:
        """Settle the request that this task instance made before its inputs changed.

        :return: cancels it once. To be called when nothing can refuse the new request any more.
        :raises WanUnknownSubmissionError: it left an open claim, which may have been bought.
        """
        is_logged = False
        while self._follows_task and self._journal is not None and spec.owner is not None:
            former = self._journal.former_record(spec.owner, spec.image, spec.fingerprint)
            if former is None or former.record.stage is Stage.LANDED:
                break
            if former.record.buyer not in ("", spec.owner):
                break  # another task bought it
            if not is_logged:
                is_logged = True
                self._log.warning(
                    "The inputs of this task have changed between two tries: it asked for fingerprint %s, and now asks "
                    "for %s. A value that renders differently at each try (a time, a random number) buys one video "
                    "each time.",
                    former.record.fingerprint,
                    spec.fingerprint,
                )
            with suppress(RecordConflict):
                return self._settle_record(spec, spec.owner, former)
        return _nothing

    def _settle_record(self, spec: VideoSpec, owner: str, former: VersionedRecord) -> Callable[[], None]:
        decision, held = self._decide(spec, former)
        assert held is not None
        match decision.do:
            case Action.CANCEL_THEN_SUBMIT:
                return functools.cache(functools.partial(self._cancel_former, held.record, owner))
            case Action.SUBMIT if held.record.request_id is None and self._is_not_bought(held.record):
                assert self._journal is not None
                release(self._journal, held)
            case Action.SUBMIT | Action.SUBMIT_BESIDE:
                pass
            case _:
                raise refusal_of(decision, held.record, spec.fingerprint, self._where)
        return _nothing

    def _is_not_bought(self, record: Record) -> bool:
        return is_resubmit_word(self._resolve.get(record.fingerprint) or self._resolve.get(record.image or "", ""))

    def _cancel_former(self, record: Record, owner: str) -> None:
        assert record.request_id is not None
        if record.is_needed_by_others(owner):
            self._log.warning("Request %s is not cancelled: other tasks depend on it.", record.request_id)
            return
        outcome = self._hook.cancel(record.request_id)
        self._log.info("Request %s: %s", record.request_id, outcome.sentence)
        if not outcome.cancelled:
            self._log.warning(
                "Request %s is left behind. To use it, pass it to WanRequestSensor or WanToGCSOperator as request=.",
                record.request_id,
            )

    # -- buying --------------------------------------------------------------------------------------------

    def _buy(self, spec: VideoSpec, held: VersionedRecord | None, cancel_former: Callable[[], None]) -> SubmitResult:
        """Claim, POST, log, write. Read the module docstring before changing the order of any step."""
        inputs = spec.make_inputs()
        self._check_journal()
        self._check_api()
        cancel_former()
        if self._journal is not None and self._follows_task and spec.owner is not None:
            self._journal.point_to(spec.owner, spec.image, spec.fingerprint)
        started = time.monotonic()
        attempt = 0
        while True:
            # Before the claim, so that a claim does not age while it waits for its turn.
            self._hook.take_turn()
            send_by = time.monotonic() + self._claims.send_within_s
            intent = self._intent(spec, held.record if held else None)
            claimed = self._claim(intent, held)
            try:
                submitted = self._hook.submit(spec.model_id, inputs, retry=False, send_by=send_by)
            except WanUnknownSubmissionError as error:
                self._doubts[self._hook.api_origin] = time.monotonic()
                is_resubmitted = self._on_unknown == "resubmit"
                raise lost_answer(error, intent, self._where, is_resubmitted=is_resubmitted) from error
            except (WanRefusedError, WanTransientError) as error:
                if isinstance(error, WanTransientError):
                    self._doubts[self._hook.api_origin] = time.monotonic()
                is_as_before, held = self._take_back(claimed, held)
                attempt += 1
                spent_s = time.monotonic() - started
                delay = self._retry.delay_s(attempt, error, rnd=random.random(), spent_s=spent_s)
                if delay is None or not is_as_before:
                    raise
                self._log.warning("%s Trying again in %.1f s.", error, delay)
                self._sleep(delay)
            else:
                self._doubts.pop(self._hook.api_origin, None)
                written = self._accepted(submitted, intent, claimed)
                return SubmitResult(written.record, "submitted", written.version)

    def _check_journal(self) -> None:
        """Prove, once, that the id of a purchase can be written, so that a refusal leaves no claim behind."""
        if self._journal is not None and not self._is_checked:
            self._journal_check.make(self._journal.check_writable)
            self._is_checked = True

    def _check_api(self) -> None:
        """Ask, by a free call, whether the API answers, where there is doubt: no claim while it is down.

        :raises WanTransientError: it does not.
        """
        doubt_since = self._doubts.get(self._hook.api_origin, -math.inf)
        if self._is_retry or time.monotonic() - doubt_since <= _DOUBT_S:
            self._api_check.make(self._ask_api)

    def _ask_api(self) -> None:
        try:
            self._hook.get_status(TEST_REQUEST_ID, retry=False)
        except WanTransientError as error:
            self._doubts[self._hook.api_origin] = time.monotonic()
            raise WanTransientError(
                f"RunComfy does not answer, so nothing was sent and nothing was bought: {error}",
                retry_after_s=error.retry_after_s,
            ) from error
        except WanNotFoundError:
            pass  # the answer of a working API: this request does not exist
        except WanError:
            return  # the submit itself will raise it
        self._is_retry = False
        self._doubts.pop(self._hook.api_origin, None)

    def _accepted(
        self, submitted: SubmittedRequest, intent: Record, claimed: VersionedRecord | None
    ) -> VersionedRecord:
        self._log.info("RunComfy accepted the request: request_id=%s", submitted.request_id)
        record = replace(intent, stage=Stage.SUBMITTED, request_id=submitted.request_id, submitted_at=utc_text())
        return self._write_id(record, claimed)

    def _claim(self, intent: Record, held: VersionedRecord | None) -> VersionedRecord | None:
        """Write the intent.

        :raises RecordConflict: another process has written in between.
        """
        if self._journal is None:
            return None
        try:
            return self._journal.write(intent, replaces=held)
        except WanStorageError:
            # It may have been written nevertheless. If it stayed, it would look like a lost submit.
            found = self._journal.read(intent.fingerprint)
            if found is not None and found.record.claim == intent.claim:
                return found
            raise

    def _intent(self, spec: VideoSpec, before: Record | None) -> Record:
        intent = Record(
            fingerprint=spec.fingerprint,
            model_id=spec.model_id,
            stage=Stage.INTENT,
            inputs=spec.recorded_inputs,
            image=spec.image,
            variation=spec.variation,
            claim=new_claim(),
            claimed_at=utc_text(),
            watchers=(spec.owner,) if spec.owner else (),
        )
        return before.as_new_intent(intent) if before else intent

    def _take_back(
        self, claimed: VersionedRecord | None, before: VersionedRecord | None
    ) -> tuple[bool, VersionedRecord | None]:
        """Restore the journal after a refusal; return whether that worked, and the record that it now holds."""
        if self._journal is None or claimed is None:
            return True, None
        try:
            if before is not None:
                return True, self._journal.write(before.record, replaces=claimed)
            self._journal.forget(claimed)
        except (WanStorageError, RecordConflict) as error:
            self._log.error(
                "Nothing was bought, but the claim in %s could not be removed: %s. A later try may take it for a lost "
                "submission. %s",
                self._where,
                error or "another process has written in between",
                how_to_settle(claimed.record, self._where),
            )
            return False, None
        return True, None

    def _write_id(self, record: Record, claimed: VersionedRecord | None) -> VersionedRecord:
        """Write the id of the request that was just bought.

        A refusal (permission, retention policy, hold) is final; an outage is retried; after a conflict the record is
        read again.

        :raises WanStorageError: it could not be written; the error names the id.
        """
        if self._journal is None or claimed is None:
            return VersionedRecord(record)
        deadline = time.monotonic() + WRITE_ID_FOR_S
        replaces: VersionedRecord | None = claimed
        while True:
            try:
                return self._journal.write(record, replaces=replaces)
            except RecordConflict:
                failure: Exception | None = None
            except Exception as error:
                failure = error
            if time.monotonic() > deadline or is_forbidden(failure):
                raise self._id_not_written(record, str(failure or "it kept changing"))
            if failure is not None:
                self._log.warning("The id of request %s is not written yet: %s", record.request_id, failure)
                self._sleep(_BEFORE_WRITING_AGAIN_S)
            try:
                replaces = self._journal.read(record.fingerprint)
            except Exception as error:
                self._log.warning("The id of request %s is not written yet: %s", record.request_id, error)
                continue
            found = replaces.record if replaces is not None else None
            if replaces is not None and replaces.record.request_id == record.request_id:
                return replaces
            if found is not None and found.claim != record.claim:
                raise self._id_not_written(record, "another process has claimed or settled this video meanwhile.")

    def _id_not_written(self, record: Record, why: str) -> WanStorageError:
        return WanJournalError(
            f"Request {record.request_id} was bought, but its id could not be written to {self._where}: {why} It is "
            f"not lost: pass request={record.request_id!r} to take it over.",
            request_id=record.request_id,
        )

    def _settle(self, held: VersionedRecord, request_id: str) -> None:
        """Record the request of an open claim; its own state decides the next step."""
        assert self._journal is not None
        check_it_exists(self._hook, request_id, named_in="resolve=")
        with self._settling:  # two claims that are settled at once must not get the same request
            settle_as(self._journal, held, request_id)

    def _adopt(self, spec: VideoSpec, held: VersionedRecord | None, record: Record) -> SubmitResult:
        if record.stage is Stage.LANDED:
            return SubmitResult(record, "reused")
        record = record.with_owner(spec.owner)
        if self._journal is not None and (held is None or record != held.record):
            record = self._journal.write(record, replaces=held).record
        return SubmitResult(record, "adopted")

    def _read_state(self, held: VersionedRecord) -> tuple[RemoteState, VersionedRecord]:
        """Ask RunComfy about a recorded request, and record the answer."""
        record = held.record
        assert record.request_id is not None
        there, result = read_state(self._hook, record.request_id, sleep=self._sleep)
        changed = with_result(record, result) if result else record
        if there is RemoteState.GONE and _has_surely_ended(record):
            there = RemoteState.RESULT_GONE
        if there is RemoteState.RESULT_GONE:
            changed = as_paid(record)
        if changed != record and self._journal is not None:
            held = self._journal.write(changed, replaces=held)
        return there, held


def _nothing() -> None:
    """Cancel nothing: no former request is queued."""


def _has_surely_ended(record: Record) -> bool:
    """An unknown request was deleted early, or has ended and expired: its age decides."""
    if record.submitted_at is None:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(record.submitted_at).astimezone(UTC)
    return age.total_seconds() > ENDED_AFTER_S


def _resolution(given: str) -> str:
    return given if is_resubmit_word(str(given)) else check_request_id(str(given).strip())


def is_forbidden(error: BaseException | None) -> bool:
    """Return whether the bucket refused a write for good: a 403, or an object under retention or hold."""
    return getattr(getattr(error, "__cause__", None), "code", None) in (401, 403)


# -- settling an open claim: resolve=, and the command line -------------------------------------------------


def settle_as(
    journal: Journal, held: VersionedRecord, request_id: str, *, named_in: str = "resolve="
) -> VersionedRecord:
    """Record the request of an open claim.

    :raises WanRefusedError: another record holds the request already.
    :raises RecordConflict: another process wrote the record in between.
    """
    holder = journal.fingerprint_of(request_id)
    if holder not in (None, held.record.fingerprint):
        raise WanRefusedError(
            f"{named_in} names request {request_id} for fingerprint {held.record.fingerprint}, but the record of "
            f"fingerprint {holder} in {journal.where} already holds it. Nothing was bought and nothing was changed. "
            "Two videos can't share a request: look at the Generations page for the right one."
        )
    settled = replace(held.record, stage=Stage.SUBMITTED, request_id=request_id, submitted_at=held.record.claimed_at)
    return journal.write(settled, replaces=held)


def release(journal: Journal, held: VersionedRecord) -> None:
    """Settle an open claim as not bought: the journal is as it was before the claim.

    :raises RecordConflict: another process wrote the record in between.
    """
    before = held.record.as_not_bought()
    if before is None:
        journal.forget(held)
    else:
        journal.write(before, replaces=held)
