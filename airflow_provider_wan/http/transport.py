# SPDX-License-Identifier: Apache-2.0
"""Sessions of ``requests`` whose exchanges end in time, and whose failures say whether anything was sent.

Every synchronous call of this provider goes through a session made by :func:`bounded_session`, because of six facts:

* A read timeout of ``requests`` bounds one receive, not the wait: a server that sends a byte a second blocks a worker
  forever, and so does one that sends its TLS handshake or its answer to ``CONNECT`` that slowly. Here each receive gets
  the rest of a deadline (:class:`_TimedSocket`).
* The connect timeout of ``urllib3`` bounds sending as well: 16 MiB that do not leave within it fail. Here it bounds
  each 256 KiB.
* An exception does not say whether a request left this machine: a TLS error comes before or after.
  :func:`track_exchange` records it; "nothing was bought" depends on it.
* A name can resolve to a private address at the moment of connecting. Here the address of the open connection is
  checked before a byte is sent.
* The libraries retry and redirect by themselves in some cases. Here they never do.
* ``requests`` reads the environment for each call and, over TLS, the certificates for each connection, which takes
  15 ms of processor time. Here the first is read once for each host, and the second once in a process.

The deadlines, all without a thread:

=============================  =========================================================================
proxy's answer, TLS handshake  the connect timeout, as a whole
head of the answer             the read timeout, as a whole; ``ends_by`` of :func:`track_exchange`
body                           the ``deadline`` and ``stall_s`` given to :func:`iter_body`
=============================  =========================================================================

Unbounded by these: the name look-up, which the operating system bounds (with glibc 5 s a name server and try). Each
address of a name has the connect timeout of its own. A body that is read without :func:`iter_body`, as Google's client
does, has the read timeout for each receive.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ReadTimeoutError
from urllib3.util.ssl_ import create_urllib3_context

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.http.addresses import is_public_address

CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 256 * 1024
_SEND_BYTES = 256 * 1024
_TOO_LATE = "the answer did not arrive whole in time"


class _WithoutQueries(logging.Filter):
    """Cuts the queries of addresses out of log records: urllib3 logs signed links at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_QUERY.sub("?…", arg) if isinstance(arg, str) else arg for arg in record.args)
        return True


_QUERY = re.compile(r"\?[^\s\"']+")
for _name in ("urllib3.connectionpool", "urllib3.connection", "urllib3.util.retry"):
    logging.getLogger(_name).addFilter(_WithoutQueries())


class PrivateAddressError(OSError):
    """The host resolves to an address that is not on the public internet."""


class SentTooLateError(OSError):
    """The time until which this request was allowed to leave has passed; it was not sent."""


@dataclass
class Exchange:
    """The facts about one HTTP exchange, kept even if it ends with an exception.

    :param sent: whether any byte of the request may have left this machine.
    :param send_by: ``time.monotonic()`` after which the request is not sent at all.
    :param ends_by: ``time.monotonic()`` by which the head of the answer must be there.
    """

    sent: bool = False
    send_by: float | None = None
    ends_by: float | None = None


_exchange: ContextVar[Exchange | None] = ContextVar("wan_exchange", default=None)


@contextlib.contextmanager
def track_exchange(*, send_by: float | None = None, ends_by: float | None = None) -> Iterator[Exchange]:
    """Track whether any byte of the request sent in this block left this machine.

    :param send_by: see :class:`Exchange`: a process that was stopped between its claim and its POST must not buy when
        it wakes up.
    :param ends_by: see :class:`Exchange`.
    """
    exchange = Exchange(send_by=send_by, ends_by=ends_by)
    token = _exchange.set(exchange)
    try:
        yield exchange
    finally:
        _exchange.reset(token)


class _Deadline:
    """The end of what a connection does now: one for all the sockets that are put on top of each other."""

    #: ``time.monotonic()``.
    ends = math.inf

    def left_s(self, timeout_s: float | None, ends: float = math.inf) -> float | None:
        """Return the timeout of one operation in seconds, or None if nothing bounds it.

        :param timeout_s: the socket's own timeout.
        :param ends: an earlier end than the deadline.
        :raises TimeoutError: the deadline has passed.
        """
        left_s = min(self.ends, ends) - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(_TOO_LATE)
        left_s = min(left_s, math.inf if timeout_s is None else timeout_s)
        return left_s if left_s < math.inf else None


class _TimedSocket:
    """A socket, with or without TLS, whose every operation gets the rest of a deadline.

    TLS may be put on top of it: ``ssl`` and urllib3's TLS inside TLS use it as any other socket.

    :param sock: the socket; its timeout bounds one operation.
    """

    def __init__(self, sock: Any, deadline: _Deadline) -> None:
        self._sock = sock
        self._timeout_s: float | None = sock.gettimeout()
        self.deadline = deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    @property
    def _io_refs(self) -> int:  # open files of makefile(); urllib3's TLS inside TLS counts its own here
        return int(self._sock._io_refs)

    @_io_refs.setter
    def _io_refs(self, count: int) -> None:
        self._sock._io_refs = count

    def gettimeout(self) -> float | None:
        """Return the timeout of one operation now: ``ssl`` bounds its whole handshake with it."""
        return self.deadline.left_s(self._timeout_s)

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._sock.settimeout(timeout_s)

    def before_operation(self, ends: float = math.inf) -> None:
        self._sock.settimeout(self.deadline.left_s(self._timeout_s, ends))

    def recv(self, *args: Any) -> Any:
        self.before_operation()
        return self._sock.recv(*args)

    def sendall(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _SEND_BYTES):
            piece = view[start : start + _SEND_BYTES]
            ends = math.inf if self._timeout_s is None else time.monotonic() + self._timeout_s
            while piece:
                self.before_operation(ends)
                piece = piece[self._sock.send(piece) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self, self._sock.makefile(mode, buffering=0)))


class _TimedReader(io.RawIOBase):
    """The reading end of a :class:`_TimedSocket`."""

    def __init__(self, sock: _TimedSocket, raw: Any) -> None:
        self._timed = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def readinto(self, buffer: Any) -> int | None:
        self._timed.before_operation()
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _BoundedConnection:
    """Mixed into urllib3's connections: see the module's facts."""

    refuse_private = False
    sock: Any
    timeout: Any  # urllib3 puts the connect timeout there first, and the read timeout once the request is sent
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        self._deadline = _Deadline()
        try:
            super().connect()  # type: ignore[misc]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "TLS or the proxy's answer took too long") from error
        finally:
            self._connecting = False
            self._deadline.ends = math.inf
        if not isinstance(self.sock, _TimedSocket):
            self.sock = _TimedSocket(self.sock, self._deadline)
        self.sock.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)

    def _new_conn(self) -> Any:  # a _TimedSocket
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]
        # With a proxy the peer is the proxy, and it is the proxy that resolves the name.
        if self.refuse_private and getattr(self, "proxy", None) is None:
            address = sock.getpeername()[0]
            if not is_public_address(address):
                sock.close()
                raise PrivateAddressError(f"it resolves to {address}, which is not a public address")
        self._deadline.ends = _end_of(self.timeout)
        return _TimedSocket(sock, self._deadline)

    def _connect_tls_proxy(self, hostname: str, sock: Any) -> Any:  # a _TimedSocket
        return _TimedSocket(super()._connect_tls_proxy(hostname, sock), self._deadline)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if getattr(self, "sock", None) is None:
            self.connect()
        exchange = _exchange.get()
        if exchange is not None and not self._connecting:
            is_late = exchange.send_by is not None and time.monotonic() > exchange.send_by
            if is_late and not exchange.sent:
                raise SentTooLateError("too much time has passed since this request was prepared")
            exchange.sent = True
        super().send(data)  # type: ignore[misc]

    def getresponse(self) -> Any:
        deadline: _Deadline = self.sock.deadline
        exchange = _exchange.get()
        ends_by = exchange.ends_by if exchange is not None and exchange.ends_by is not None else math.inf
        deadline.ends = min(_end_of(self.timeout), ends_by)
        response = super().getresponse()  # type: ignore[misc]
        deadline.ends = math.inf
        response.wan_deadline = deadline  # for its body
        return response


def _end_of(timeout_s: Any) -> float:
    return time.monotonic() + timeout_s if isinstance(timeout_s, int | float) else math.inf


@functools.cache
def _bounded_pools(*, refuse_private: bool) -> dict[str, type]:
    """Return urllib3's pool classes by scheme, with bounded connections."""
    pools: dict[str, type] = {}
    for pool, connection in ((HTTPConnectionPool, HTTPConnection), (HTTPSConnectionPool, HTTPSConnection)):
        of = {"refuse_private": refuse_private}
        bounded = type(f"Bounded{connection.__name__}", (_BoundedConnection, connection), of)
        pools[pool.scheme] = type(f"Bounded{pool.__name__}", (pool,), {"ConnectionCls": bounded})
    return pools


class BoundedAdapter(HTTPAdapter):
    """Transport of every synchronous call: bounded, tracked, without retries of its own.

    :param refuse_private: refuse connections to private, loopback and link-local addresses.
    :param pool_size: connections kept per host.
    """

    def __init__(self, *, refuse_private: bool = False, pool_size: int = 10) -> None:
        self._refuse_private = refuse_private
        super().__init__(pool_connections=pool_size, pool_maxsize=pool_size, max_retries=0)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Return what decides which connections a request may use: those over TLS share a context."""
        host, tls = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": _trusting(verify)} if host["scheme"] == "https" else tls

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the certificates to the context, which has them."""

    def _use_bounded_pools(self, manager: Any) -> Any:
        manager.pool_classes_by_scheme = _bounded_pools(refuse_private=self._refuse_private)
        return manager

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pool manager build bounded connections."""
        super().init_poolmanager(*args, **kwargs)
        self._use_bounded_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        """Make a proxy's pool manager build bounded connections as well.

        :raises WanInputError: it is not an HTTP proxy.
        """
        check_proxy(str(proxy))
        if proxy.lower().startswith("https:"):
            kwargs["proxy_ssl_context"] = _trusting(environment_of(proxy)[1])
        return self._use_bounded_pools(super().proxy_manager_for(proxy, **kwargs))

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request; every failure is a ``requests.RequestException``."""
        try:
            return super().send(request, *args, **kwargs)
        except (HTTPError, UnicodeError) as error:  # requests lets some through, as for a host without a name
            raise requests.ConnectionError(str(error), request=request) from error


def check_proxy(proxy: str) -> str:
    """Return the proxy of the environment if it is an HTTP proxy.

    :raises WanInputError: it is a SOCKS proxy, or another kind.
    """
    if urlsplit(proxy).scheme not in ("http", "https"):
        raise WanInputError(
            f"The environment names a {urlsplit(proxy).scheme or 'nameless'} proxy. Only HTTP proxies are supported: "
            "set HTTPS_PROXY and HTTP_PROXY to one, or list the host in NO_PROXY. Nothing was sent."
        )
    return proxy


class _NoAuth(requests.auth.AuthBase):
    """Keeps ``requests`` from taking credentials out of a ``.netrc`` or an address."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def environment_of(url: str) -> tuple[dict[str, str], str | bool]:
    """Return the proxies for a URL and the trusted certificates (a file, a folder, or True), as ``requests`` does."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return get_environ_proxies(url, no_proxy=None), bundle or True


@functools.lru_cache(maxsize=4)
def _trusting(verify: str | bool) -> ssl.SSLContext:
    """Return the context of all connections that trust these certificates; see :func:`environment_of`."""
    bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else str(verify)
    context = create_urllib3_context()
    if os.path.isdir(bundle):
        context.load_verify_locations(capath=bundle)
    else:
        context.load_verify_locations(cafile=bundle)
    return context


class _Session(requests.Session):
    _environment_of: Callable[[str], tuple[dict[str, str], str | bool]]

    def __init__(self, like: requests.Session | None) -> None:
        super().__init__()
        known = like._environment_of if isinstance(like, _Session) else None
        self._environment_of = known or functools.lru_cache(maxsize=64)(environment_of)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Return the settings of one call: those of the environment, read once for each host."""
        proxies, verify = self._environment_of("/".join(str(url).split("/", 3)[:3]))
        return {"proxies": proxies, "stream": stream, "verify": verify, "cert": cert}

    def get_redirect_target(self, resp: Any) -> str | None:
        """Return no target: ``requests`` parses it even when it is not to follow it, and can fail on it."""
        return None


def bounded_session(
    *, refuse_private: bool = False, pool_size: int = 10, like: requests.Session | None = None
) -> requests.Session:
    """Return a session that sends no credentials, keeps no cookies and follows no redirects.

    It uses the proxies of the environment, as ``requests`` reads them.

    :param refuse_private: as in :class:`BoundedAdapter`.
    :param pool_size: connections kept per host.
    :param like: another such session, which has read the environment.
    """
    session = _Session(like)
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

    :param limit_bytes: a longer body counts as broken.
    :param deadline: ``time.monotonic()`` by which all of it must be there.
    """
    pieces: list[bytes] = []
    size = 0
    for piece in iter_body(response, deadline=deadline):
        size += len(piece)
        if size > limit_bytes:
            raise requests.exceptions.ChunkedEncodingError(f"the answer is longer than {limit_bytes} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def iter_body(response: requests.Response, *, deadline: float = math.inf, stall_s: float = math.inf) -> Iterator[bytes]:
    """Yield the body as it arrives.

    :param deadline: ``time.monotonic()`` after which ``requests.ReadTimeout`` is raised; default: none.
    :param stall_s: the most that one piece may take, in seconds; default: only the read timeout for each receive.
    """
    raw: Any = response.raw
    while True:
        raw.wan_deadline.ends = min(deadline, time.monotonic() + stall_s)
        try:
            piece: bytes = raw.read1(_PIECE_BYTES, decode_content=True)
        except (ReadTimeoutError, TimeoutError) as error:
            raise requests.exceptions.ReadTimeout(_TOO_LATE) from error
        except Exception as error:  # the families of urllib3 and http.client have no other common base
            raise requests.exceptions.ChunkedEncodingError(str(error)) from error
        if not piece:
            return
        yield piece


def caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Return whether an exception of that kind is anywhere inside: ``urllib3`` wraps them several times."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        inner = left.pop()
        if not isinstance(inner, BaseException) or id(inner) in seen:
            continue
        if isinstance(inner, kind):
            return True
        seen.add(id(inner))
        left += [inner.__cause__, inner.__context__, getattr(inner, "reason", None), *inner.args]
    return False


def reason_of(error: BaseException) -> str:
    """Return why an exchange failed, in words without any address; for ``requests`` and ``aiohttp`` alike."""
    if caused_by(error, SentTooLateError):
        return "too much time had passed since it was prepared, and it was not sent"
    if caused_by(error, socket.gaierror):
        return "the name of the host was not found"
    if caused_by(error, ConnectionRefusedError):
        return "the connection was refused"
    if caused_by(error, ssl.CertificateError):
        return "the TLS certificate of the host is not trusted"
    if caused_by(error, ssl.SSLError):
        return "TLS failed: does the host speak https on this port?"
    if isinstance(error, requests.ConnectTimeout) or caused_by(error, ConnectTimeoutError):
        return "the connection could not be opened in time"
    if isinstance(error, requests.Timeout) or caused_by(error, TimeoutError):
        return "no whole answer came in time"
    if "Proxy" in type(error).__name__:
        return "the proxy did not connect"
    return "the connection broke before the whole answer was there"
