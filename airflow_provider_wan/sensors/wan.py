# SPDX-License-Identifier: Apache-2.0
"""Wait for a request."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_wan.exceptions import WanAuthError, WanNotFoundError, WanTransientError
from airflow_provider_wan.links.wan import WanGenerationsLink, WanVideoLink
from airflow_provider_wan.triggers.wan import deadline_in, trigger_for
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.params import DEFAULT_TIMEOUT, request_of
from airflow_provider_wan.utils.results import AwaitedRequest
from airflow_provider_wan.utils.task import LinkState, TaskRequest


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
        self._asked_to_wait_s = 0.0

    def execute(self, context: Any) -> Any:
        """Wait in the triggerer; in ``mode="poke"`` here, as a worker does; else poll once, as sensors do."""
        if not self.deferrable and self.reschedule:
            return self._reschedule(context)
        try:
            with as_airflow_errors(context):
                wait = self._awaited(context)
                if not self.deferrable:
                    return self._wait_here(wait)
                result, not_before = wait.result_if_over()
                if result is not None:
                    return wait.task.on_result(wait.finished(result=result))
        except AirflowException as error:  # a failure skips here where it does after a deferral
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
        trigger = trigger_for(
            wait,
            timeout_s=self.timeout,
            poll_interval=self.poll_interval,
            cancel_on_kill=self.cancel_on_kill,
            is_known=wait.ref.fingerprint is not None,
            not_before=not_before,
        )
        return self.defer(trigger=trigger, method_name="execute_complete")

    def _awaited(self, context: Any) -> AwaitedRequest:
        ref = request_of(self.request)
        self.link_state = LinkState(ref.request_id)
        task = TaskRequest.of(self, context)
        return AwaitedRequest.of(task, ref, submits=False)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after the wait in the triggerer."""
        with as_airflow_errors(context):
            return self._awaited(context).result_after(event, cancel=self.cancel_on_timeout)

    def _wait_here(self, wait: AwaitedRequest) -> dict[str, Any]:
        event = wait.wait_here(
            deadline=deadline_in(self.timeout),
            poll_interval=self.poke_interval,
            is_known=wait.ref.fingerprint is not None,
            stop=threading.Event(),
        )
        assert event is not None
        return wait.result_after(event, cancel=self.cancel_on_timeout)

    # -- mode="reschedule": each poke is a process of its own ----------------------------------------------

    def _reschedule(self, context: Any) -> Any:
        with as_airflow_errors(context):
            try:
                return super().execute(context)
            except AirflowSensorTimeout as error:
                raise self._awaited(context).timed_out(str(error), cancel=self.cancel_on_timeout) from error
            except AirflowSkipException as skip:
                if skip.__cause__ is not None:  # soft_fail skips other errors than the timeout
                    raise
                late = self._awaited(context).timed_out(str(skip), cancel=self.cancel_on_timeout)
                raise AirflowSkipException(str(late)) from late

    def poke(self, context: Any) -> PokeReturnValue | bool:
        """Poll once."""
        from airflow_provider_wan.durable.decide import RemoteState
        from airflow_provider_wan.durable.reconcile import check_it_exists, read_state

        with as_airflow_errors(context):
            wait = self._awaited(context)
            request_id = wait.ref.request_id
            is_typed_in = wait.ref.fingerprint is None
            try:
                if is_typed_in and context["ti"].get_first_reschedule_date(context) is None:
                    check_it_exists(wait.task.hook, request_id, named_in="request=")
                there, result = read_state(wait.task.hook, request_id)
            except (WanTransientError, WanAuthError) as error:
                self.log.warning("%s", error)
                self._asked_to_wait_s = error.retry_after_s or 0.0
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
            xcom = wait.task.on_result(wait.finished(result=result))
            return PokeReturnValue(is_done=True, xcom_value=xcom)

    def _get_next_poke_interval(self, *args: Any, **kwargs: Any) -> float:
        """Return when to poke again: not before ``Retry-After`` allows, as far as the timeout permits."""
        interval_s: float = super()._get_next_poke_interval(*args, **kwargs)
        return max(interval_s, min(self._asked_to_wait_s, float(self.timeout)))
