# SPDX-License-Identifier: Apache-2.0
"""HTTP under ``requests`` with the promises that ``requests`` itself does not make.

Everything synchronous that this provider sends goes through a session made here, because of five facts:

* A read timeout in ``requests`` bounds one receive, not the wait: a server that drips a header byte a second
  holds a worker for ever, and so does one that drips its TLS handshake, its answer to ``CONNECT``, or the head
  of a chunk. Here the connect timeout bounds the whole handshake, the read timeout the whole head of the
  answer, and :func:`read_body` the whole body.
* The connect timeout in ``urllib3`` bounds the sending as well: 16 MiB that don't leave within it fail. Here it
  bounds each piece.
* Whether a request left this machine cannot be told from the exception (a TLS error comes before or after).
  Here :func:`watch_exchange` knows, which is what makes "nothing was bought" a fact.
* A name can resolve to a private address only when it is connected to. Here the address of the opened
  connection is checked before a byte is sent.
* The library retries and redirects by itself in some cases. Here it never does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ReadTimeoutError

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError

CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 64 * 1024
_SEND_BYTES = 256 * 1024
_HEAD_TOO_LATE = "the head of the answer did not arrive whole in time"


class PrivateAddressError(OSError):
    """The host is, or resolves to, an address that is not on the public internet."""


class SentTooLateError(OSError):
    """The moment until which this request was allowed to leave has passed; it was not sent."""


@dataclass
class Exchange:
    """What is known of one HTTP exchange, whatever exception it ended with."""

    sent: bool = False
    send_by: float | None = None
    ends_by: float | None = None


_exchange: ContextVar[Exchange | None] = ContextVar("wan_exchange", default=None)


@contextlib.contextmanager
def watch_exchange(*, send_within_s: float | None = None, ends_by: float | None = None) -> Iterator[Exchange]:
    """Tell afterwards whether any byte of the request left this machine.

    :param send_within_s: refuse to send at all later than this (seconds from now): a process that was
        stopped between its claim and its POST must not buy when it wakes up.
    :param ends_by: ``time.monotonic()`` by which the head of the answer must be there.
    """
    now = time.monotonic()
    seen = Exchange(send_by=None if send_within_s is None else now + send_within_s, ends_by=ends_by)
    token = _exchange.set(seen)
    try:
        yield seen
    finally:
        _exchange.reset(token)


class _Watchdog:
    """Cuts a connection at a moment, whatever another thread is waiting for on it; the moment can be moved on.

    :param sock: the connection; None: nothing is cut, and only :attr:`fired` tells.
    :param at: ``time.monotonic()`` of the cut.
    """

    def __init__(self, sock: Any, at: float) -> None:
        self._sock = sock
        self._changed = threading.Condition()
        self._over = False
        self.at = at
        self.fired = False

    def __enter__(self) -> _Watchdog:
        threading.Thread(target=self._watch, name="wan-watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                left_s = self.at - time.monotonic()
                if left_s <= 0:
                    self.fired = True
                    _cut(self._sock)
                    return
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))


class _BoundedConnection:
    """Mixed into urllib3's connections: see the module's facts."""

    refuse_private = False
    _connecting = False
    _handshake: contextlib.ExitStack | None = None
    _handshake_dog: _Watchdog | None = None

    def connect(self) -> None:
        self._connecting = True
        try:
            with contextlib.ExitStack() as self._handshake:
                super().connect()  # type: ignore[misc]
        except Exception as error:
            if self._handshake_dog is not None and self._handshake_dog.fired:
                raise ConnectTimeoutError(self, "TLS or the proxy's answer took too long") from error
            raise
        finally:
            self._connecting = False
            self._handshake = self._handshake_dog = None

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        # With a proxy the peer is the proxy, and it is the proxy that resolves the name.
        if self.refuse_private and getattr(self, "proxy", None) is None:
            address = sock.getpeername()[0]
            if not is_public_address(address):
                sock.close()
                raise PrivateAddressError(f"it resolves to {address}, which is not a public address")
        self._bound_handshake(sock)
        return sock

    def _bound_handshake(self, sock: socket.socket) -> None:
        """Give the proxy's answer and TLS, which come next, the connect timeout as a whole."""
        limit_s: Any = self.timeout  # type: ignore[attr-defined]  # urllib3 has put the connect timeout there
        comes_next = isinstance(self, HTTPSConnection) or getattr(self, "_tunnel_host", None)
        if self._handshake is None or not comes_next or not isinstance(limit_s, int | float):
            return
        # A duplicate, because TLS takes the socket's descriptor away from it.
        twin = self._handshake.enter_context(sock.dup())
        self._handshake_dog = self._handshake.enter_context(_Watchdog(twin, time.monotonic() + limit_s))

    def send(self, data: Any) -> None:
        if getattr(self, "sock", None) is None:
            self.connect()
        seen = _exchange.get()
        if seen is not None and not self._connecting:
            if not seen.sent and seen.send_by is not None and time.monotonic() > seen.send_by:
                raise SentTooLateError("too much time has passed since this request was prepared")
            seen.sent = True
        if not isinstance(data, bytes) or len(data) <= _SEND_BYTES:
            super().send(data)  # type: ignore[misc]
            return
        view = memoryview(data)
        for start in range(0, len(data), _SEND_BYTES):
            super().send(view[start : start + _SEND_BYTES])  # type: ignore[misc]

    def getresponse(self) -> Any:
        sock: Any = self.sock  # type: ignore[attr-defined]
        limit_s: Any = self.timeout  # type: ignore[attr-defined]  # urllib3 has put the read timeout there
        now = time.monotonic()
        ends = [now + limit_s] if isinstance(limit_s, int | float) else []
        seen = _exchange.get()
        if seen is not None and seen.ends_by is not None:
            ends.append(seen.ends_by)
        if not ends:
            return super().getresponse()  # type: ignore[misc]
        with _Watchdog(sock, min(ends)) as dog:
            try:
                response = super().getresponse()  # type: ignore[misc]
            except Exception as error:
                if dog.fired:
                    raise TimeoutError(_HEAD_TOO_LATE) from error
                raise
        if dog.fired:  # a head that was cut looks like one that is whole
            raise TimeoutError(_HEAD_TOO_LATE)
        response.wan_socket = sock  # for the watchdog over its body
        return response


def _cut(sock: Any) -> None:
    """Wake a thread that is blocked in a receive; past TLS, whose own shutdown is not thread-safe."""
    while sock is not None and not isinstance(sock, socket.socket):
        sock = getattr(sock, "socket", None)  # TLS to a proxy has TLS to the host inside
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
        """Make a proxy's pool manager build bounded connections as well.

        :raises WanInputError: it is not an HTTP proxy.
        """
        return self._use_bounded_pools(super().proxy_manager_for(check_proxy(str(proxy)), **kwargs))

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; whatever goes wrong is a ``requests.RequestException``."""
        try:
            return super().send(request, *args, **kwargs)
        except (
            HTTPError,
            UnicodeError,
        ) as error:  # some of urllib3's get through, as for a host without a name
            raise requests.ConnectionError(str(error), request=request) from error


def check_proxy(proxy: str) -> str:
    """Check that a proxy of the environment is one that can be gone through.

    :raises WanInputError: it is a SOCKS proxy, or another kind.
    """
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise WanInputError(
            f"The environment names a {urlsplit(proxy).scheme or 'nameless'} proxy. Only HTTP proxies are supported: "
            "set HTTPS_PROXY and HTTP_PROXY to one, or list the host in NO_PROXY. Nothing was sent."
        )
    return proxy


class _NoAuth(requests.auth.AuthBase):
    """Keeps ``requests`` from taking credentials out of a ``.netrc``."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _Session(requests.Session):
    def get_redirect_target(self, resp: Any) -> str | None:
        """Never look where a redirect leads: ``requests`` does even when it is not to follow it, and may choke."""
        return None


def bounded_session(*, refuse_private: bool = False, pool_size: int = 10) -> requests.Session:
    """Give a session that sends no credentials, keeps no cookies, follows nothing and honours the proxies.

    The proxies are those of the environment, as ``requests`` reads them.

    :param refuse_private: as in :class:`BoundedAdapter`.
    :param pool_size: connections kept per host.
    """
    session = _Session()
    session.auth = _NoAuth()
    session.cookies.set_policy(_NoCookies())
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(refuse_private=refuse_private, pool_size=pool_size))
    return session


class _NoCookies(requests.cookies.cookielib.DefaultCookiePolicy):  # type: ignore[name-defined]
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


def iter_body(
    response: requests.Response, *, deadline: float | None = None, stall_s: float | None = None
) -> Iterator[bytes]:
    """Yield what arrives as it arrives, so that a drip cannot hide inside one long read.

    :param deadline: ``time.monotonic()`` after which ``requests.ReadTimeout`` is raised; None for no bound.
    :param stall_s: the most that one piece may take, in seconds; None for no bound but the read timeout, which
        is none for a server that drips what is not content (heads of chunks, trailers).
    """
    end = math.inf if deadline is None else deadline
    pause_s = math.inf if stall_s is None else stall_s
    sock = getattr(response.raw, "wan_socket", None)
    with _Watchdog(sock, min(end, time.monotonic() + pause_s)) as dog:
        while True:
            piece = _read_piece(response, dog)
            # A body without a length that was cut looks like one that is whole.
            if dog.fired or time.monotonic() > end:
                raise requests.exceptions.ReadTimeout("the answer did not arrive whole in time")
            if not piece:
                return
            yield piece
            dog.at = min(end, time.monotonic() + pause_s)


def _read_piece(response: requests.Response, dog: _Watchdog) -> bytes:
    try:
        piece: bytes = response.raw.read1(_PIECE_BYTES, decode_content=True)
        return piece
    except (ReadTimeoutError, TimeoutError) as error:
        raise requests.exceptions.ReadTimeout("the answer did not arrive whole in time") from error
    except Exception as error:  # urllib3's and http.client's families have no common base but this
        if dog.fired:
            return b""
        raise requests.exceptions.ChunkedEncodingError(str(error)) from error


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


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public_address(address: str) -> bool:
    """Tell whether an IP address is one that anybody on the internet could mean.

    IPv6 has several ways to say an IPv4 address (mapped, 6to4, Teredo, NAT64): that one counts then.

    :raises ValueError: it is not an IP address.
    """
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inside = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = inside or ip
    return ip.is_global and not ip.is_multicast


def refuse_private_literal(url: str, *, what: str) -> None:
    """Refuse an address that names a private host outright, before a proxy could be asked for it.

    :raises WanDownloadError: the host is ``localhost`` or a non-public IP address, in any spelling that a
        resolver takes (``127.1``, ``0x7f000001``, ``2130706433``); a retry cannot help.
    """
    host = unicodedata.normalize("NFKC", urlsplit(url).hostname or "").replace("\u3002", ".")
    host = host.rstrip(".").lower()
    private = host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    with contextlib.suppress(ValueError):
        private = private or not is_public_address(_old_ipv4(host) or host)
    if private:
        raise WanDownloadError(
            f"{what}: {host} is not a public address, and fetching it is refused. If it is meant "
            'so (a sandbox, an internal store), set "allow_private_images": true in the connection.',
            retry_helps=False,
        )


def _old_ipv4(host: str) -> str | None:
    """Read the spellings of an IPv4 address that only ``inet_aton`` knows."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host)) if " " not in host else None
    except (OSError, UnicodeError):
        return None
