# SPDX-License-Identifier: Apache-2.0
"""Wait for a request."""

from __future__ import annotations

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
    WanError,
    WanGenerationFailedError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
)
from airflow_provider_wan.links.wan import WanGenerationsLink, WanVideoLink
from airflow_provider_wan.triggers.wan import WanRequestTrigger, deadline_in
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.link_state import LinkState, on_result
from airflow_provider_wan.utils.params import DEFAULT_TIMEOUT, RequestRef, request_of
from airflow_provider_wan.utils.task import bucket_journal, watchers_of
from airflow_provider_wan.utils.waits import finished, paid_and_gone, result_if_over, timed_out

if TYPE_CHECKING:
    from airflow_provider_wan.durable.journal import Journal
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.calls import RequestResult


class WanRequestSensor(BaseSensorOperator):
    """Wait until a request is finished; holds no worker while it waits.

    Returns the result: ``request_id, model_id, fingerprint, state, videos`` (links, public and short-lived), ``urls,
    cost_usd, created_at, finished_at``. A request that failed, was cancelled or is too late raises its own error.

    An outage, a rate limit or a token that is rotated meanwhile never ends the wait before its deadline: the
    request is paid for.

    :param request: a request id, or what a ``WanSubmitOperator`` returned; ``expand(request=submit.output)``
        works. (templated)
    :param deferrable: whether to wait in the triggerer, default True. False: the usual ``mode``, of which
        ``reschedule`` is the default here.
    :param poke_interval: seconds between looks, less those, where it is deferred, that can tell nothing yet; None
        (default) adapts to the time waited and the queue there, and is 60 s where it is not deferred.
    :param timeout: the most that one try waits, default 6 hours. A request that is still queued then is cancelled;
        one that runs is taken over by the next try.
    :param cancel_on_timeout: whether to cancel it then, default True.
    :param cancel_on_kill: whether a queued request is cancelled when the task is marked failed or successful while it
        is deferred, default True (Airflow 3.3 and later). A running one can't be cancelled and is charged.
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
        self.seen = LinkState()
        self._looked = False

    def execute(self, context: Any) -> Any:
        """Look once, and wait in the triggerer; or in the usual way."""
        with as_airflow_errors(context):
            ref = request_of(self.request)
            self.seen = LinkState(ref.request_id)
            if not self.deferrable:
                return self._wait_as_sensors_do(context, ref)
            if (xcom := self._first_look(context, ref)) is not None:
                return xcom
            self.defer(
                trigger=WanRequestTrigger(
                    wan_conn_id=self.wan_conn_id,
                    request_id=ref.request_id,
                    deadline=deadline_in(self.timeout),
                    poll_interval=self.poll_interval,
                    cancel_on_kill=self.cancel_on_kill,
                    fingerprint=ref.fingerprint,
                    journal=ref.journal,
                    watchers=watchers_of(context, ref),
                    is_known=ref.fingerprint is not None,
                    gcp_conn_id=self.gcp_conn_id,
                    impersonation_chain=self.impersonation_chain,
                ),
                method_name="execute_complete",
            )

    def _first_look(self, context: Any, ref: RequestRef) -> dict[str, Any] | None:
        """Give the result of a request that is over already; a failure skips here where it does after a deferral."""
        from airflow_provider_wan.hooks.wan import WanHook

        hook = WanHook(self.wan_conn_id)
        try:
            with as_airflow_errors(context):
                result = result_if_over(hook, ref)
                xcom = None if result is None else self._finished(hook, ref, result=result)
        except AirflowException as error:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(str(error)) from error
            raise
        return None if xcom is None else on_result(self, context, xcom)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on after the wait in the triggerer."""
        from airflow_provider_wan.hooks.wan import WanHook

        self.seen = LinkState(event["request_id"])
        with as_airflow_errors(context):
            hook = WanHook(self.wan_conn_id)
            ref = request_of(self.request)
            message = str(event.get("message", ""))
            match event["outcome"]:
                case "timeout":
                    raise self._timed_out(context, hook, ref, message)
                case "gone" if event.get("may_be_paid"):
                    raise paid_and_gone(self._journal(ref), ref, message, self.log)
                case "gone":
                    raise WanNotFoundError(message, request_id=ref.request_id)
                case "refused":
                    raise WanRefusedError(message, request_id=ref.request_id)
            result = self._finished(hook, ref, has_succeeded=event["outcome"] == "succeeded")
            return on_result(self, context, result, running_since=event.get("running_since"))

    def poke(self, context: Any) -> PokeReturnValue | bool:
        """Look once, in ``mode="poke"`` and ``mode="reschedule"``."""
        from airflow_provider_wan.durable.decide import RemoteState
        from airflow_provider_wan.durable.reconcile import check_it_exists, look
        from airflow_provider_wan.hooks.wan import WanHook

        with as_airflow_errors(context):
            ref = request_of(self.request)
            hook = WanHook(self.wan_conn_id)
            try:
                if ref.fingerprint is None and not self._has_looked(context):
                    check_it_exists(hook, ref.request_id, named_in="request=")
                there, result = look(hook, ref.request_id)
            except (WanTransientError, WanAuthError) as error:
                self.log.warning("%s", error)
                return False
            if there is RemoteState.RESULT_GONE:
                raise paid_and_gone(self._journal(ref), ref, "", self.log)
            if there is RemoteState.GONE:
                raise WanNotFoundError(
                    f"RunComfy does not know request {ref.request_id}: the id is wrong, or it was deleted or has "
                    "expired.",
                    request_id=ref.request_id,
                )
            if result is None or not result.state.is_terminal:
                self.log.info("Request %s is %s.", ref.request_id, there)
                return False
            xcom = self._finished(hook, ref, result=result)
            return PokeReturnValue(is_done=True, xcom_value=on_result(self, context, xcom))

    def _wait_as_sensors_do(self, context: Any, ref: RequestRef) -> Any:
        from airflow_provider_wan.hooks.wan import WanHook

        try:
            return super().execute(context)
        except AirflowSensorTimeout as error:
            raise self._timed_out(context, WanHook(self.wan_conn_id), ref, str(error)) from error
        except AirflowSkipException as skip:
            if skip.__cause__ is not None:  # soft_fail, and what it passes over is not the timeout
                raise
            late = self._timed_out(context, WanHook(self.wan_conn_id), ref, str(skip))
            raise AirflowSkipException(str(late)) from late

    def _finished(
        self,
        hook: WanHook,
        ref: RequestRef,
        *,
        result: RequestResult | None = None,
        has_succeeded: bool = False,
    ) -> dict[str, Any]:
        try:
            return finished(
                hook, self._journal(ref), ref, self.log, result=result, has_succeeded=has_succeeded
            )
        except (WanGenerationFailedError, WanCancelledError) as error:
            error.retry_helps = False  # type: ignore[misc]  # it submits nothing, so it would see the same again
            raise

    def _has_looked(self, context: Any) -> bool:
        """Tell whether an earlier look of this try has found something, or nothing certain."""
        looked, self._looked = self._looked, True
        return looked or (self.reschedule and context["ti"].get_first_reschedule_date(context) is not None)

    def _timed_out(self, context: Any, hook: WanHook, ref: RequestRef, message: str) -> WanError:
        return timed_out(
            hook,
            self._journal(ref),
            ref,
            message,
            watchers=watchers_of(context, ref),
            cancel=self.cancel_on_timeout,
            log=self.log,
        )

    def _journal(self, ref: RequestRef) -> Journal | None:
        if not ref.journal:
            return None
        return bucket_journal(
            ref.journal, gcp_conn_id=self.gcp_conn_id, impersonation_chain=self.impersonation_chain
        )
