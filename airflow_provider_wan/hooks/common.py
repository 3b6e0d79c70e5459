# SPDX-License-Identifier: Apache-2.0
"""What the two hooks share, so that no rule stands twice: pacing, repeating, proxies, the test call."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanAuthError, WanError, WanNotFoundError, WanRefusedError
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.http.transport import check_proxy
from airflow_provider_wan.model_api.calls import Call
from airflow_provider_wan.model_api.faults import RetryPolicy

#: A longer answer than this is not one of the API's.
MAX_REPLY_BYTES = 8 * 1024 * 1024
#: A request id that cannot exist; asking for it costs nothing and tells whether the token works.
TEST_REQUEST_ID = "connection-test-00000000"


class Pacer:
    """Spreads calls evenly so that no more than a given number a second leave.

    :param per_second: the most calls a second; None: no limit.
    """

    def __init__(self, per_second: float | None) -> None:
        self._gap_s = 1.0 / per_second if per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Take the next place; gives the seconds to wait until it comes."""
        if not self._gap_s:
            return 0.0
        with self._lock:
            now = time.monotonic()
            place = max(now, self._next)
            self._next = place + self._gap_s
            return place - now


_pacers: dict[tuple[str, float], Pacer] = {}
_pacers_lock = threading.Lock()


def pacer_of(settings: WanSettings) -> Pacer:
    """Give the one pacer of a connection in this process, shared by sync and async, threads and loops."""
    if settings.requests_per_second is None:
        return Pacer(None)
    with _pacers_lock:
        key = (settings.conn_id, settings.requests_per_second)
        return _pacers.setdefault(key, Pacer(settings.requests_per_second))


class Attempts:
    """Counts the tries of one call and says how long to wait before the next.

    :param policy: how often and how long.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._started = time.monotonic()
        self._made = 0

    def delay_after(self, error: WanError) -> float:
        """Give the seconds to wait after a failed try, or raise the error when it was the last."""
        self._made += 1
        spent = time.monotonic() - self._started
        delay = self._policy.delay_s(self._made, error, rnd=random.random(), spent_s=spent)
        if delay is None:
            raise error
        return delay


ONCE = RetryPolicy(tries=1)


def url_of(call: Call, settings: WanSettings) -> str:
    """Build the address of a call from the connection, never from anything that the API answered."""
    origin = settings.account_origin if call.host == "account" else settings.api_origin
    return origin + call.path


#: Headers of every call; the token comes from an auth object of its own.
HEADERS: Mapping[str, str] = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "airflow-provider-wan",
}


def is_submit(call: Call) -> bool:
    """Tell whether this is the call that costs money."""
    return call.method == "POST" and call.path.startswith("/v1/models/")


def proxy_of(url: str) -> str | None:
    """Give the proxy that the environment names for an address, by the rules of ``requests``.

    :raises WanInputError: it is not an HTTP proxy.
    """
    from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

    proxy = select_proxy(url, get_environ_proxies(url, no_proxy=None))
    return check_proxy(str(prepend_scheme_if_needed(proxy, "http"))) if proxy else None  # type: ignore[no-untyped-call]


def verdict_on_test(error: WanError | None, settings: WanSettings) -> tuple[bool, str]:
    """Say what the answer to the test call means; never with the token in it."""
    host = urlsplit(settings.api_origin).netloc
    if error is None or isinstance(error, WanNotFoundError):
        return True, f"{host} accepts this token. Nothing was bought."
    if isinstance(error, WanRefusedError) and error.code == 403001:
        return True, f"{host} accepts this token. Nothing was bought."
    if isinstance(error, WanAuthError):
        return False, f"{host} does not accept this token: it is wrong, expired or revoked."
    return False, f"{host} gave no usable answer: {error}"


def json_body(call: Call) -> dict[str, Any] | None:
    """Give the body of a call."""
    return None if call.json is None else dict(call.json)
