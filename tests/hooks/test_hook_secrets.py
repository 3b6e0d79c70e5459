# SPDX-License-Identifier: Apache-2.0
"""The token goes to the connection's two hosts, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_wan.exceptions import (
    WanAuthError,
    WanError,
    WanInputError,
    WanTransientError,
    WanUnknownSubmissionError,
)
from airflow_provider_wan.hooks.wan import WanAsyncHook, WanHook
from tests.hooks.either_hook import QUICK, EitherHook, connection, everything_in
from tests.raw_servers import Proxy, RawServer, always, certificate, closed_port, read_request, reply
from tests.sandboxes import INPUTS, MODEL
from wan_sandbox.server import Sandbox

TOKEN = "token-0123456789-secret"
METHODS = [
    ("get_status", "a"),
    ("get_result", "a"),
    ("cancel", "a"),
    ("get_balance",),
    ("submit", MODEL, INPUTS),
]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(hook: EitherHook, sandbox: Sandbox, status: int) -> None:
    with RawServer(always(reply(b"{}"))) as elsewhere:
        sandbox.add_fault("*", "redirect", location=f"{elsewhere.url}/v1/requests/a", status=status)
        for method, *args in METHODS:
            with pytest.raises(WanError):
                hook(method, *args)
        assert not elsewhere.connections


def test_urls_in_answers_are_not_called(hook: EitherHook, sandbox: Sandbox) -> None:
    with RawServer(always(reply(b"{}"))) as elsewhere:
        sandbox.add_fault("submit", "foreign_urls", location=elsewhere.url)
        sandbox.add_fault("status", "foreign_urls", location=elsewhere.url)
        request_id = hook("submit", MODEL, INPUTS).request_id
        hook("get_status", request_id)
        hook("get_result", request_id)
        hook("cancel", request_id)
        assert not elsewhere.connections


def test_netrc_neither_replaces_the_token_nor_breaks_the_call(
    hook: EitherHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (".netrc", "netrc"):
        (tmp_path / name).write_text("machine 127.0.0.1 login a password b\ndefault login c password d\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    heads: list[str] = []
    answer = reply(b'{"request_id": "a", "status": "in_progress"}')
    with RawServer(always(answer, heads=heads)) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url, TOKEN))
        hook = EitherHook(hook.kind)
        hook("get_status", "a")
        hook("submit", MODEL, INPUTS)
    assert len(heads) == 2
    for head in heads:
        assert [line for line in head.split("\r\n") if line.lower().startswith("authorization")] == [
            f"Authorization: Bearer {TOKEN}"
        ]


def test_no_cookie_is_kept(hook: EitherHook, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[str] = []
    answer = reply(b'{"request_id": "a", "status": "in_progress"}', Set_Cookie="session=1; Path=/")
    with RawServer(always(answer, heads=heads)) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url, TOKEN))
        hook = EitherHook(hook.kind)
        for _ in range(2):
            hook("get_status", "a")
    assert not [head for head in heads if "cookie" in head.lower()]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 nonsense\r\n\r\n",
        b"\x00\x01\x02\x03",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nbroken header\x00: \x01\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"",
    ],
    ids=["status", "bytes", "length", "header", "chunk", "cut", "encoding", "nothing"],
)
def test_error_about_an_unusable_answer_has_no_token(
    hook: EitherHook, monkeypatch: pytest.MonkeyPatch, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RawServer(always(answer)) as wire:
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url, TOKEN))
        hook = EitherHook(hook.kind)
        for method, *args in METHODS:
            with pytest.raises(WanError) as caught:
                hook(method, *args)
            expected = WanUnknownSubmissionError if method == "submit" else WanTransientError
            assert type(caught.value) is expected
            assert TOKEN not in everything_in(caught.value)
    assert TOKEN not in caplog.text


def test_connection_error_has_no_token_and_nothing_is_bought(
    hook: EitherHook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hosts = [f"http://127.0.0.1:{closed_port()}", "https://no-such-host.invalid"]
    with RawServer(always(reply()), tls=True) as untrusted, RawServer(lambda sock: None) as no_tls:
        for host in (*hosts, untrusted.url, f"https://127.0.0.1:{no_tls.port}"):
            monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(host, TOKEN))
            for method, *args in METHODS:
                with pytest.raises(WanTransientError) as caught:
                    EitherHook(hook.kind, retry=replace(QUICK, tries=1))(method, *args)
                assert TOKEN not in everything_in(caught.value)
                assert ("Nothing was bought" in str(caught.value)) == (method == "submit")
    assert TOKEN not in caplog.text


def test_token_is_shown_nowhere(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hook = WanHook()
    hook.get_balance()
    shown = [repr(hook), str(hook), repr(hook.settings), str(hook.settings), repr(hook.get_conn())]
    assert not [text for text in shown if sandbox.token in text]
    assert sandbox.token not in str(hook.get_conn().headers)
    assert sandbox.token not in caplog.text


@pytest.mark.parametrize("before", ["http://user:password@", ""])
def test_both_hooks_use_the_proxy_of_the_environment(
    hook: EitherHook, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"{before}127.0.0.1:{proxy.port}")
        request_id = hook("submit", MODEL, INPUTS).request_id
        hook("get_status", request_id)
        assert [head.split(" ")[0] for head in proxy.heads] == ["POST", "GET"]
        assert all(("Proxy-Authorization: Basic" in head) == bool(before) for head in proxy.heads)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        hook("get_status", request_id)
        assert len(proxy.heads) == 2


def test_proxy_tunnel_does_not_see_the_token(hook: EitherHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate())
    heads: list[str] = []
    answer = reply(b'{"request_id": "a", "status": "in_progress"}')
    with RawServer(always(answer, heads=heads), tls=True) as wire, Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:password@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url, TOKEN))
        hook = EitherHook(hook.kind)
        hook("get_status", "a")
        hook("submit", MODEL, INPUTS)
        assert [head.split(" ")[:2] for head in proxy.heads] == [["CONNECT", f"127.0.0.1:{wire.port}"]] * 2
    assert TOKEN not in "".join(proxy.heads)
    assert "proxy-authorization" not in "".join(heads).lower()
    assert "".join(heads).count(TOKEN) == 2


def test_refusal_by_a_proxy_buys_nothing(hook: EitherHook, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(refuse=reply(b"no", "403 Forbidden")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:password@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection("https://model-api.runcomfy.net", TOKEN))
        with pytest.raises(WanTransientError, match="Nothing was bought") as caught:
            EitherHook(hook.kind)("submit", MODEL, INPUTS)
        assert TOKEN not in everything_in(caught.value)
        assert TOKEN not in "".join(proxy.heads)


def test_socks_proxy_is_refused(hook: EitherHook, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5h://user:password@127.0.0.1:1080")
    for method, *args in METHODS:
        with pytest.raises(WanInputError, match="socks5h proxy") as caught:
            hook(method, *args)
        assert "password" not in str(caught.value)
    assert not sandbox.ledger()["calls"]


def test_rotated_token_is_read(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = WanHook(retry=QUICK)
    request_id = hook.submit(MODEL, INPUTS).request_id
    sandbox.control("tokens", {"add": "rotated", "revoke": sandbox.token})
    with pytest.raises(WanAuthError):
        hook.get_status(request_id)
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox.url, "rotated"))
    assert hook.get_status(request_id).is_over
    assert hook.get_result(request_id).video_urls


def test_rotated_token_is_read_once_for_all_threads(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = WanHook(retry=QUICK)
    request_id = hook.submit(MODEL, INPUTS).request_id
    sandbox.control("tokens", {"add": "rotated", "revoke": sandbox.token})
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox.url, "rotated"))
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: hook.get_status(request_id), range(16)))
    assert all(status.is_over for status in statuses)


def test_rotated_token_is_read_once_for_all_in_the_loop(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def follow() -> None:
        async with WanAsyncHook(retry=QUICK) as hook, WanAsyncHook(retry=QUICK) as other:
            request_id = WanHook(retry=QUICK).submit(MODEL, INPUTS).request_id
            await other.get_status(request_id)
            sandbox.control("tokens", {"add": "rotated", "revoke": sandbox.token})
            with pytest.raises(WanAuthError):
                await hook.get_status(request_id)
            monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox.url, "rotated"))
            assert (await hook.get_status(request_id)).is_over
            refused = len(sandbox.ledger()["refusals"])
            assert (await other.get_result(request_id)).video_urls
            assert len(sandbox.ledger()["refusals"]) == refused, "the other hook knows the new token already"

    asyncio.run(follow())


def test_test_server_reads_a_request_whole_before_it_answers() -> None:
    """The servers of these tests read bodies, or a reset could be taken for an answer."""
    bodies: list[bytes] = []

    def answer(sock: object) -> None:
        bodies.append(read_request(sock))  # type: ignore[arg-type]
        sock.sendall(reply())  # type: ignore[attr-defined]

    import requests

    with RawServer(answer) as wire:
        requests.post(wire.url, data=b"x" * 300_000, timeout=5)
    assert bodies[0].endswith(b"x" * 300_000)
