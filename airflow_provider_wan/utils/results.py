# SPDX-License-Identifier: Apache-2.0
"""How a wait ends: the result, a timeout, a kill; and results as XComs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import (
    WanError,
    WanNotFoundError,
    WanRefusedError,
    WanTimeoutError,
    WanTransientError,
)
from airflow_provider_wan.utils.params import RequestRef
from airflow_provider_wan.utils.price import learn_price
from airflow_provider_wan.utils.task import TaskRequest, has_other_owners

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.model_api.values import RequestResult


@dataclass(frozen=True, slots=True)
class AwaitedRequest:
    """A request that a task waits for.

    :param journal: the journal of its record; None: it has none.
    :param is_own: whether this task instance submitted it.
    :param submits: whether another try of the task submits a new request where this one failed.
    """

    task: TaskRequest
    ref: RequestRef
    journal: Journal | None = None
    is_own: bool = False
    submits: bool = True

    @classmethod
    def of(cls, task: TaskRequest, ref: RequestRef, *, submits: bool = True) -> AwaitedRequest:
        """Wait for a request that another task submitted; its journal came with it, if it has one."""
        journal = task.open_journal(ref.journal) if ref.journal else None
        return cls(task, ref, journal, submits=submits)

    @property
    def may_be_cancelled(self) -> bool:
        """Whether it may be cancelled at all: without a shared journal, other owners are not known."""
        return self.is_own or self.ref.journal is not None

    @property
    def submitted_at(self) -> float | None:
        """When it was submitted, in unix seconds; None if that is not known."""
        try:
            return datetime.fromisoformat(self.ref.submitted_at).timestamp() if self.ref.submitted_at else None
        except ValueError:
            return None

    def result_if_over(self) -> tuple[RequestResult | None, float | None]:
        """Ask once, before the task is deferred: most requests that a later try waits for have ended by then.

        It saves a deferral, and keeps Airflow from failing the try as lost if a trigger fires before the scheduler
        has processed the deferral. Any error is left to the wait. Return the result, if it is over, and until when
        the server asked to wait, in unix seconds, if it did: the trigger must not ask earlier.

        :raises WanRefusedError: a person named the request, and RunComfy says that there can be no such request.
        """
        from airflow_provider_wan.model_api.faults import is_about_the_id

        request_id = self.ref.request_id
        try:
            if not self.task.hook.get_status(request_id, retry=False).is_over:
                return None, None
            result = self.task.hook.get_result(request_id, retry=False)
        except WanError as error:
            is_typed = self.ref.fingerprint is None
            if is_typed and is_about_the_id(error) and not isinstance(error, WanNotFoundError):
                raise
            return None, time.time() + error.retry_after_s if error.retry_after_s else None
        return (result if result.state.is_terminal else None), None

    def wait_here(
        self, *, deadline: float, poll_interval: float | None, is_known: bool = True, stop: threading.Event
    ) -> dict[str, Any] | None:
        """Wait in this process; return the event that a trigger would fire, or None if ``stop`` was set."""
        from airflow_provider_wan.polling.drivers import wait_in_worker
        from airflow_provider_wan.polling.wait import RequestWait

        wait = RequestWait(
            self.ref.request_id,
            deadline=deadline,
            poll_interval_s=poll_interval,
            is_known=is_known,
            submitted_at=self.submitted_at,
        )
        return wait.as_event() if wait_in_worker(self.task.hook, wait, self.task.log, stop=stop) else None

    def result_after(self, event: Mapping[str, Any], *, cancel: bool = True) -> dict[str, Any]:
        """Return the result after a wait as an XCom, or raise the error that ended the wait.

        :param event: the event of the trigger.
        :param cancel: whether a request that is still queued at its deadline is cancelled, default True.
        """
        message, request_id = str(event.get("message", "")), self.ref.request_id
        match event["outcome"]:
            case "timeout":
                raise self.timed_out(message, cancel=cancel)
            case "gone" if event.get("may_be_paid"):
                raise self.paid_and_gone(message)
            case "gone":
                # Another try submits a new request, if this task submits.
                raise (WanTransientError if self.submits else WanNotFoundError)(message, request_id=request_id)
            case "refused":
                raise WanRefusedError(message, request_id=request_id)
        result = self.finished(has_succeeded=event["outcome"] == "succeeded")
        return self.task.on_result(result, running_since=event.get("running_since"))

    def finished(self, *, result: RequestResult | None = None, has_succeeded: bool = False) -> dict[str, Any]:
        """Read and record the result of a request that is over; return it as an XCom, or raise its error.

        :param result: the result, if it was just read.
        :param has_succeeded: whether it was seen succeeded: it was paid for, even if its result can't be read now.
        """
        from airflow_provider_wan.durable.reconcile import amend, with_result
        from airflow_provider_wan.model_api.faults import error_of_result

        ref = self.ref
        try:
            known = result or self.task.hook.get_result(ref.request_id)
        except WanError as error:
            if (landed := self._landed()) is not None:
                return result_of_landed(landed, ref)
            if has_succeeded and isinstance(error, WanNotFoundError):
                raise self.paid_and_gone(str(error)) from error
            raise
        if self.journal is not None and ref.fingerprint:
            amend(
                self.journal,
                ref.fingerprint,
                ref.request_id,
                lambda record: with_result(record, known),
                self.task.log,
            )
        if (failure := error_of_result(known)) is not None:
            if not self.submits and known.state.is_terminal:
                failure.retry_helps = False  # it would find the same request again
            raise failure
        learn_price(self.task, self.journal, ref, known.cost_usd)
        return result_as_xcom(known, ref)

    def _landed(self) -> Record | None:
        from airflow_provider_wan.durable.record import Stage

        held = self.journal.read(self.ref.fingerprint) if self.journal and self.ref.fingerprint else None
        if held is None or held.record.request_id != self.ref.request_id or held.record.stage is not Stage.LANDED:
            return None
        return held.record

    def paid_and_gone(self, message: str) -> WanNotFoundError:
        """Record that a request was paid for though its result is gone; return the error that says so."""
        from airflow_provider_wan.durable.reconcile import amend, as_paid

        ref = self.ref
        if self.journal is not None and ref.fingerprint:
            amend(self.journal, ref.fingerprint, ref.request_id, as_paid, self.task.log)
        return WanNotFoundError(
            f"Request {ref.request_id} had ended, and RunComfy no longer has its result. It counts as paid and is not "
            f"bought again. Set a new variation to buy the video again. {message}",
            request_id=ref.request_id,
            code=404001,
        )

    def timed_out(self, message: str, *, cancel: bool = True) -> WanTimeoutError:
        """Cancel the request if it is still queued; return the error that states the outcome."""
        request_id = self.ref.request_id
        outcome = self.cancel_if_queued() if cancel else f"It was not cancelled. {self._how_to_continue()}"
        about = "" if request_id in message else f"Request {request_id}: "
        return WanTimeoutError(f"{about}{message} {outcome}", request_id=request_id)

    def _how_to_continue(self) -> str:
        return f"Run the task again, or pass request={self.ref.request_id!r}, to wait for it."

    def cancel_if_queued(self) -> str:
        """Cancel the request unless another task may depend on it; return a sentence about the outcome."""
        request_id, log = self.ref.request_id, self.task.log
        if not self.may_be_cancelled:
            return (
                "It was not cancelled: without a journal it is not known whether another task waits for it. "
                f"{self._how_to_continue()}"
            )
        journal = self.journal if self.ref.journal is not None else None
        if journal and has_other_owners(journal, self.ref.fingerprint, self.task.owners(self.ref)):
            return f"Other tasks depend on it, so it was not cancelled. {self._how_to_continue()}"
        try:
            outcome = self.task.hook.cancel(request_id)
        except Exception as error:  # the wait's own error must be raised, whatever the cancel ran into
            log.warning("Cancelling request %s failed: %s", request_id, error)
            return f"Whether it was cancelled is not known; it may run on and be charged. {self._how_to_continue()}"
        return outcome.sentence if outcome.cancelled else f"{outcome.sentence} {self._how_to_continue()}"


def result_as_xcom(result: RequestResult, ref: RequestRef) -> dict[str, Any]:
    """Return a result as the waiting tasks return it.

    Its links are public and short-lived; they are for people. The landing reads its own.
    """
    return ref.as_xcom() | {
        "state": str(result.state),
        "videos": list(result.video_urls),
        "urls": list(result.urls),
        "cost_usd": result.cost_usd,
        "created_at": result.created_at,
        "finished_at": result.finished_at,
    }


def result_of_landed(record: Record, ref: RequestRef) -> dict[str, Any]:
    """Return the same for a request that has landed and whose links are gone."""
    return ref.as_xcom() | {
        "state": "succeeded",
        "videos": [video.uri for video in record.videos],
        "urls": [],
        "cost_usd": record.cost_usd,
        "created_at": record.created_at,
        "finished_at": record.finished_at,
    }
