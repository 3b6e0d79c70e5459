# SPDX-License-Identifier: Apache-2.0
"""Files, and the rest of them, from hosts that answer in every way, over real sockets."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_wan.http.addresses import AddressRefusedError
from airflow_provider_wan.http.fetch import Fetcher, FetchError, FetchRules, FilePart
from tests.raw_servers import RawServer, always, read_head, reply

FILE = bytes(range(256)) * 40
LOG = logging.getLogger("fetch")


@contextlib.contextmanager
def fetching(**rules: Any) -> Iterator[Fetcher]:
    fetcher = Fetcher(FetchRules(**rules), sleep=lambda _: None)
    try:
        yield fetcher
    finally:
        fetcher.close()


def open_part(url: str, **asked: Any) -> tuple[FilePart, bytes]:
    with fetching() as fetcher, fetcher.open(url, deadline=time.monotonic() + 20, **asked) as part:
        return part, b"".join(part.pieces())


@pytest.mark.parametrize(("where", "size"), [("bytes 5-14/10240", 10240), ("bytes 5-14/*", None)])
def test_a_part_says_where_it_is_and_may_not_know_the_size(where: str, size: int | None) -> None:
    answer = reply(FILE[5:15], "206 Partial Content", Content_Range=where)
    with RawServer(always(answer)) as server:
        part, data = open_part(server.url, start=5)
    assert (part.start, part.size_bytes, part.is_whole, data) == (5, size, False, FILE[5:15])


def test_a_part_that_was_not_asked_for_is_refused() -> None:
    answer = reply(FILE[:10], "206 Partial Content", Content_Range="bytes 0-9/10240")
    with RawServer(always(answer)) as server, pytest.raises(FetchError, match="another one"):
        open_part(server.url)


def test_a_request_names_this_package_and_sends_no_credentials() -> None:
    heads: list[str] = []
    with RawServer(always(reply(FILE), heads=heads)) as server:
        open_part(server.url)
    assert "User-Agent: airflow-provider-wan" in heads[0]
    assert "Accept-Encoding: identity" in heads[0]
    assert not [name for name in ("authorization", "cookie") if name in heads[0].lower()]


def test_every_address_of_a_chain_of_redirects_is_checked() -> None:
    seen: list[str] = []

    def check(url: str) -> None:
        seen.append(url)
        if "third" in url:
            raise AddressRefusedError("its host is not on the list")

    with (
        RawServer(always(reply(status="302 Found", Location="/third"))) as second,
        RawServer(always(reply(status="307 Found", Location=f"{second.url}/second"))) as first,
        fetching(check_address=check) as fetcher,
        pytest.raises(FetchError, match="not on the list") as caught,
    ):
        fetcher.open(f"{first.url}/first", deadline=time.monotonic() + 20)
    assert [url.rpartition("/")[2] for url in seen] == ["first", "second", "third"]
    assert (caught.value.kind, caught.value.is_transient) == ("refused", False)
    assert (first.connections, second.connections) == (1, 1)


def test_private_host_receives_no_byte() -> None:
    with (
        RawServer(always(reply(FILE))) as server,
        fetching(refuse_private=True) as fetcher,
        pytest.raises(FetchError, match="not a public address"),
    ):
        fetcher.open(server.url, deadline=time.monotonic() + 20)
    assert not server.connections


@pytest.mark.parametrize(
    ("status", "transient"),
    [
        ("403 No", False),
        ("404 No", False),
        ("408 Slow", True),
        ("425 Early", True),
        ("429 Busy", True),
        ("502 Out", True),
    ],
)
def test_a_status_says_whether_the_address_may_work_later(status: str, transient: bool) -> None:
    with (
        RawServer(always(reply(status=status, Retry_After="7"))) as server,
        pytest.raises(FetchError) as caught,
    ):
        open_part(f"{server.url}/a?Signature=secret")
    assert (caught.value.status, caught.value.is_transient) == (int(status[:3]), transient)
    assert caught.value.retry_after_s == 7
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [reply(FILE), b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + FILE])
def test_more_than_the_limit_is_not_loaded(answer: bytes) -> None:
    with RawServer(always(answer)) as server, fetching() as fetcher:
        deadline = time.monotonic() + 20
        assert fetcher.read_all(server.url, deadline=deadline, limit_bytes=len(FILE)) == FILE
        with pytest.raises(FetchError, match="more than 10,239 bytes") as caught:
            fetcher.read_all(server.url, deadline=deadline, limit_bytes=len(FILE) - 1)
    assert caught.value.kind == "too large"


def test_download_waits_as_long_as_retry_after() -> None:
    waited: list[float] = []
    answers = iter([reply(status="503 Out", Retry_After="40"), reply(FILE)])

    def answer(sock: Any) -> None:
        read_head(sock)
        sock.sendall(next(answers))

    with RawServer(answer) as server:
        fetcher = Fetcher(FetchRules(lambda url: None), sleep=waited.append)
        file = io.BytesIO()
        done = fetcher.download(server.url, file, LOG)
    assert (file.getvalue(), done.size_bytes, waited) == (FILE, len(FILE), [40.0])
