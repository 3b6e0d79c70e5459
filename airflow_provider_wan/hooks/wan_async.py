# SPDX-License-Identifier: Apache-2.0
"""The Model API over ``aiohttp``, for triggers: one session for each connection and event loop, shared by all.

A session each would cost a thousand triggers a thousand TLS contexts and connection look-ups, which Airflow
answers one after another.
"""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import aiohttp
import tenacity
from airflow.providers.common.compat.connection import get_async_connection
from yarl import URL

from airflow_provider_wan.exceptions import WanAuthError, WanError
from airflow_provider_wan.hooks import common
from airflow_provider_wan.hooks.common import pacer_of
from airflow_provider_wan.hooks.connection import WanSettings, read_settings
from airflow_provider_wan.http import transport
from airflow_provider_wan.model_api import calls
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.model_api.schema import ModelInfo
from airflow_provider_wan.model_api.values import Balance, Call, CancelOutcome, RequestResult, RequestStatus

_T = TypeVar("_T")
#: A trigger that starts later than this after the last look-up reads the connection again, in seconds.
_SETTINGS_FRESH_FOR_S = 30.0
#: Thousands of triggers that start together would otherwise all begin a call before any other task runs.
_CALLS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class _Route:
    """The arguments of every call to one host: made once, since thousands of waits make a thousand calls a second."""

    settings: WanSettings
    origin: URL
    headers: Mapping[str, str]
    proxy: str | None
    timeout: aiohttp.ClientTimeout

    @classmethod
    def of(cls, host: str, settings: WanSettings) -> _Route:
        origin = common.origin_of(host, settings)
        connect_s = min(transport.CONNECT_TIMEOUT_S, settings.timeout_s)
        return cls(
            settings,
            URL(origin),
            {"Authorization": f"Bearer {settings.token}"},
            common.proxy_of(origin),
            aiohttp.ClientTimeout(total=settings.timeout_s + connect_s, sock_connect=connect_s),
        )


class _SharedClient:
    """One connection's settings and HTTP session on one event loop."""

    def __init__(self, wan_conn_id: str) -> None:
        self._conn_id = wan_conn_id
        self._lock = asyncio.Lock()
        self._settings: WanSettings | None = None
        self._read_at = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._routes: dict[str, _Route] = {}
        self.calls_at_once = asyncio.Semaphore(_CALLS_AT_ONCE)
        self.users = 0

    async def settings(self, *, instead_of: str | None = None, newer_than_s: float | None = None) -> WanSettings:
        """Return the settings, read once for all callers at the same time.

        :param instead_of: a token that the API refused: read again, unless another caller just has.
        :param newer_than_s: read again if the last reading is older, in seconds.
        """
        known = self._known(instead_of, newer_than_s)
        if known is not None:
            return known
        async with self._lock:
            known = self._known(instead_of, newer_than_s)
            if known is None:
                known = read_settings(await get_async_connection(self._conn_id))
                self._settings, self._read_at = known, time.monotonic()
                self._routes.clear()
            return known

    def _known(self, instead_of: str | None, newer_than_s: float | None) -> WanSettings | None:
        known = self._settings
        too_old = newer_than_s is not None and time.monotonic() - self._read_at > newer_than_s
        return None if known is None or too_old or known.token == instead_of else known

    def route_to(self, host: str, settings: WanSettings) -> _Route:
        """Return how calls reach a host, for the settings that were read last."""
        route = self._routes.get(host)
        if route is None or route.settings is not settings:
            route = self._routes[host] = _Route.of(host, settings)
        return route

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
        headers=dict(common.HEADERS),
    )


@functools.lru_cache(maxsize=4)
def _trusting(bundle: str) -> ssl.SSLContext:
    """Return a context that trusts the file or folder that ``requests``, and so :class:`WanHook`, trusts."""
    if os.path.isdir(bundle):
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _SharedClient]] = WeakKeyDictionary()


class WanAsyncHook:
    """Talks to RunComfy's Model API from an event loop; use it as ``async with WanAsyncHook(...) as hook``.

    All hooks of one connection on one event loop share a session, a connection look-up and a rate limiter.
    Methods, results and errors are those of :class:`WanHook`, but for ``submit``: a purchase needs a claim, which is
    made in a worker.

    :param wan_conn_id: the connection, default ``wan_default``.
    :param retry: how calls are retried.
    """

    def __init__(self, wan_conn_id: str = "wan_default", *, retry: RetryPolicy | None = None) -> None:
        self.wan_conn_id = wan_conn_id
        self.retry = retry or RetryPolicy()
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

    async def get_settings(self) -> WanSettings:
        """Return the connection's settings."""
        shared = self._client()
        if self._looked_up:
            return await shared.settings()
        settings = await shared.settings(newer_than_s=_SETTINGS_FRESH_FOR_S)
        self._looked_up = True
        return settings

    async def refresh(self, refused: WanSettings) -> bool:
        """Read the connection again after its token was refused; return whether the token has changed."""
        return (await self._client().settings(instead_of=refused.token)).token != refused.token

    async def get_status(self, request_id: str, *, retry: bool = True) -> RequestStatus:
        """Ask for the status of a request; see :meth:`WanHook.get_status`."""
        return await self._read(calls.status_call(request_id), retry)

    async def get_result(self, request_id: str, *, retry: bool = True) -> RequestResult:
        """Ask for the result of a request; see :meth:`WanHook.get_result`."""
        return await self._read(calls.result_call(request_id), retry)

    async def cancel(self, request_id: str, *, retry: bool = True) -> CancelOutcome:
        """Cancel a request that is still queued; see :meth:`WanHook.cancel`."""
        return await self._read(calls.cancel_call(request_id), retry)

    async def get_model(self, model_id: str) -> ModelInfo:
        """Ask for a model's name, price and input schema; see :meth:`WanHook.get_model`."""
        return await self._read(calls.model_call(model_id))

    async def get_balance(self) -> Balance:
        """Ask for the account's balance; see :meth:`WanHook.get_balance`."""
        return await self._read(calls.balance_call())

    async def test_connection(self) -> tuple[bool, str]:
        """Test the token for free; see :meth:`WanHook.test_connection`."""
        try:
            settings = await self.get_settings()
        except WanError as error:
            return False, str(error)
        try:
            await self.get_status(common.TEST_REQUEST_ID)
        except WanError as error:
            return common.verdict_on_test(error, settings)
        return common.verdict_on_test(None, settings)

    async def _read(self, call: Call[_T], retry: bool = True) -> _T:
        """Make a call; repeat it with a refreshed token if the cached one is refused."""
        make = self._call if retry else self._call_once
        settings = await self.get_settings()
        try:
            return await make(call)
        except WanAuthError:
            if not await self.refresh(settings):
                raise
            return await make(call)

    async def _call(self, call: Call[_T]) -> _T:
        retrying = tenacity.AsyncRetrying(sleep=asyncio.sleep, **common.retry_rules(self.retry))
        return await retrying(self._call_once, call)

    def _client(self) -> _SharedClient:
        if self._shared is None:
            raise RuntimeError("WanAsyncHook is used outside of `async with`")
        return self._shared

    async def _call_once(self, call: Call[_T]) -> _T:
        settings = await self.get_settings()
        if (pause_s := pacer_of(settings).reserve()) > 0:
            await asyncio.sleep(pause_s)
        client = self._client()
        try:
            route = client.route_to(call.host, settings)
            async with (
                client.calls_at_once,
                client.session.request(
                    call.method,
                    route.origin.with_path(call.path, encoded=True),
                    params=call.query or None,
                    json=call.json,
                    headers=route.headers,
                    proxy=route.proxy,
                    timeout=route.timeout,
                    allow_redirects=False,
                ) as response,
            ):
                body = await _body_of(response)
                reply = common.reply_of(call, settings, response.status, response.headers, body)
        except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
            failure = error
        else:
            return call.read(reply)
        raise common.error_of_failure(failure, call, settings, sent=True)


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    body = b""
    while piece := await response.content.readany():
        body += piece
        if len(body) > common.MAX_REPLY_BYTES:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {common.MAX_REPLY_BYTES} bytes")
    return body
