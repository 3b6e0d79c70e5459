# SPDX-License-Identifier: Apache-2.0
"""It is known whether any byte of a request left this machine: "nothing was bought" depends on it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import requests

from airflow_provider_wan.http import transport as web
from tests.raw_servers import Proxy, RawServer, certificate, closed_port, read_request, reply, reset


def exchange(url: str, *, send_by: float | None = None, read_timeout_s: float = 20) -> tuple[bool, str]:
    """Send a POST; return whether it was sent, and how it ended."""
    with web.track_exchange(send_by=send_by) as seen:
        try:
            with web.bounded_session() as session:
                ended = str(session.post(url, json={"a": 1}, timeout=(20, read_timeout_s)).status_code)
        except requests.RequestException as error:
            ended = type(error).__name__
    return seen.sent, ended


def after_the_request(sock: socket.socket) -> None:
    read_request(sock)
    reset(sock)


def after_half_an_answer(sock: socket.socket) -> None:
    read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def not_at_all(sock: socket.socket) -> None:
    read_request(sock)
    sock.recv(1)


def garbage(sock: socket.socket) -> None:
    read_request(sock)
    sock.sendall(b"\x15\x03\x01\x00\x02\x02(")


def not_tls(sock: socket.socket) -> None:
    sock.recv(100)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "tls", "ended"),
    [
        (after_the_request, False, "ConnectionError"),
        (after_the_request, True, "ConnectionError"),
        (after_half_an_answer, False, "ChunkedEncodingError"),
        (not_at_all, False, "ReadTimeout"),
        (not_at_all, True, "ReadTimeout"),
        (garbage, False, "ConnectionError"),
        (garbage, True, "ConnectionError"),
    ],
    ids=["reset", "reset in TLS", "cut", "silence", "silence in TLS", "garbage", "garbage in TLS"],
)
def test_sent_request_counts_as_sent(
    answer: Callable[[socket.socket], None], tls: bool, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    with RawServer(answer, tls=tls) as server:
        assert exchange(server.url, read_timeout_s=0.5 if ended == "ReadTimeout" else 20) == (True, ended)


def test_request_with_an_answer_counts_as_sent() -> None:
    with RawServer(lambda sock: sock.sendall(reply(status="503 Out")) if read_request(sock) else None) as server:
        assert exchange(server.url) == (True, "503")


@pytest.mark.parametrize(
    ("where", "ended"),
    [
        (lambda: nullcontext(f"http://127.0.0.1:{closed_port()}"), "ConnectionError"),
        (lambda: nullcontext("https://no-such-host.invalid"), "ConnectionError"),
        (lambda: nullcontext("http://a..b"), "ConnectionError"),
    ],
    ids=["refused", "no such name", "no name at all"],
)
def test_without_a_connection_nothing_was_sent(where: Callable[[], AbstractContextManager[str]], ended: str) -> None:
    with where() as url:
        sent, how = exchange(url)
    assert not sent
    assert how in (ended, "InvalidURL")


def test_a_wrong_certificate_stops_before_anything_is_sent() -> None:
    got: list[bytes] = []
    with RawServer(lambda sock: got.append(sock.recv(100)), tls=True) as server:
        assert exchange(server.url) == (False, "SSLError")
    assert got in ([], [b""])


def test_server_without_tls_receives_nothing() -> None:
    with RawServer(not_tls) as server:
        assert exchange(f"https://127.0.0.1:{server.port}") == (False, "SSLError")


@pytest.mark.parametrize("answer", [reply(b"no", "403 Forbidden"), reply(b"", "407 Proxy Authentication"), b""])
def test_proxy_that_refuses_the_tunnel_receives_nothing(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(refuse=answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        sent, ended = exchange("https://model-api.runcomfy.net/v1/models/a")
    assert not sent
    assert ended in ("ProxyError", "ConnectionError")
    assert [head.split()[0] for head in proxy.heads] == ["CONNECT"]
    assert "/v1/models" not in proxy.heads[0]


def test_unreachable_proxy_receives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    assert exchange("https://model-api.runcomfy.net") == (False, "ProxyError")


def test_a_request_through_a_tunnel_counts_as_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    with RawServer(after_the_request, tls=True) as server, Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert exchange(server.url)[0]


@pytest.mark.parametrize("tls", [False, True])
def test_request_after_its_deadline_is_not_sent(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    got: list[bytes] = []
    with RawServer(lambda sock: got.append(sock.recv(100)), tls=tls) as server:
        assert exchange(server.url, send_by=time.monotonic() - 1) == (False, "ConnectionError")
    assert got in ([], [b""])


def test_request_before_its_deadline_is_sent() -> None:
    with RawServer(lambda sock: sock.sendall(reply()) if read_request(sock) else None) as server:
        assert exchange(server.url, send_by=time.monotonic() + 60) == (True, "200")
