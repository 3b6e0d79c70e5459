# SPDX-License-Identifier: Apache-2.0
"""Wait for a request."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanCancelledError,
    WanGenerationFailedError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
)
from airflow_provider_wan.links.wan import WanGenerationsLink, WanVideoLink
from airflow_provider_wan.triggers.wan import WanRequestTrigger, deadline_in, event_of
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.params import DEFAULT_TIMEOUT, request_of
from airflow_provider_wan.utils.results import AwaitedRequest
from airflow_provider_wan.utils.task import LinkState, TaskRequest

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.values import RequestResult

#: A wait in ``mode="poke"`` ends just after Airflow's own timeout, which then raises.
_PAST_TIMEOUT_S = 0.1


class WanRequestSensor(BaseSensorOperator):
    """Wait until a request is finished; holds no worker while it waits.

    Returns the result: ``request_id, model_id, fingerprint, state, videos`` (links, public and short-lived), ``urls,
    cost_usd, created_at, finished_at``. A request that failed, was cancelled or is too late raises its own error.

    An outage, a rate limit or a token that is rotated meanwhile never ends the wait before its deadline: the
    request is paid for.

    :param request: a request id, or the return value of a ``WanSubmitOperator``; ``expand(request=submit.output)``
        works. (templated)
    :param deferrable: whether to wait in the triggerer, default True. False: the usual ``mode``, of which
        ``reschedule`` is the default here: each poke is a process of its own and makes one poll, and Airflow's
        ``poke_interval`` decides when the next one starts, since a new process knows nothing of earlier polls.
    :param poke_interval: seconds between polls; a deferred sensor skips polls that cannot find the request finished.
        None (default) adapts to the time waited and the queue if deferred, and is 60 s otherwise.
    :param timeout: the most that one try waits, default 6 hours. A request that is still queued then is cancelled;
        one that runs is adopted by the next try.
    :param cancel_on_timeout: whether to cancel it then, default True. Only a request with a journal is cancelled:
        without one it is not known whether another task waits for it.
    :param cancel_on_kill: whether a queued request is cancelled when the task is marked failed or successful while it
        is deferred, default True (Airflow 3.3 and later; with a journal). A running one can't be cancelled and is
        charged.
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    :param gcp_conn_id: for the journal that the request came with, if it did. (templated)
    :param impersonation_chain: a service account to act as, for that journal. (templated)
    """

    template_fields: Sequence[str] = ("request", "wan_conn_id", "gcp_conn_id", "impersonation_chain")
    operator_extra_links = (WanVideoLink(), WanGenerationsLink())
    ui_color = "#efe4fb"

    def __init__(
        self,
        *,
        request: str | Mapping[str, Any],
        deferrable: bool = True,
        poke_interval: float | timedelta | None = None,
        timeout: float | timedelta = DEFAULT_TIMEOUT,
        mode: str = "reschedule",
        cancel_on_timeout: bool = True,
        cancel_on_kill: bool = True,
        wan_conn_id: str = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        interval = 60 if poke_interval is None else poke_interval
        super().__init__(poke_interval=interval, timeout=timeout, mode=mode, **kwargs)
        self.poll_interval: float | None = None if poke_interval is None else self.poke_interval
        self.request = request
        self.deferrable = deferrable
        self.cancel_on_timeout = cancel_on_timeout
        self.cancel_on_kill = cancel_on_kill
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.link_state = LinkState()
        self._polled = False
        self._asked_to_wait_s = 0.0
        self._deadline = 0.0

    def execute(self, context: Any) -> Any:
        """Ask once, and wait in the triggerer; or in the usual way of sensors."""
        with as_airflow_errors(context):
            if not self.deferrable:
                return self._wait_as_sensors_do(context)
            wait = self._awaited(context)
            xcom, not_before = self._first_poll(wait)
            if xcom is not None:
                return xcom
            self.defer(
                trigger=WanRequestTrigger(
                    wan_conn_id=self.wan_conn_id,
                    request_id=wait.ref.request_id,
                    deadline=deadline_in(self.timeout),
                    poll_interval=self.poll_interval,
                    cancel_on_kill=self.cancel_on_kill and wait.may_be_cancelled,
                    fingerprint=wait.ref.fingerprint,
                    journal=wait.ref.journal,
                    watchers=wait.task.owners(wait.ref),
                    is_known=wait.ref.fingerprint is not None,
                    submitted_at=wait.submitted_at,
                    not_before=not_before,
                    gcp_conn_id=self.gcp_conn_id,
                    impersonation_chain=self.impersonation_chain,
                ),
                method_name="execute_complete",
            )

    def _awaited(self, context: Any) -> AwaitedRequest:
        from airflow_provider_wan.hooks.wan import WanHook

        ref = request_of(self.request)
        self.link_state = LinkState(ref.request_id)
        return AwaitedRequest.of(TaskRequest.of(self, context), WanHook(self.wan_conn_id), ref)

    def _first_poll(self, wait: AwaitedRequest) -> tuple[dict[str, Any] | None, float | None]:
        """Return the result of a request that is over already, and until when the server asked to wait.

        A failure skips here where it does after a deferral.
        """
        try:
            with as_airflow_errors({"ti": wait.task.ti}):
                result, not_before = wait.result_if_over()
                if result is None:
                    return None, not_before
                return wait.task.on_result(self._finished(wait, result=result)), None
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after the wait in the triggerer."""
        with as_airflow_errors(context):
            wait = self._awaited(context)
            if event["outcome"] == "timeout":
                raise wait.timed_out(str(event.get("message", "")), cancel=self.cancel_on_timeout)
            return self._after_wait(wait, event)

    def _after_wait(self, wait: AwaitedRequest, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result, or raise the error that ended the wait."""
        message = str(event.get("message", ""))
        match event["outcome"]:
            case "gone" if event.get("may_be_paid"):
                raise wait.paid_and_gone(message)
            case "gone":
                raise WanNotFoundError(message, request_id=wait.ref.request_id)
            case "refused":
                raise WanRefusedError(message, request_id=wait.ref.request_id)
        result = self._finished(wait, has_succeeded=event["outcome"] == "succeeded")
        return wait.task.on_result(result, running_since=event.get("running_since"))

    def poke(self, context: Any) -> PokeReturnValue | bool:
        """Ask once in ``mode="reschedule"``; in ``mode="poke"`` wait here, as a worker does."""
        from airflow_provider_wan.durable.decide import RemoteState
        from airflow_provider_wan.durable.reconcile import check_it_exists, read_state

        with as_airflow_errors(context):
            wait = self._awaited(context)
            if not self.reschedule:
                return self._wait_here(wait)
            request_id = wait.ref.request_id
            try:
                if wait.ref.fingerprint is None and not self._has_polled(context):
                    check_it_exists(wait.hook, request_id, named_in="request=")
                there, result = read_state(wait.hook, request_id)
            except (WanTransientError, WanAuthError) as error:
                self.log.warning("%s", error)
                self._asked_to_wait_s = getattr(error, "retry_after_s", None) or 0.0
                return False
            if there is RemoteState.RESULT_GONE:
                raise wait.paid_and_gone("")
            if there is RemoteState.GONE:
                raise WanNotFoundError(
                    f"RunComfy does not know request {request_id}: the id is wrong, or it was deleted or has expired.",
                    request_id=request_id,
                )
            if result is None or not result.state.is_terminal:
                self.log.info("Request %s is %s.", request_id, there)
                return False
            xcom = wait.task.on_result(self._finished(wait, result=result))
            return PokeReturnValue(is_done=True, xcom_value=xcom)

    def _wait_here(self, wait: AwaitedRequest) -> PokeReturnValue | bool:
        from airflow_provider_wan.polling.drivers import wait_in_worker
        from airflow_provider_wan.polling.wait import RequestWait

        polled = RequestWait(
            wait.ref.request_id,
            deadline=self._deadline,
            poll_interval_s=self.poke_interval,
            is_known=wait.ref.fingerprint is not None,
            submitted_at=wait.submitted_at,
        )
        over = wait_in_worker(wait.hook, polled, self.log, stop=threading.Event())
        if over is None or over.outcome == "timeout":
            return False  # Airflow's own timeout of sensors follows
        return PokeReturnValue(is_done=True, xcom_value=self._after_wait(wait, event_of(over, polled)))

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Return when to poke again: not before ``Retry-After`` allows, as far as the timeout permits."""
        interval_s: float = super()._get_next_poke_interval(*args, **kwargs)
        return max(interval_s, min(self._asked_to_wait_s, float(self.timeout)))

    def _wait_as_sensors_do(self, context: Any) -> Any:
        self._deadline = deadline_in(self.timeout + _PAST_TIMEOUT_S)
        try:
            return super().execute(context)
        except AirflowSensorTimeout as error:
            raise self._awaited(context).timed_out(str(error), cancel=self.cancel_on_timeout) from error
        except AirflowSkipException as skip:
            if skip.__cause__ is not None:  # soft_fail skips other errors than the timeout
                raise
            late = self._awaited(context).timed_out(str(skip), cancel=self.cancel_on_timeout)
            raise AirflowSkipException(str(late)) from late

    def _finished(
        self, wait: AwaitedRequest, *, result: RequestResult | None = None, has_succeeded: bool = False
    ) -> dict[str, Any]:
        try:
            return wait.finished(result=result, has_succeeded=has_succeeded)
        except (WanGenerationFailedError, WanCancelledError) as error:
            error.retry_helps = False  # type: ignore[misc]  # a sensor submits nothing: it would fail again
            raise

    def _has_polled(self, context: Any) -> bool:
        """Return whether an earlier poke of this try found the request, or could not tell."""
        polled, self._polled = self._polled, True
        return polled or (self.reschedule and context["ti"].get_first_reschedule_date(context) is not None)
