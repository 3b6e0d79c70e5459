# SPDX-License-Identifier: Apache-2.0
"""The connection to RunComfy's Model API, over ``requests``, and over ``aiohttp`` for triggers.

Both hooks have the same methods with the same typed results; what to send and what an answer means is decided
in ``model_api``, and these two only send.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import requests
from airflow.sdk import BaseHook

from airflow_provider_wan.exceptions import WanAuthError, WanError, WanTransientError
from airflow_provider_wan.hooks.common import (
    HEADERS,
    MAX_REPLY_BYTES,
    ONCE,
    TEST_REQUEST_ID,
    Attempts,
    is_submit,
    json_body,
    pacer_of,
    url_of,
    verdict_on_test,
)
from airflow_provider_wan.hooks.connection import WanSettings, read_settings
from airflow_provider_wan.hooks.wan_async import WanAsyncHook
from airflow_provider_wan.http import transport as web
from airflow_provider_wan.model_api import calls
from airflow_provider_wan.model_api.calls import (
    Balance,
    Call,
    CancelOutcome,
    ModelInfo,
    Reply,
    RequestResult,
    RequestStatus,
    SubmittedRequest,
)
from airflow_provider_wan.model_api.faults import NoReplyKind, RetryPolicy, error_of_no_reply

__all__ = ["WanAsyncHook", "WanHook"]

_T = TypeVar("_T")


class _Bearer(requests.auth.AuthBase):
    """Puts the token on API calls; being an explicit auth object, a ``.netrc`` can't replace it."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class WanHook(BaseHook):
    """Talks to RunComfy's Model API from a worker.

    The token goes to the connection's host and account host and nowhere else: no redirect is followed, and
    no address out of an answer is called.

    :param wan_conn_id: the connection, default ``wan_default``: password = API token, host = API origin
        (default ``https://model-api.runcomfy.net``), extra: ``account_host``, ``requests_per_second``,
        ``timeout`` (seconds a call, default 60), ``download_hosts``, ``allow_private_images``,
        ``not_found_patience`` (seconds, default 60).
    :param retry: how GETs, cancels and certainly unaccepted submits are repeated.
    """

    conn_name_attr: ClassVar[str] = "wan_conn_id"
    default_conn_name: ClassVar[str] = "wan_default"
    conn_type: ClassVar[str] = "wan"
    hook_name: ClassVar[str] = "Wan (RunComfy)"

    def __init__(
        self, wan_conn_id: str = "wan_default", *, retry: RetryPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.wan_conn_id = wan_conn_id
        self.retry = retry or RetryPolicy()
        self._refreshing = threading.Lock()

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Describe the connection form to Airflow 3.1, which does not read it from the provider info."""
        from airflow_provider_wan.get_provider_info import get_provider_info

        behaviour = get_provider_info()["connection-types"][0]["ui-field-behaviour"]
        return {
            "hidden_fields": behaviour["hidden-fields"],
            "relabeling": behaviour["relabeling"],
            "placeholders": behaviour.get("placeholders", {}),
        }

    @cached_property
    def settings(self) -> WanSettings:
        """The connection, read once."""
        return read_settings(self.get_connection(self.wan_conn_id))

    def refresh(self, refused: WanSettings | None = None) -> bool:
        """Read the connection again, as after a rotated token; tells whether the token is another one.

        :param refused: the settings whose token was not taken; where another thread has read the connection
            since, it is not read again. Default: those that are known.
        """
        with self._refreshing:
            known = self.settings
            refused = refused or known
            if known.token == refused.token:
                self.__dict__["settings"] = known = read_settings(self.get_connection(self.wan_conn_id))
        return known.token != refused.token

    def get_conn(self) -> requests.Session:
        """Give the pooled session; it carries no credentials of its own."""
        return self._session

    @cached_property
    def _session(self) -> requests.Session:
        return web.bounded_session()

    @property
    def api_origin(self) -> str:
        """Scheme, host and port of the Model API."""
        return self.settings.api_origin

    @property
    def submit_takes_at_most_s(self) -> float:
        """The most that one attempt at a submit takes, in seconds."""
        return self.settings.timeout_s + min(web.CONNECT_TIMEOUT_S, self.settings.timeout_s)

    @property
    def not_found_patience_s(self) -> float:
        """For how long a request must be answered 404001 before it counts as gone, in seconds."""
        return self.settings.not_found_patience_s

    def take_turn(self) -> None:
        """Wait until the connection's ``requests_per_second`` allows one more call."""
        time.sleep(pacer_of(self.settings).reserve())

    def submit(
        self,
        model_id: str,
        inputs: Mapping[str, Any],
        *,
        retry: bool = True,
        send_by: float | None = None,
    ) -> SubmittedRequest:
        """Buy one generation: the one call that costs money.

        :param model_id: such as ``wan-ai/wan-2-2/image-to-video``.
        :param inputs: the model's input, already validated; sent as it is.
        :param retry: whether to try again after a 429 or a connection that could not be opened, when it
            is certain that nothing was bought. Anything else is never sent twice.
        :param send_by: ``time.monotonic()`` after which it is not sent at all, which is then a
            :class:`WanTransientError`. Whoever gives one has waited for :meth:`take_turn` before.
        :raises WanRefusedError: the API said no; nothing was bought.
        :raises WanTransientError: it certainly did not get through; nothing was bought.
        :raises WanUnknownSubmissionError: it may have been bought; never send it again unasked.
        """
        call = calls.submit_call(model_id, inputs)

        def once() -> SubmittedRequest:
            reply = self._send(call, what=f"submit to model {model_id}", send_by=send_by)
            return calls.read_submit(reply, model_id)

        return self._repeat(once, self.retry if retry else ONCE)

    def get_status(self, request_id: str, *, retry: bool = True) -> RequestStatus:
        """Ask where a request stands. A terminal word means only that :meth:`get_result` knows more.

        :param retry: whether to try again on an outage.
        :raises WanTransientError: no usable answer.
        :raises WanRefusedError: the API said no; :class:`WanNotFoundError` if it does not know the request.
        """
        call = calls.status_call(request_id)
        return self._get(call, "status", request_id, lambda r: calls.read_status(r, request_id), retry)

    def get_result(self, request_id: str, *, retry: bool = True) -> RequestResult:
        """Ask how a request ended, with output links and cost; one that has not ended says so.

        :param retry: whether to try again on an outage.
        :raises WanTransientError: no usable answer.
        :raises WanRefusedError: the API said no; :class:`WanNotFoundError` if it does not know the request.
        """
        call = calls.result_call(request_id)
        return self._get(call, "result", request_id, lambda r: calls.read_result(r, request_id), retry)

    def cancel(self, request_id: str, *, retry: bool = True) -> CancelOutcome:
        """Cancel a request that is still queued; one that runs goes on and is charged.

        :param retry: whether to try again on an outage; cancelling twice does no harm.
        :raises WanTransientError: no usable answer.
        :raises WanRefusedError: the API said no.
        """
        call = calls.cancel_call(request_id)
        return self._get(call, "cancel", request_id, lambda r: calls.read_cancel(r, request_id), retry)

    def get_model(self, model_id: str) -> ModelInfo:
        """Ask for a model's name, price and input schema.

        :raises WanError: no usable answer, or there is no such model.
        """
        return self._get(calls.model_call(model_id), "model", None, calls.read_model, True)

    def get_balance(self) -> Balance:
        """Ask for the account's balance; it lives on the connection's ``account_host``.

        :raises WanError: no usable answer.
        """
        return self._get(calls.balance_call(), "balance", None, calls.read_balance, True)

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the status of a request that can't exist: 404001 means that the token works. Free."""
        try:
            settings = self.settings
        except WanError as error:
            return False, str(error)
        try:
            self.get_status(TEST_REQUEST_ID)
        except WanError as error:
            return verdict_on_test(error, settings)
        return verdict_on_test(None, settings)

    def _get(
        self, call: Call, what: str, request_id: str | None, read: Callable[[Reply], _T], retry: bool
    ) -> _T:
        def once() -> _T:
            return read(self._send(call, what=what, request_id=request_id))

        settings = self.settings
        try:
            return self._repeat(once, self.retry if retry else ONCE)
        except WanAuthError:
            if not self.refresh(settings):
                raise
            return self._repeat(once, self.retry if retry else ONCE)

    @staticmethod
    def _repeat(once: Callable[[], _T], policy: RetryPolicy) -> _T:
        attempts = Attempts(policy)
        while True:
            try:
                return once()
            except WanTransientError as error:
                time.sleep(attempts.delay_after(error))

    def _send(
        self, call: Call, *, what: str, request_id: str | None = None, send_by: float | None = None
    ) -> Reply:
        """Send one call once."""
        settings = self.settings
        if send_by is None:
            self.take_turn()
        deadline = time.monotonic() + self.submit_takes_at_most_s
        with contextlib.ExitStack() as stack:
            seen = stack.enter_context(web.track_exchange(ends_by=deadline))
            seen.send_by = send_by
            # A kept connection that the server closed while it was idle looks just like a lost answer.
            fresh = is_submit(call)
            session = stack.enter_context(web.bounded_session()) if fresh else self._session
            try:
                with session.request(
                    call.method,
                    url_of(call, settings),
                    params=dict(call.query),
                    json=json_body(call),
                    headers=dict(HEADERS),
                    auth=_Bearer(settings.token),
                    timeout=(min(web.CONNECT_TIMEOUT_S, settings.timeout_s), settings.timeout_s),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    body = web.read_body(response, limit_bytes=MAX_REPLY_BYTES, deadline=deadline)
                    return Reply(response.status_code, response.headers, body, received_at=datetime.now(UTC))
            except (requests.RequestException, OSError, ValueError) as error:
                _forget_token(error)
                raise error_of_no_reply(
                    _kind_of(error, sent=seen.sent), what=what, request_id=request_id, submit=is_submit(call)
                ) from error


def _forget_token(error: Exception) -> None:
    """Take the token out of what a logger that digs into exceptions would find there."""
    request = getattr(error, "request", None)
    if request is not None:
        request.headers.pop("Authorization", None)


def _kind_of(error: Exception, *, sent: bool) -> NoReplyKind:
    if not sent:
        return "connect"
    if isinstance(error, requests.Timeout):
        return "timeout"
    return "reset" if isinstance(error, requests.ConnectionError | OSError) else "other"
