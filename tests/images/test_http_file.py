# SPDX-License-Identifier: Apache-2.0
"""Images behind addresses whose servers mean no good, over real sockets."""

from __future__ import annotations

import socket

import pytest

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.images.http_file import UrlReader
from airflow_provider_wan.images.inspect import inspect
from tests.image_samples import encoded, photo
from tests.wires import Answer, Wire, always, drip, read_head, reply

JPEG = encoded(photo(), "JPEG")


def whole(answer: Answer, *, limit_bytes: int = 1_000_000, total_s: float = 10.0) -> bytes:
    with Wire(answer) as server:
        reader = UrlReader(f"{server.url}/a.jpg?sig=s3cret", allow_private=True, total_s=total_s)
        try:
            return reader.read_all(limit_bytes)
        finally:
            reader.close()


def test_an_image_is_read_whole() -> None:
    assert whole(always(reply(JPEG))) == JPEG


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.8/a.jpg",
        "http://0x7f000001/",
        "http://[::1]/a.jpg",
    ],
)
def test_a_redirect_to_a_private_address_is_not_followed(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Wire(always(reply(status="302 Found", Location=location))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        reader = UrlReader("http://images.example.com/a.jpg")
        with pytest.raises(WanDownloadError, match="not a public address") as refused:
            inspect(reader, name=reader.name)
        assert proxy.connections == 1
    assert not refused.value.retry_helps


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://h/a.jpg", "gopher://h/"])
def test_a_redirect_to_another_scheme_is_not_followed(location: str) -> None:
    with pytest.raises(WanInputError, match="not http or https"):
        whole(always(reply(status="302 Found", Location=location)))


def test_a_server_that_leads_round_and_round_is_left() -> None:
    with pytest.raises(WanInputError, match="too many redirects"):
        whole(always(reply(status="302 Found", Location="/a.jpg")))


@pytest.mark.parametrize("of", ["head", "body"])
def test_a_host_that_drips_is_given_up(of: str) -> None:
    server: Wire

    def answer(sock: socket.socket) -> None:
        read_head(sock)
        if of == "body":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")
        drip(sock, server.over, b"HTTP/1.1 200 OK\r\nX-Long: a" if of == "head" else JPEG)

    with Wire(answer) as server:
        reader = UrlReader(f"{server.url}/a.jpg", allow_private=True, total_s=0.4)
        with pytest.raises(WanDownloadError, match="could not be read") as given_up:
            reader.read_all(1_000_000) if of == "body" else inspect(reader, name=reader.name)
    assert given_up.value.retry_helps


def test_an_image_that_is_cut_off_on_its_way_is_no_image_of_another_kind() -> None:
    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(reply(JPEG)[:-100])

    with pytest.raises(WanDownloadError, match=r"could not be read|was cut off"):
        whole(answer)


@pytest.mark.parametrize("honest", [True, False])
def test_more_than_the_limit_is_not_loaded(honest: bool) -> None:
    def answer(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(
            reply(bytes(5000)) if honest else b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(5000)
        )

    with pytest.raises(WanInputError, match="more than 4,000 bytes"):
        whole(answer, limit_bytes=4000)


@pytest.mark.parametrize(
    ("status", "kind"), [("404 Not Found", WanInputError), ("503 Busy", WanDownloadError)]
)
def test_an_answer_that_is_no_image_is_told_without_the_signature(status: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as refused:
        whole(always(reply(b"no", status=status)))
    assert "/a.jpg answers" in str(refused.value)
    assert "s3cret" not in str(refused.value)
