# SPDX-License-Identifier: Apache-2.0
"""What the sessions never send, and which hosts they never reach."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import requests

from airflow_provider_wan.http import transport as web
from airflow_provider_wan.http.addresses import AddressRefusedError, is_public_address, refuse_private_literal
from tests.raw_servers import RawServer, always, reply

PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_these_addresses_are_private(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_these_addresses_are_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "a.localhost",
        "metadata.google.internal",
        "printer.local",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "0",
        "2852039166",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[fe80::1%25eth0]",
    ],
)
def test_a_private_host_is_refused_by_its_name_before_a_proxy_could_be_asked(host: str) -> None:
    with pytest.raises(AddressRefusedError, match="not a public address") as caught:
        refuse_private_literal(f"https://user:secret@{host}:8080/a.jpg?X-Amz-Signature=s")
    assert "secret" not in str(caught.value)
    assert "Signature" not in str(caught.value)


@pytest.mark.parametrize("host", ["example.com", "8.8.8.8", "[2606:4700:4700::1111]", "internal.example.com", "a"])
def test_a_public_host_passes(host: str) -> None:
    refuse_private_literal(f"https://{host}/a.jpg")


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_name_that_leads_to_a_private_address_gets_no_byte(host: str) -> None:
    got: list[str] = []
    with (
        RawServer(always(reply(), heads=got)) as server,
        web.bounded_session(refuse_private=True) as session,
        pytest.raises(requests.ConnectionError) as caught,
        web.track_exchange() as seen,
    ):
        session.get(f"http://{host}:{server.port}/", timeout=20)
    assert web.caused_by(caught.value, web.PrivateAddressError)
    assert (got, seen.sent) == ([], False)


def test_unguarded_session_reaches_private_hosts() -> None:
    with RawServer(always(reply(b"here"))) as server, web.bounded_session() as session:
        assert session.get(f"http://localhost:{server.port}/", timeout=20).content == b"here"


def test_a_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    heads: list[str] = []
    with RawServer(always(reply(), heads=heads)) as server, web.bounded_session() as session:
        session.get(server.url, timeout=20)
        session.get(server.url.replace("://", "://user:password@"), timeout=20)
    assert not [head for head in heads if "authorization" in head.lower()]


def test_no_signature_of_a_link_is_in_a_debug_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with RawServer(always(reply(status="403 No"))) as server, web.bounded_session() as session:
        session.get(f"{server.url}/v.mp4?X-Goog-Signature=s3cret", timeout=20)
    assert "/v.mp4?" in caplog.text
    assert "s3cret" not in caplog.text


def test_cookies_are_not_returned() -> None:
    heads: list[str] = []
    with RawServer(always(reply(Set_Cookie="a=b"), heads=heads)) as server, web.bounded_session() as session:
        for _ in range(2):
            session.get(server.url, timeout=20)
    assert len(heads) == 2
    assert not [head for head in heads if "cookie" in head.lower()]
