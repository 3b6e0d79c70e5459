# SPDX-License-Identifier: Apache-2.0
"""The rules that both hooks share: operations, addresses, pacing, retries, proxies, and the meaning of failures."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import tenacity

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanError,
    WanNotFoundError,
    WanRefusedError,
    WanTransientError,
)
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.http.transport import check_proxy, reason_of
from airflow_provider_wan.model_api.faults import RetryPolicy, error_of_no_reply
from airflow_provider_wan.model_api.values import Call, Reply

#: A longer answer than this is not one of the API's.
MAX_REPLY_BYTES = 8 * 1024 * 1024
#: A request id that cannot exist; asking for it costs nothing and shows whether the token works.
TEST_REQUEST_ID = "connection-test-00000000"
ONCE = RetryPolicy(tries=1)
MODELS_PER_PAGE = 100
#: Headers of every call; the token comes from an auth object of its own.
HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "airflow-provider-wan",
}


class Pacer:
    """Spreads calls evenly so that no more than a given number a second are made.

    :param per_second: the most calls a second; None: no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self._gap_s = 1.0 / per_second if per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Take the next place; return the seconds to wait until it comes."""
        if not self._gap_s:
            return 0.0
        with self._lock:
            now = time.monotonic()
            place = max(now, self._next)
            self._next = place + self._gap_s
            return place - now


_UNLIMITED = Pacer(None)
_pacers: dict[tuple[str, float], Pacer] = {}
_pacers_lock = threading.Lock()


def pacer_of(settings: WanSettings) -> Pacer:
    """Return the one pacer of a connection in this process, shared by both hooks, all threads and loops."""
    if settings.requests_per_second is None:
        return _UNLIMITED
    with _pacers_lock:
        key = (settings.conn_id, settings.requests_per_second)
        return _pacers.setdefault(key, Pacer(settings.requests_per_second))


def retry_rules(policy: RetryPolicy) -> dict[str, Any]:
    """Return the arguments of tenacity's ``Retrying`` and ``AsyncRetrying`` for a policy.

    A wait beyond the policy's budget, such as a long ``Retry-After``, ends the retries immediately.
    """

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        if not isinstance(error, WanError):
            return math.inf
        spent_s = state.seconds_since_start or 0.0
        delay_s = policy.delay_s(state.attempt_number, error, rnd=random.random(), spent_s=spent_s)
        return math.inf if delay_s is None else delay_s

    return {
        "retry": tenacity.retry_if_exception_type(WanTransientError),
        "wait": wait_s,
        "stop": lambda state: state.upcoming_sleep == math.inf,
        "reraise": True,
    }


def origin_of(host: str, settings: WanSettings) -> str:
    """Return where calls to one of the API's two hosts go: from the connection, never from an answer of the API."""
    return settings.account_origin if host == "account" else settings.api_origin


def _peer_of(call: Call[Any], settings: WanSettings) -> str:
    # An origin is a scheme and a host.
    return f"connection {settings.conn_id!r} (host {origin_of(call.host, settings).partition('://')[2]})"


def reply_of(call: Call[Any], settings: WanSettings, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
    """Return an answer, from which the token is removed where the server repeats it."""
    peer = _peer_of(call, settings)
    return Reply(status, headers, body, received_at=datetime.now(UTC), peer=peer, secret=settings.token)


def error_of_failure(failure: Exception, call: Call[Any], settings: WanSettings, *, sent: bool) -> WanError:
    """Return the error to raise for an exchange that gave no answer.

    Raise it outside of the ``except`` block: the original exception holds the request with its token, and would stay
    attached to the new one. A copy of its text goes along as the cause.

    :param sent: whether any byte of the request may have left this machine.
    """
    error = error_of_no_reply(
        reason_of(failure),
        sent=sent,
        what=call.what,
        request_id=call.request_id,
        submit=call.is_submit,
        peer=_peer_of(call, settings),
    )
    error.__cause__ = OSError(f"{type(failure).__name__}: {failure}".replace(settings.token, "***"))
    return error


def proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for an address, by the rules of ``requests``.

    :raises WanInputError: it is not an HTTP proxy.
    """
    from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    return check_proxy(str(prepend_scheme_if_needed(proxy, "http"))) if proxy else None  # type: ignore[no-untyped-call]


def verdict_on_test(error: WanError | None, settings: WanSettings) -> tuple[bool, str]:
    """Return the outcome of the test call: whether the connection works, and a message."""
    host = urlsplit(settings.api_origin).netloc
    if isinstance(error, WanRefusedError) and (isinstance(error, WanNotFoundError) or error.code == 403001):
        error = None  # no such request, or not of this user: the token was accepted
    if error is None:
        return True, f"{host} accepts this token. Nothing was bought."
    if isinstance(error, WanAuthError):
        return False, (
            f"{host} does not accept the token of connection {settings.conn_id!r}: it is wrong, expired or revoked."
        )
    return False, f"{host} gave no usable answer: {error}"
