# SPDX-License-Identifier: Apache-2.0
"""The Model API over ``aiohttp``, for triggers: one session a connection and event loop, shared by all.

A session each would cost a thousand triggers a thousand TLS contexts and connection look-ups, which Airflow
answers one after another.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import aiohttp
from airflow.providers.common.compat.connection import get_async_connection

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
    proxy_of,
    url_of,
    verdict_on_test,
)
from airflow_provider_wan.hooks.connection import WanSettings, read_settings
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
from airflow_provider_wan.polling.pace import Experience

_T = TypeVar("_T")
#: A trigger that starts later than this after the last look-up looks the connection up again, in seconds.
_SETTINGS_FRESH_FOR_S = 30.0
#: Thousands of triggers that start together would otherwise all begin a call before anything else gets its turn.
_CALLS_AT_ONCE = 100
_RETRY = RetryPolicy()


class _SharedClient:
    """One connection's settings and HTTP session on one event loop."""

    def __init__(self, wan_conn_id: str) -> None:
        self._conn_id = wan_conn_id
        self._lock = asyncio.Lock()
        self._settings: WanSettings | None = None
        self._read_at = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._proxies: dict[str, str | None] = {}
        self.calls_at_once = asyncio.Semaphore(_CALLS_AT_ONCE)
        self.experience = Experience()
        self.users = 0

    async def settings(
        self, *, instead_of: str | None = None, newer_than_s: float | None = None
    ) -> WanSettings:
        """Give the settings, looked up once for all who ask at the same time.

        :param instead_of: a token that the API did not take: look up again, unless somebody just has.
        :param newer_than_s: look up again if what is known is older, in seconds.
        """
        known = self._known(instead_of, newer_than_s)
        if known is not None:
            return known
        async with self._lock:
            known = self._known(instead_of, newer_than_s)
            if known is None:
                known = read_settings(await get_async_connection(self._conn_id))
                self._settings, self._read_at = known, time.monotonic()
                self._proxies.clear()
            return known

    def _known(self, instead_of: str | None, newer_than_s: float | None) -> WanSettings | None:
        known = self._settings
        too_old = newer_than_s is not None and time.monotonic() - self._read_at > newer_than_s
        return None if known is None or too_old or known.token == instead_of else known

    def proxy_of(self, url: str, origin: str) -> str | None:
        """Give the proxy for an address; the whole environment is searched for it, so once an origin."""
        if origin not in self._proxies:
            self._proxies[origin] = proxy_of(url)
        return self._proxies[origin]

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session: no cookies, no credentials of its own, nothing taken from a ``.netrc``."""
        if self._session is None:
            self._session = _new_session()
        return self._session

    async def close(self) -> None:
        """Close the session; a later user opens another."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _new_session() -> aiohttp.ClientSession:
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=100, ssl=_trusting(bundle) if bundle else True),
        headers=dict(HEADERS),
    )


@functools.lru_cache(maxsize=4)
def _trusting(bundle: str) -> ssl.SSLContext:
    """Trust what ``requests``, and so :class:`WanHook`, is told to trust; a file or a folder."""
    if os.path.isdir(bundle):
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _SharedClient]] = WeakKeyDictionary()


class WanAsyncHook:
    """Talks to RunComfy's Model API from an event loop; use it as ``async with WanAsyncHook(...) as hook``.

    All hooks of one connection on one event loop share a session, a connection look-up and a rate limiter.
    Methods, results and errors are those of :class:`WanHook`.

    :param wan_conn_id: the connection, default ``wan_default``.
    :param retry: how GETs, cancels and certainly unaccepted submits are repeated.
    """

    def __init__(self, wan_conn_id: str = "wan_default", *, retry: RetryPolicy | None = None) -> None:
        self.wan_conn_id = wan_conn_id
        self.retry = retry or _RETRY
        self._shared: _SharedClient | None = None

    async def __aenter__(self) -> WanAsyncHook:
        """Join the shared session; nothing is looked up or connected yet."""
        clients = _clients.setdefault(asyncio.get_running_loop(), {})
        if self.wan_conn_id not in clients:
            clients[self.wan_conn_id] = _SharedClient(self.wan_conn_id)
        self._shared = clients[self.wan_conn_id]
        self._shared.users += 1
        self._looked_up = False
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Leave the shared session; the last one closes it."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.users -= 1
            if not shared.users:
                await shared.close()

    @property
    def experience(self) -> Experience:
        """What the waits of this connection on this event loop have learned from each other."""
        return self._client().experience

    async def get_settings(self) -> WanSettings:
        """Give the connection's settings."""
        shared = self._client()
        if self._looked_up:
            return await shared.settings()
        settings = await shared.settings(newer_than_s=_SETTINGS_FRESH_FOR_S)
        self._looked_up = True
        return settings

    async def refresh(self, refused: WanSettings) -> bool:
        """Look the connection up again after its token was not taken; tells whether it is another one."""
        return (await self._client().settings(instead_of=refused.token)).token != refused.token

    async def submit(
        self, model_id: str, inputs: Mapping[str, Any], *, retry: bool = True
    ) -> SubmittedRequest:
        """Buy one generation; see :meth:`WanHook.submit`."""
        call = calls.submit_call(model_id, inputs)

        async def once() -> SubmittedRequest:
            return calls.read_submit(await self._send(call, what=f"submit to model {model_id}"), model_id)

        return await self._repeat(once, self.retry if retry else ONCE)

    async def get_status(self, request_id: str, *, retry: bool = True) -> RequestStatus:
        """Ask where a request stands; see :meth:`WanHook.get_status`."""
        call = calls.status_call(request_id)
        return await self._get(call, "status", request_id, lambda r: calls.read_status(r, request_id), retry)

    async def get_result(self, request_id: str, *, retry: bool = True) -> RequestResult:
        """Ask how a request ended; see :meth:`WanHook.get_result`."""
        call = calls.result_call(request_id)
        return await self._get(call, "result", request_id, lambda r: calls.read_result(r, request_id), retry)

    async def cancel(self, request_id: str, *, retry: bool = True) -> CancelOutcome:
        """Cancel a request that is still queued; see :meth:`WanHook.cancel`."""
        call = calls.cancel_call(request_id)
        return await self._get(call, "cancel", request_id, lambda r: calls.read_cancel(r, request_id), retry)

    async def get_model(self, model_id: str) -> ModelInfo:
        """Ask for a model's name, price and input schema; see :meth:`WanHook.get_model`."""
        return await self._get(calls.model_call(model_id), "model", None, calls.read_model, True)

    async def get_balance(self) -> Balance:
        """Ask for the account's balance; see :meth:`WanHook.get_balance`."""
        return await self._get(calls.balance_call(), "balance", None, calls.read_balance, True)

    async def test_connection(self) -> tuple[bool, str]:
        """Try the token for free; see :meth:`WanHook.test_connection`."""
        try:
            settings = await self.get_settings()
        except WanError as error:
            return False, str(error)
        try:
            await self.get_status(TEST_REQUEST_ID)
        except WanError as error:
            return verdict_on_test(error, settings)
        return verdict_on_test(None, settings)

    async def _get(
        self, call: Call, what: str, request_id: str | None, read: Callable[[Reply], _T], retry: bool
    ) -> _T:
        async def once() -> _T:
            return read(await self._send(call, what=what, request_id=request_id))

        settings = await self.get_settings()
        try:
            return await self._repeat(once, self.retry if retry else ONCE)
        except WanAuthError:
            if not await self.refresh(settings):
                raise
            return await self._repeat(once, self.retry if retry else ONCE)

    @staticmethod
    async def _repeat(once: Callable[[], Awaitable[_T]], policy: RetryPolicy) -> _T:
        attempts = Attempts(policy)
        while True:
            try:
                return await once()
            except WanTransientError as error:
                await asyncio.sleep(attempts.delay_after(error))

    def _client(self) -> _SharedClient:
        if self._shared is None:
            raise RuntimeError("WanAsyncHook is used outside of `async with`")
        return self._shared

    async def _send(self, call: Call, *, what: str, request_id: str | None = None) -> Reply:
        """Send one call once."""
        settings = await self.get_settings()
        if (pause_s := pacer_of(settings).reserve()) > 0:
            await asyncio.sleep(pause_s)
        if not is_submit(call):
            async with self._client().calls_at_once:
                return await self._exchange(self._client().session, call, settings, what, request_id)
        # A kept connection that the server closed while it was idle looks just like a lost answer.
        async with _new_session() as session:
            return await self._exchange(session, call, settings, what, request_id)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        call: Call,
        settings: WanSettings,
        what: str,
        request_id: str | None,
    ) -> Reply:
        url = url_of(call, settings)
        connect_s = min(web.CONNECT_TIMEOUT_S, settings.timeout_s)
        failure: Exception
        try:
            async with session.request(
                call.method,
                url,
                params=call.query or None,
                json=json_body(call),
                headers={"Authorization": f"Bearer {settings.token}"},
                proxy=self._client().proxy_of(url, url.removesuffix(call.path)),
                timeout=aiohttp.ClientTimeout(total=settings.timeout_s + connect_s, sock_connect=connect_s),
                allow_redirects=False,
            ) as response:
                body = await _body_of(response)
                return Reply(response.status, response.headers, body, received_at=datetime.now(UTC))
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            failure = error
        # Outside of the except block: the original would hang on to the new error, token and all.
        raise error_of_no_reply(
            _kind_of(failure), what=what, request_id=request_id, submit=is_submit(call)
        ) from _without_token(failure)


def _without_token(error: Exception) -> Exception:
    """Give an error whose ``repr`` does not show the headers of the request, as ``aiohttp``'s does."""
    if isinstance(error, aiohttp.ClientResponseError):
        return aiohttp.ClientError(f"{type(error).__name__}: {error.status}, {error.message}")
    return error


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {MAX_REPLY_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _kind_of(error: Exception) -> NoReplyKind:
    # A proxy that refuses the tunnel, a name, a port or a certificate that is wrong: all before anything is sent.
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError | aiohttp.InvalidURL):
        return "connect"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "connect"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "reset" if isinstance(error, aiohttp.ClientConnectionError | OSError) else "other"
