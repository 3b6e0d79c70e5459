# SPDX-License-Identifier: Apache-2.0
"""RunComfy's Model API over ``requests``; :class:`WanAsyncHook` is the same over ``aiohttp``, for triggers.

Calls and the meaning of answers are in ``model_api``, and the rules of both hooks in ``common``: the hooks only
send. Only this one can submit, since a purchase needs a claim, which is made in a worker.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from logging import Logger
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import requests
import tenacity
from airflow.sdk import BaseHook

from airflow_provider_wan.exceptions import WanAuthError, WanError, WanInputError, WanTransientError
from airflow_provider_wan.hooks import common
from airflow_provider_wan.hooks.common import pacer_of
from airflow_provider_wan.hooks.connection import WanSettings, read_settings
from airflow_provider_wan.http import transport
from airflow_provider_wan.model_api import calls
from airflow_provider_wan.model_api.dialect import model_of_page, read_schema
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.model_api.schema import Model, ModelInfo, load_schema
from airflow_provider_wan.model_api.values import (
    Balance,
    Call,
    CancelOutcome,
    RequestResult,
    RequestStatus,
    SubmittedRequest,
)

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan_async import WanAsyncHook

__all__ = ["WanAsyncHook", "WanHook"]

_T = TypeVar("_T")


#: A page that was read by any hook of this process, with the moment when it expires.
_pages: dict[tuple[str, str, str, str], tuple[ModelInfo, float]] = {}
_PAGE_LIFETIME_S = 15 * 60
#: Notes about pages that were logged in this process.
_logged: set[str] = set()


def __getattr__(name: str) -> Any:
    """Import the asynchronous hook when it is first used: a worker saves the import of ``aiohttp``."""
    if name != "WanAsyncHook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from airflow_provider_wan.hooks.wan_async import WanAsyncHook

    return WanAsyncHook


def _check_schema(model: Model, log: Logger, notes: list[str], *, require_schema: bool) -> None:
    """Log a missing schema, and once in a process the notes about a page.

    :raises WanError: a schema is required, and there is none.
    """
    model_id, unread = model.model_id, model.unread
    why = f"could not be read: {unread}" if unread else "has no schema of its inputs."
    if model.schema is None:
        if require_schema:
            message = (
                f"The page of model {model_id} {why} require_schema=True, so nothing was sent and nothing was bought. "
                "Try again later, or set schema=."
            )
            raise (WanTransientError if isinstance(unread, WanTransientError) else WanInputError)(message)
        log.warning(
            "The page of model %s %s Its inputs and images are sent unchecked, and a mistake may be paid for. "
            "require_schema=True refuses instead; schema= supplies the rules.",
            model_id,
            why,
        )
    elif unread is not None:
        log.warning("The page of model %s %s The rules of this package apply.", model_id, why)
    for note in notes:
        if note not in _logged:
            _logged.add(note)
            log.info("%s", note)


class _Bearer(requests.auth.AuthBase):
    """Puts the token on API calls; being an explicit auth object, a ``.netrc`` cannot replace it."""

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
    :param retry: how calls are retried; a submit only if it was certainly not accepted.
    """

    conn_name_attr: ClassVar[str] = "wan_conn_id"
    default_conn_name: ClassVar[str] = "wan_default"
    conn_type: ClassVar[str] = "wan"
    hook_name: ClassVar[str] = "Wan (RunComfy)"

    def __init__(self, wan_conn_id: str = "wan_default", *, retry: RetryPolicy | None = None, **kwargs: Any) -> None:
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
        """Read the connection again, as after a rotated token; return whether the token has changed.

        :param refused: the settings whose token was not accepted; if another thread has read the connection
            since, it is not read again. Default: the current ones.
        """
        with self._refreshing:
            known = self.settings
            refused = refused or known
            if known.token == refused.token:
                self.__dict__["settings"] = known = read_settings(self.get_connection(self.wan_conn_id))
        return known.token != refused.token

    def get_conn(self) -> requests.Session:
        """Return the pooled session; it carries no credentials of its own."""
        return self._session

    @cached_property
    def _session(self) -> requests.Session:
        return transport.bounded_session()

    @property
    def api_origin(self) -> str:
        """Scheme, host and port of the Model API."""
        return self.settings.api_origin

    @property
    def submit_takes_at_most_s(self) -> float:
        """The most that one attempt at a submit takes, in seconds."""
        return self.settings.timeout_s + min(transport.CONNECT_TIMEOUT_S, self.settings.timeout_s)

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
        """Submit a request: the one call that costs money.

        :param model_id: such as ``wan-ai/wan-2-2/image-to-video``.
        :param inputs: the model's input, already validated; sent as it is.
        :param retry: whether to try again after a 429 or a connection that could not be opened, when it
            is certain that nothing was bought. After anything else it is never sent again.
        :param send_by: ``time.monotonic()`` after which it is not sent at all, which is then a
            :class:`WanTransientError`. The caller must have waited for :meth:`take_turn` before.
        :raises WanRefusedError: the API refused it; nothing was bought.
        :raises WanTransientError: it certainly did not get through; nothing was bought.
        :raises WanUnknownSubmissionError: it may have been bought; it must not be resent automatically.
        """
        return self._call(calls.submit_call(model_id, inputs), self.retry if retry else common.ONCE, send_by)

    def get_status(self, request_id: str, *, retry: bool = True) -> RequestStatus:
        """Ask for the status of a request. A terminal word means only that :meth:`get_result` knows more.

        :param retry: whether to try again on an outage.
        :raises WanTransientError: no usable answer.
        :raises WanRefusedError: the API refused it; :class:`WanNotFoundError` if it does not know the request.
        """
        return self._read(calls.status_call(request_id), retry)

    def get_result(self, request_id: str, *, retry: bool = True) -> RequestResult:
        """Ask for the result of a request, with output links and cost; one that has not ended says so.

        :param retry: whether to try again on an outage.
        :raises WanTransientError: no usable answer.
        :raises WanRefusedError: the API refused it; :class:`WanNotFoundError` if it does not know the request.
        """
        return self._read(calls.result_call(request_id), retry)

    def cancel(self, request_id: str, *, retry: bool = True) -> CancelOutcome:
        """Cancel a request that is still queued; one that runs continues and is charged.

        :param retry: whether to try again on an outage; cancelling twice does no harm.
        :raises WanTransientError: no usable answer.
        :raises WanRefusedError: the API refused it.
        """
        return self._read(calls.cancel_call(request_id), retry)

    def get_model(self, model_id: str) -> ModelInfo:
        """Return a model's name, price and input schema, as its page states them.

        Pages are cached for 15 minutes in each process.

        :raises WanError: no usable answer, or there is no such model.
        """
        return self._page(model_id)

    @staticmethod
    def forget_models() -> None:
        """Drop the cached pages of this process, so that the next use reads them again."""
        _pages.clear()
        _logged.clear()

    def _page(self, model_id: str, retry: bool = True) -> ModelInfo:
        settings = self.settings
        key = (settings.conn_id, settings.api_origin, settings.account_origin, model_id)
        page, expires_at = _pages.get(key, (None, 0.0))
        if page is None or time.monotonic() > expires_at:
            page = self._read(calls.model_call(model_id), retry)
            _pages[key] = (page, time.monotonic() + _PAGE_LIFETIME_S)
        return page

    def list_models(self, search: str | None = None, category: str | None = None) -> list[ModelInfo]:
        """Return the models of the catalogue, each with its schema, image fields, price, unit and note.

        :param search: words to search for; None (default): all.
        :param category: a category of the catalogue, such as ``image-to-video``; None (default): all.
        :raises WanError: no usable answer.
        """
        found: dict[str, ModelInfo] = {}
        offset = 0
        while True:
            page = self._read(calls.models_call(search, category, limit=common.MODELS_PER_PAGE, offset=offset))
            offset += len(page.models)
            is_new = any(model.model_id not in found for model in page.models)
            found |= {model.model_id: model for model in page.models}
            if not is_new or (page.total is not None and offset >= page.total):
                return list(found.values())

    def model(
        self,
        model_id: str,
        *,
        schema: Mapping[str, Any] | str | None = None,
        image_field: str | None = None,
        require_schema: bool = False,
        log: Logger | None = None,
    ) -> Model:
        """Return a model with the rules that validate its inputs and images, by its page.

        Wan 2.2's page decides where it differs from the bundled schema, which decides where the page can't be read.
        The inputs of any other model whose page can't be read go unchecked, and the log says so.

        :param schema: a JSON schema (also in RunComfy's dialect), or its JSON text, in place of the page's.
        :param image_field: the field that takes the source image; None (default): found from the schema.
        :param require_schema: whether to raise where no schema is known, default False.
        :param log: default: the hook's.
        :raises WanAuthError: the token is not accepted.
        :raises WanInputError: ``schema`` is not a schema; or there is none and ``require_schema`` is set.
        :raises WanTransientError: with ``require_schema``: the page can't be read now.
        """
        if schema is not None:
            translation = read_schema(schema, model_id)
            model, notes = Model(model_id, translation.schema, chosen_field=image_field), translation.notes
        else:
            try:
                page = self._page(model_id, retry=load_schema(model_id) is None)
                if page.model_id != model_id:
                    raise WanInputError(f"RunComfy answered with the page of model {page.model_id}.")
                model, notes = model_of_page(page, image_field)
            except WanAuthError:
                raise
            except WanError as error:
                model, notes = replace(Model.bundled(model_id, image_field), unread=error), []
        _check_schema(model, log or self.log, notes, require_schema=require_schema)
        return model

    def get_balance(self) -> Balance:
        """Ask for the account's balance; it is asked for at the connection's ``account_host``.

        :raises WanError: no usable answer.
        """
        return self._read(calls.balance_call())

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the status of a request that cannot exist: 404001 means that the token works. Free."""
        try:
            settings = self.settings
        except WanError as error:
            return False, str(error)
        try:
            self.get_status(common.TEST_REQUEST_ID)
        except WanError as error:
            return common.verdict_on_test(error, settings)
        return common.verdict_on_test(None, settings)

    def _read(self, call: Call[_T], retry: bool = True) -> _T:
        """Make a call that costs nothing; repeat it with a refreshed token if the cached one is refused."""
        policy = self.retry if retry else common.ONCE
        settings = self.settings
        try:
            return self._call(call, policy)
        except WanAuthError:
            if not self.refresh(settings):
                raise
            return self._call(call, policy)

    def _call(self, call: Call[_T], policy: RetryPolicy, send_by: float | None = None) -> _T:
        retrying = tenacity.Retrying(sleep=time.sleep, **common.retry_rules(policy))
        result: _T = retrying(self._call_once, call, send_by)
        return result

    def _call_once(self, call: Call[_T], send_by: float | None) -> _T:
        settings = self.settings
        if send_by is None:
            self.take_turn()
        deadline = time.monotonic() + self.submit_takes_at_most_s
        with contextlib.ExitStack() as stack:
            exchange = stack.enter_context(transport.track_exchange(send_by=send_by, ends_by=deadline))
            # On a kept connection, one that the server closed while it was idle looks just like a lost answer.
            session = self._session
            if call.is_submit:
                session = stack.enter_context(transport.bounded_session(like=session))
            try:
                with session.request(
                    call.method,
                    common.origin_of(call.host, settings) + call.path,
                    params=dict(call.query),
                    json=call.json,
                    headers=dict(common.HEADERS),
                    auth=_Bearer(settings.token),
                    timeout=(min(transport.CONNECT_TIMEOUT_S, settings.timeout_s), settings.timeout_s),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    body = transport.read_body(response, limit_bytes=common.MAX_REPLY_BYTES, deadline=deadline)
                    reply = common.reply_of(call, settings, response.status_code, response.headers, body)
            except (requests.RequestException, OSError, ValueError) as error:
                failure = error
            else:
                return call.read(reply)
        raise common.error_of_failure(failure, call, settings, sent=exchange.sent)
