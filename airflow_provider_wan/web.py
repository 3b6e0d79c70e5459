# SPDX-License-Identifier: Apache-2.0
"""HTTP under ``requests`` with the promises that ``requests`` itself does not make.

Everything synchronous that this provider sends goes through a session made here, because of four facts:

* A read timeout in ``requests`` bounds one receive, not the wait: a server that drips a header byte a second
  holds a worker for ever. Here the read timeout bounds the whole head of the answer, and
  :func:`read_body` bounds the whole body.
* Whether a request left this machine cannot be told from the exception (a TLS error comes before or after).
  Here :func:`watch_exchange` knows, which is what makes "nothing was bought" a fact.
* A name can resolve to a private address only when it is connected to. Here the address of the opened
  connection is checked before a byte is sent.
* The library retries and redirects by itself in some cases. Here it never does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from airflow_provider_wan.exceptions import WanDownloadError

CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 64 * 1024


class PrivateAddressError(OSError):
    """The host is, or resolves to, an address that is not on the public internet."""


class SentTooLateError(OSError):
    """The moment until which this request was allowed to leave has passed; it was not sent."""


@dataclass
class Exchange:
    """What is known of one HTTP exchange, whatever exception it ended with."""

    sent: bool = False
    send_by: float | None = None


_exchange: ContextVar[Exchange | None] = ContextVar("wan_exchange", default=None)


@contextlib.contextmanager
def watch_exchange(*, send_within_s: float | None = None) -> Iterator[Exchange]:
    """Tell afterwards whether any byte of the request left this machine.

    :param send_within_s: refuse to send at all later than this (seconds from now): a process that was
        stopped between its claim and its POST must not buy when it wakes up.
    """
    seen = Exchange(send_by=None if send_within_s is None else time.monotonic() + send_within_s)
    token = _exchange.set(seen)
    try:
        yield seen
    finally:
        _exchange.reset(token)


class _BoundedConnection:
    """Mixed into urllib3's connections: see the module's four facts."""

    refuse_private = False
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._connecting = False

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        # With a proxy the peer is the proxy, and it is the proxy that resolves the name.
        if self.refuse_private and getattr(self, "proxy", None) is None:
            address = sock.getpeername()[0]
            if not is_public_address(address):
                sock.close()
                raise PrivateAddressError(f"it resolves to {address}, which is not a public address")
        return sock

    def send(self, data: Any) -> None:
        if getattr(self, "sock", None) is None:
            self.connect()
        seen = _exchange.get()
        if seen is not None and not self._connecting:
            if not seen.sent and seen.send_by is not None and time.monotonic() > seen.send_by:
                raise SentTooLateError("too much time has passed since this request was prepared")
            seen.sent = True
        super().send(data)  # type: ignore[misc]

    def getresponse(self) -> Any:
        limit_s: Any = self.timeout  # type: ignore[attr-defined]  # urllib3 has put the read timeout there
        if not isinstance(limit_s, int | float):
            return super().getresponse()  # type: ignore[misc]
        watchdog = threading.Timer(limit_s, _cut, [self.sock])  # type: ignore[attr-defined]
        watchdog.daemon = True
        watchdog.start()
        try:
            return super().getresponse()  # type: ignore[misc]
        finally:
            watchdog.cancel()


def _cut(sock: socket.socket | None) -> None:
    """Wake a thread that is blocked in a receive; past TLS, whose own shutdown is not thread-safe."""
    if sock is not None:
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _BoundedHTTP(_BoundedConnection, HTTPConnection):
    pass


class _BoundedHTTPS(_BoundedConnection, HTTPSConnection):
    pass


class _PublicHTTP(_BoundedHTTP):
    refuse_private = True


class _PublicHTTPS(_BoundedHTTPS):
    refuse_private = True


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _BoundedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _BoundedHTTPS


class _PublicHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PublicHTTP


class _PublicHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPS


class BoundedAdapter(HTTPAdapter):
    """Transport of every synchronous call: bounded, watched, without retries of its own.

    :param refuse_private: refuse connections to private, loopback and link-local addresses.
    :param pool_size: connections kept per host.
    """

    def __init__(self, *, refuse_private: bool = False, pool_size: int = 10) -> None:
        self._refuse_private = refuse_private
        super().__init__(pool_connections=pool_size, pool_maxsize=pool_size, max_retries=0)

    def _use_bounded_pools(self, manager: Any) -> Any:
        manager.pool_classes_by_scheme = (
            {"http": _PublicHTTPPool, "https": _PublicHTTPSPool}
            if self._refuse_private
            else {"http": _HTTPPool, "https": _HTTPSPool}
        )
        return manager

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool manager build bounded connections."""
        super().init_poolmanager(*args, **kwargs)
        self._use_bounded_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        """Make a proxy's pool manager build bounded connections as well."""
        return self._use_bounded_pools(super().proxy_manager_for(proxy, **kwargs))


class _NoAuth(requests.auth.AuthBase):
    """Keeps ``requests`` from taking credentials out of a ``.netrc``."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def bounded_session(*, refuse_private: bool = False, pool_size: int = 10) -> requests.Session:
    """Give a session that sends no credentials, keeps no cookies and honours proxies from the environment.

    :param refuse_private: as in :class:`BoundedAdapter`.
    :param pool_size: connections kept per host.
    """
    session = requests.Session()
    session.auth = _NoAuth()
    session.cookies.set_policy(_NoCookies())
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(refuse_private=refuse_private, pool_size=pool_size))
    return session


class _NoCookies(requests.cookies.cookielib.DefaultCookiePolicy):  # type: ignore[name-defined, misc]
    def set_ok(self, cookie: Any, request: Any) -> bool:
        return False


def read_body(response: requests.Response, *, limit_bytes: int, deadline: float) -> bytes:
    """Read a small body whole, within a time and a size.

    :param limit_bytes: more than this is treated as a broken body.
    :param deadline: ``time.monotonic()`` until which all of it must be there.
    """
    pieces: list[bytes] = []
    size = 0
    for piece in iter_body(response, deadline=deadline):
        size += len(piece)
        if size > limit_bytes:
            raise requests.exceptions.ChunkedEncodingError(f"the answer is longer than {limit_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def iter_body(response: requests.Response, *, deadline: float | None = None) -> Iterator[bytes]:
    """Yield what arrives as it arrives, so that a drip cannot hide inside one long read.

    :param deadline: ``time.monotonic()`` after which ``requests.ReadTimeout`` is raised; None for no bound
        here (the caller keeps its own).
    """
    while True:
        try:
            piece = response.raw.read1(_PIECE_BYTES, decode_content=True)
        except (OSError, requests.exceptions.RequestException):
            raise
        except Exception as error:  # urllib3's and http.client's families have no common base but this
            raise requests.exceptions.ChunkedEncodingError(str(error)) from error
        if not piece:
            return
        if deadline is not None and time.monotonic() > deadline:
            raise requests.exceptions.ReadTimeout("the answer did not arrive whole in time")
        yield piece


def caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Tell whether an exception of that kind is anywhere inside, as ``urllib3`` wraps them several times."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        one = left.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        if isinstance(one, kind):
            return True
        seen.add(id(one))
        left += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return False


def is_public_address(address: str) -> bool:
    """Tell whether an IP address is one that anybody on the internet could mean."""
    ip = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not (mapped or ip).is_multicast


def refuse_private_literal(url: str, *, what: str) -> None:
    """Refuse an address that names a private host outright, before a proxy could be asked for it.

    :raises WanDownloadError: the host is ``localhost`` or a non-public IP address; a retry cannot help.
    """
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    private = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    with contextlib.suppress(ValueError):
        private = private or not is_public_address(host)
    if private:
        raise WanDownloadError(
            f"{what}: {host} is not a public address, and fetching it is refused. If it is meant "
            'so (a sandbox, an internal store), set "allow_private_images": true in the connection.',
            retry_helps=False,
        )
