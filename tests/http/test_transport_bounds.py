# SPDX-License-Identifier: Apache-2.0
"""No server blocks a worker, however slowly it sends, on any route."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from airflow_provider_wan.http import transport as web
from tests.raw_servers import (
    Answer,
    Proxy,
    RawServer,
    always,
    certificate,
    closed_port,
    drip,
    read_head,
    read_request,
    reply,
)

SHORT, LONG = (0.5, 0.5), (20, 20)


def get(url: str, timeout: tuple[float, float] = LONG) -> requests.Response:
    with web.bounded_session() as session:
        return session.get(url, timeout=timeout, stream=True, allow_redirects=False)


def dripping(data: bytes, first: bytes = b"") -> RawServer:
    """A server that sends ``first``, and then for ever a byte in less than any timeout of one receive."""

    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(first)
        drip(sock, wire.over, data)

    wire = RawServer(answer)
    return wire


@pytest.mark.parametrize(
    ("first", "data"),
    [
        (b"", b"HTTP/1.1 200 O"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 20),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
    ],
    ids=["status line", "one header", "a header that never ends", "continue for ever"],
)
def test_a_head_that_drips_is_cut(first: bytes, data: bytes) -> None:
    with dripping(data, first) as wire, pytest.raises(requests.ReadTimeout):
        get(wire.url, SHORT)


@pytest.mark.parametrize(
    ("head", "data"),
    [
        (b"Content-Length: 1000000\r\n", b"x"),
        (b"", b"x"),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 100_000),
        (b"Transfer-Encoding: chunked\r\n", b"1;" + b"extension" * 10_000),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n0\r\n" + b"Trailer: y\r\n" * 100_000),
    ],
    ids=["with a length", "without a length", "chunks", "head of a chunk", "trailers"],
)
def test_a_body_that_drips_is_cut(head: bytes, data: bytes) -> None:
    with dripping(data, b"HTTP/1.1 200 OK\r\n" + head + b"\r\n") as wire:
        response = get(wire.url)
        with pytest.raises(requests.ReadTimeout):
            web.read_body(response, limit_bytes=10_000_000, deadline=time.monotonic() + 0.5)


def test_a_body_whose_pieces_take_too_long_is_cut_without_a_deadline_for_all_of_it() -> None:
    with dripping(b"1;" + b"x" * 10_000, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") as wire:
        response = get(wire.url)
        with pytest.raises(requests.ReadTimeout):
            list(web.iter_body(response, stall_s=0.5))


def test_a_body_that_stops_is_cut() -> None:
    with dripping(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf") as wire:
        response = get(wire.url, (20, 2))
        with pytest.raises(requests.ReadTimeout):
            web.read_body(response, limit_bytes=100, deadline=time.monotonic() + 60)


ROUTES = ("plain", "proxy", "tls", "tls through a proxy", "tls through a tls proxy")


@contextlib.contextmanager
def route(name: str, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> Iterator[RawServer]:
    """A server that is reached in one of five ways."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    with RawServer(answer, tls=name.startswith("tls")) as wire, Proxy(tls="tls proxy" in name) as proxy:
        if "proxy" in name:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        yield wire


@pytest.mark.parametrize("way", ROUTES)
def test_an_exchange_in_time_passes_without_a_thread(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(reply(read_request(sock).partition(b"\r\n\r\n")[2]))

    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: (started.append(self.name), start(self))[1])
    data = bytes(range(256)) * 4000
    with route(way, monkeypatch, answer) as wire, web.bounded_session() as session:
        response = session.post(wire.url, data=data, timeout=LONG, stream=True)
        assert web.read_body(response, limit_bytes=len(data), deadline=time.monotonic() + 60) == data
    assert not [name for name in started if "wan" in name]


@pytest.mark.parametrize("part", ["head", "body"])
@pytest.mark.parametrize("way", ROUTES)
def test_an_answer_that_drips_is_cut_on_every_route(way: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(sock: socket.socket) -> None:
        read_head(sock)
        if part == "body":
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        drip(sock, wire.over, b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1000)

    def read(url: str) -> None:
        response = get(url, (20, 0.5) if part == "head" else LONG)
        web.read_body(response, limit_bytes=10_000, deadline=time.monotonic() + 0.5)

    with route(way, monkeypatch, answer) as wire, pytest.raises(requests.ReadTimeout):
        read(wire.url)


def test_a_handshake_that_drips_inside_a_tls_tunnel_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(10)
        drip(sock, wire.over, bytes.fromhex("1603034000") + b"\x02" * 20_000)

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    with RawServer(answer) as wire, Proxy(tls=True) as proxy, web.track_exchange() as exchange:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(requests.ConnectionError):
            get(f"https://127.0.0.1:{wire.port}", (1.5, 20))
    assert not exchange.sent


def test_a_tls_handshake_that_drips_is_cut() -> None:
    def answer(sock: socket.socket) -> None:
        sock.recv(10)
        # The head of a TLS record of 16 KiB, and then a byte at a time.
        drip(sock, wire.over, bytes.fromhex("1603034000") + b"\x02" * 20_000)

    with RawServer(answer) as wire, pytest.raises(requests.ConnectTimeout), web.track_exchange() as seen:
        get(f"https://127.0.0.1:{wire.port}", SHORT)
    assert not seen.sent


def test_a_proxy_that_drips_its_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    with dripping(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(requests.ConnectionError), web.track_exchange() as seen:
            get("https://model-api.runcomfy.net", SHORT)
    assert not seen.sent


def test_a_tls_handshake_in_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    with RawServer(always(reply(b"here")), tls=True) as wire:
        response = get(wire.url)
        assert web.read_body(response, limit_bytes=10, deadline=time.monotonic() + 60) == b"here"


def test_the_head_must_be_there_when_the_exchange_has_to_end() -> None:
    with (
        dripping(b"H") as wire,
        web.bounded_session() as session,
        pytest.raises(requests.ReadTimeout),
        web.track_exchange(ends_by=time.monotonic() + 0.3),
    ):
        session.get(wire.url, timeout=(5, 600))


def test_a_long_upload_over_a_slow_line_is_not_bound_by_the_connect_timeout() -> None:
    def answer(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        left = 6_000_000 - len(read_head(sock).partition(b"\r\n\r\n")[2])
        while left > 0:
            left -= len(sock.recv(65536))
            wire.over.wait(0.01)
        sock.sendall(reply(b"all of it"))

    with RawServer(answer) as wire, web.bounded_session() as session:
        answer_ = session.put(wire.url, data=bytes(6_000_000), timeout=(0.4, 30))
        assert answer_.content == b"all of it"


def test_a_body_that_is_too_long_is_refused() -> None:
    with RawServer(always(reply(bytes(1000)))) as wire:
        response = get(wire.url)
        with pytest.raises(requests.exceptions.ChunkedEncodingError, match="longer than 999 bytes"):
            web.read_body(response, limit_bytes=999, deadline=time.monotonic() + 60)


def test_a_connection_that_was_cut_is_not_used_again() -> None:
    answers = iter([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", reply(b"whole")])

    def answer(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(next(answers))
        sock.recv(1)

    with RawServer(answer) as wire, web.bounded_session() as session:
        first = session.get(wire.url, timeout=LONG, stream=True)
        with pytest.raises(requests.ReadTimeout):
            web.read_body(first, limit_bytes=100, deadline=time.monotonic() + 0.2)
        first.close()
        assert session.get(wire.url, timeout=LONG).content == b"whole"
        assert wire.connections == 2


def test_nothing_is_retried_or_followed() -> None:
    heads: list[str] = []
    moved = reply(status="302 Found", Location="/elsewhere")
    with RawServer(always(moved, heads=heads)) as wire:
        assert get(wire.url).status_code == 302
    port = closed_port()
    with pytest.raises(requests.ConnectionError):
        get(f"http://127.0.0.1:{port}")
    assert len(heads) == 1


def test_a_host_that_is_no_name_is_an_ordinary_error() -> None:
    for host in ("a..example.net", "a" * 70 + ".example.net"):
        with pytest.raises(requests.RequestException):
            get(f"http://{host}/")


def test_a_socks_proxy_is_refused_and_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with RawServer(always(reply(b"direct"))) as wire, pytest.raises(web.WanInputError, match="socks5 proxy"):
        get(wire.url)
    assert not wire.connections


def test_the_environments_proxy_is_used_and_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(always(reply(b"there"))) as wire, Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert get(wire.url).content == b"there"
        assert [head.split()[1] for head in proxy.heads] == [f"{wire.url}/"]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert get(wire.url).content == b"there"
        assert len(proxy.heads) == 1


def test_the_environment_is_read_once_for_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        RawServer(always(reply(b"there"))) as wire,
        Proxy() as proxy,
        web.bounded_session() as session,
    ):
        assert session.get(f"{wire.url}/a", timeout=LONG).content == b"there"
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert session.get(f"{wire.url}/b", timeout=LONG).content == b"there"
        with web.bounded_session(like=session) as other:
            assert other.get(f"{wire.url}/c", timeout=LONG).content == b"there"
        assert not proxy.heads
        assert session.get(f"http://localhost:{wire.port}/", timeout=LONG).content == b"there"
        assert len(proxy.heads) == 1


def test_certificates_are_read_once_for_all_sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(Path(certificate()).read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with RawServer(always(reply(b"there")), tls=True) as wire:
        assert get(wire.url).content == b"there"
        bundle.unlink()
        assert get(wire.url).content == b"there"
        assert wire.connections == 2
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        with pytest.raises(requests.exceptions.SSLError):
            get(wire.url)
