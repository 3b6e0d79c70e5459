# SPDX-License-Identifier: Apache-2.0
"""Parts of an image behind an address: what is read, from whom, and what is never sent along."""

from __future__ import annotations

import re
import socket
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.images.http_file import UrlReader
from tests.wires import Proxy, Wire, always, closed_port, read_head, read_request, reply

#: Not spelled out: a traceback shows the lines of this file too.
SECRET = "ab" * 20
FILE = bytes(range(256)) * 12_000  # 3 MB


def ranged(heads: list[str], *, shift: int = 0, more: int = 0) -> Callable[[socket.socket], None]:
    """Serve ranges of the file.

    :param shift: serve another part than was asked for.
    :param more: serve so many bytes more.
    """

    def answer(sock: socket.socket) -> None:
        head = read_head(sock).decode()
        heads.append(head)
        asked = re.search(r"bytes=(\d+)-(\d+)", head)
        assert asked
        start, stop = int(asked[1]) + shift, min(len(FILE), int(asked[2]) + 1 + shift + more)
        if start >= len(FILE):
            sock.sendall(reply(status="416 No"))
            return
        where = f"bytes {start}-{stop - 1}/{len(FILE)}"
        sock.sendall(reply(FILE[start:stop], "206 Partial Content", Content_Range=where))

    return answer


def read(url: str, start: int, length: int, *, allow_private: bool = True) -> tuple[bytes, int | None]:
    with closing(UrlReader(url, allow_private=allow_private, total_s=5)) as reader:
        return reader.read(start, length), reader.size_bytes


@pytest.mark.parametrize(
    ("start", "length"), [(0, 100), (777, 5), (0, 2_500_000), (2_999_000, 100), (3_071_990, 100)]
)
def test_a_part_is_that_part_and_tells_the_size(start: int, length: int) -> None:
    heads: list[str] = []
    with Wire(ranged(heads)) as wire:
        assert read(wire.url, start, length) == (FILE[start : start + length], len(FILE))
    assert len(heads) == 1


def test_beyond_the_end_is_nothing() -> None:
    with Wire(ranged([])) as wire:
        assert read(wire.url, len(FILE), 10) == (b"", None)


def test_another_part_than_the_one_asked_for_is_refused() -> None:
    with Wire(ranged([], shift=7)) as wire, pytest.raises(WanDownloadError, match="gave another one"):
        read(wire.url, 0, 100)


def test_more_than_was_asked_for_is_cut() -> None:
    with Wire(ranged([], more=500_000)) as wire:
        assert read(wire.url, 10, 100)[0] == FILE[10:110]


@pytest.mark.parametrize("where", ["", "bytes */5", "bytes x-y/z", "bytes 0-9/" + "9" * 5000])
def test_a_part_that_does_not_say_which_is_refused(where: str) -> None:
    with (
        Wire(always(reply(b"0123456789", "206 Partial Content", Content_Range=where))) as wire,
        pytest.raises(WanDownloadError),
    ):
        read(wire.url, 0, 10)


def test_a_server_without_ranges_is_asked_once() -> None:
    heads: list[str] = []
    with (
        Wire(always(reply(FILE), heads=heads)) as wire,
        closing(UrlReader(wire.url, allow_private=True)) as reader,
    ):
        assert reader.read(5, 10) == FILE[5:15]
        assert reader.read(500_000, 10) == FILE[500_000:500_010]
        assert reader.size_bytes == len(FILE)
    assert len(heads) == 1


def test_a_server_without_ranges_gives_as_much_as_is_asked_for() -> None:
    with Wire(always(reply(FILE))) as wire:
        assert read(wire.url, 0, len(FILE)) == (FILE, len(FILE))


def test_a_length_beyond_all_numbers_is_an_ordinary_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nbody"
    with Wire(always(head)) as wire, suppress(WanDownloadError):
        assert read(wire.url, 0, 4)[0] == b"body"


@pytest.mark.parametrize("location", ["http://[broken/", "//[::1"])
def test_a_redirect_to_no_address_is_told(location: str) -> None:
    with (
        Wire(always(reply(status="302 Found", Location=location))) as wire,
        pytest.raises(WanInputError, match="no address"),
    ):
        read(wire.url, 0, 10)


def test_a_redirect_is_followed_and_judged_anew() -> None:
    with Wire(ranged([])) as there, Wire(always(reply(status="307 On", Location=f"{there.url}/b"))) as wire:
        assert read(wire.url, 3, 10)[0] == FILE[3:13]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_a_private_host_is_refused_unless_the_connection_allows_it(host: str) -> None:
    with Wire(ranged([])) as wire:
        with pytest.raises(WanDownloadError, match="allow_private_images") as caught:
            read(f"http://{host}:{wire.port}/a.jpg", 0, 10, allow_private=False)
        assert not caught.value.retry_helps
        assert not wire.connections


def test_a_name_that_resolves_to_a_private_address_gets_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **kw: look_up("127.0.0.1", *more, **kw))
    heads: list[str] = []
    with Wire(ranged(heads)) as wire, pytest.raises(WanDownloadError, match="is not public") as caught:
        read(f"http://images.example.com:{wire.port}/a.jpg", 0, 10, allow_private=False)
    assert not caught.value.retry_helps
    assert not heads


def test_nothing_is_sent_along(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    heads: list[str] = []
    with Wire(ranged(heads)) as wire, closing(UrlReader(wire.url, allow_private=True)) as reader:
        reader.read(0, 10)
        reader.read(10, 10)
    assert not [head for head in heads if "authorization" in head.lower() or "cookie" in head.lower()]
    assert all("accept-encoding: identity" in head.lower() for head in heads)


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Wire(ranged([])) as wire, Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert read(f"{wire.url}/a.jpg", 0, 10)[0] == FILE[:10]
        assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("401 Unauthorized", WanInputError),
        ("403 Forbidden", WanInputError),
        ("404 Not Found", WanInputError),
        ("410 Gone", WanInputError),
        ("408 Timeout", WanDownloadError),
        ("429 Busy", WanDownloadError),
        ("500 Error", WanDownloadError),
        ("204 Nothing", WanDownloadError),
    ],
)
def test_an_answer_without_the_file_is_told(status: str, kind: type[Exception]) -> None:
    with Wire(always(reply(status=status))) as wire, pytest.raises(kind, match="Nothing was"):
        read(f"{wire.url}/a.jpg?X-Amz-Signature=secret", 0, 10)


@pytest.mark.parametrize("where", ["refused", "cut", "garbage", "not tls"])
def test_a_server_that_is_out_is_worth_another_try(where: str) -> None:
    def cut(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(reply(FILE[:1000])[:500])

    def no_tls(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Wire(cut) as cuts, Wire(always(b"\0\0\0\0")) as garbage, Wire(no_tls) as plain:
        url = {
            "refused": f"http://127.0.0.1:{closed_port()}",
            "cut": cuts.url,
            "garbage": garbage.url,
            "not tls": f"https://127.0.0.1:{plain.port}",
        }[where]
        with pytest.raises(WanDownloadError, match="could not be read") as caught:
            read(f"{url}/a.jpg?X-Amz-Signature={SECRET}", 0, 1000)
    assert caught.value.retry_helps
    assert SECRET not in "".join(traceback.format_exception(caught.value))
