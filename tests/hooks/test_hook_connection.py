# SPDX-License-Identifier: Apache-2.0
"""A connection of type ``wan``: the meaning of its fields, and the errors for wrong ones."""

from __future__ import annotations

import json
from typing import Any

import airflow
import pytest

from airflow_provider_wan.exceptions import WanAuthError, WanError, WanInputError
from airflow_provider_wan.hooks.connection import WanSettings
from airflow_provider_wan.hooks.wan import WanHook
from tests.hooks.either_hook import EitherHook, connection
from tests.raw_servers import RawServer, always, closed_port, reply
from wan_sandbox.server import Sandbox


def settings_of(monkeypatch: pytest.MonkeyPatch, extra: Any = None, **fields: Any) -> WanSettings:
    written = {"conn_type": "wan", "password": "secret-token", **fields}
    if extra is not None:
        written["extra"] = extra
    monkeypatch.setenv("AIRFLOW_CONN_MINE", json.dumps(written))
    return WanHook("mine").settings


def test_token_is_the_only_required_field(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch) == WanSettings(
        conn_id="mine",
        token="secret-token",
        api_origin="https://model-api.runcomfy.net",
        account_origin="https://api.runcomfy.net",
        requests_per_second=None,
        timeout_s=60.0,
        download_hosts=("*.runcomfy.net", "*.runcomfy.com"),
        allow_private_images=False,
        not_found_patience_s=60.0,
    )


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        ({"host": "api.example.com"}, "https://api.example.com"),
        ({"host": " https://api.example.com/ "}, "https://api.example.com"),
        ({"host": "http://127.0.0.1:8787"}, "http://127.0.0.1:8787"),
        ({"host": "127.0.0.1", "port": 8787, "schema": "http"}, "http://127.0.0.1:8787"),
        ({"host": "api.example.com:444"}, "https://api.example.com:444"),
        ({"host": "[::1]:8787", "schema": "http"}, "http://[::1]:8787"),
        ({"host": ""}, "https://model-api.runcomfy.net"),
        ({"host": "http://127.0.0.1", "port": 8787}, "http://127.0.0.1:8787"),
        ({"host": "http://127.0.0.1:8787", "port": 8787}, "http://127.0.0.1:8787"),
        ({"host": "http://[::1]", "port": 8787, "schema": "HTTP"}, "http://[::1]:8787"),
        ({"host": "127.0.0.1:8787", "port": 8787, "schema": "http"}, "http://127.0.0.1:8787"),
    ],
)
def test_host_is_read_as_an_origin(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], origin: str) -> None:
    assert settings_of(monkeypatch, **fields).api_origin == origin


@pytest.mark.parametrize(
    ("extra", "name", "value"),
    [
        ({"account_host": "https://a.example.com"}, "account_origin", "https://a.example.com"),
        ({"requests_per_second": "2.5"}, "requests_per_second", 2.5),
        ({"requests_per_second": ""}, "requests_per_second", None),
        ({"timeout": 5}, "timeout_s", 5.0),
        ({"not_found_patience": "0.5"}, "not_found_patience_s", 0.5),
        ({"allow_private_images": True}, "allow_private_images", True),
        ({"allow_private_images": "False"}, "allow_private_images", False),
        ({"allow_private_images": "y"}, "allow_private_images", True),
        ({"allow_private_images": ""}, "allow_private_images", False),
        (
            {"download_hosts": "*.A.com, http://127.0.0.1:1/ "},
            "download_hosts",
            ("*.a.com", "http://127.0.0.1:1"),
        ),
        ({"download_hosts": ["cdn.example.com"]}, "download_hosts", ("cdn.example.com",)),
        ({"download_hosts": []}, "download_hosts", ("*.runcomfy.net", "*.runcomfy.com")),
        ({"download_hosts": None}, "download_hosts", ("*.runcomfy.net", "*.runcomfy.com")),
    ],
    ids=str,
)
def test_extra_is_read(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], name: str, value: object) -> None:
    assert getattr(settings_of(monkeypatch, extra), name) == value


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": "https://api.example.com/v1"}, "'host'"),
        ({"host": "http://127.0.0.1:8787", "port": 8788}, "'host' and 'port'"),
        ({"host": "http://127.0.0.1", "port": 99999}, "'port'"),
        ({"host": "http://127.0.0.1", "schema": "https"}, "'host' and 'schema'"),
        ({"host": "127.0.0.1", "schema": "videos"}, "'schema'"),
        ({"port": 8787}, "port and no host"),
        ({"host": "https://user:pass@api.example.com"}, "'host'"),
        ({"host": "https://api.example.com?x=1"}, "'host'"),
        ({"host": "ftp://api.example.com"}, "'host'"),
        ({"host": "https://api.example.com:99999"}, "'host'"),
        ({"host": "https://[::1"}, "'host'"),
        ({"host": "https://"}, "'host'"),
        ({"host": "api example.com"}, "'host'"),
        ({"extra": {"account_host": "https://a.example.com/path"}}, "'account_host'"),
        ({"extra": {"timeout": "soon"}}, "'timeout'"),
        ({"extra": {"timeout": -1}}, "'timeout'"),
        ({"extra": {"timeout": "nan"}}, "'timeout'"),
        ({"extra": {"timeout": [1]}}, "'timeout'"),
        ({"extra": {"requests_per_second": 0}}, "'requests_per_second'"),
        ({"extra": {"not_found_patience": "inf"}}, "'not_found_patience'"),
        ({"extra": {"allow_private_images": "ture"}}, "'allow_private_images'"),
        ({"extra": {"download_hosts": 5}}, "'download_hosts'"),
        ({"extra": {"download_hosts": [None]}}, "'download_hosts'"),
        ({"extra": {"download_hosts": {"a": 1}}}, "'download_hosts'"),
        ({"extra": {"download_hosts": ["https://a.com/path"]}}, "'download_hosts'"),
        ({"extra": {"download_hosts": ["a.com/path"]}}, "'download_hosts'"),
        ({"extra": {"download_hosts": ["a.com:8080"]}}, "'download_hosts'"),
        pytest.param(
            {"extra": "[1]"},
            "extra",
            marks=pytest.mark.skipif(
                airflow.__version__.startswith("3.1."), reason="Airflow 3.1 refuses such a connection itself"
            ),
        ),
    ],
    ids=str,
)
def test_invalid_field_is_named(monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(WanInputError, match=named) as caught:
        settings_of(monkeypatch, **fields)
    assert "'mine'" in str(caught.value)
    assert "secret-token" not in str(caught.value)
    assert "pass@" not in str(caught.value)


def test_unknown_field_is_logged_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings_of(monkeypatch, extra={"request_per_second": 3}).requests_per_second is None
    assert "'request_per_second' in the extra of connection 'mine'" in caplog.text
    assert "did you mean 'requests_per_second'?" in caplog.text


@pytest.mark.parametrize("token", ["", "  ", "two words", "töken", "line\nbreak", "nul\0"])
def test_invalid_token_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    with pytest.raises(WanAuthError, match="'mine'") as caught:
        settings_of(monkeypatch, password=token)
    assert not token.strip() or token not in str(caught.value)


def test_connection_test_accepts_a_good_token_for_free(hook: EitherHook, sandbox: Sandbox) -> None:
    assert hook("test_connection") == (
        True,
        f"{sandbox.url.removeprefix('http://')} accepts this token. Nothing was bought.",
    )
    ledger = sandbox.ledger()
    assert (ledger["calls"], ledger["purchases"]) == ({"status": 1}, [])


@pytest.mark.parametrize("fault", ["other_user", "not_found"])
def test_connection_test_needs_only_an_accepted_token(hook: EitherHook, sandbox: Sandbox, fault: str) -> None:
    sandbox.add_fault("status", fault)
    assert hook("test_connection")[0]


@pytest.mark.parametrize(
    ("fault", "params", "said"),
    [
        ("unauthorized", {}, "does not accept the token of connection 'wan_default'"),
        ("forbidden_html", {}, "no usable answer"),
        ("not_found_html", {}, "no usable answer"),
        ("overloaded", {}, "no usable answer"),
        ("html", {}, "no usable answer"),
    ],
)
def test_connection_test_names_the_problem(
    hook: EitherHook, sandbox: Sandbox, fault: str, params: dict[str, Any], said: str
) -> None:
    sandbox.add_fault("status", fault, **params)
    works, message = hook("test_connection")
    assert not works
    assert said in message
    assert sandbox.token not in message


def test_connection_test_never_raises_or_shows_the_token(hook: EitherHook, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(always(reply(b"secret-token", "401 Unauthorized"))) as echo:
        written = [
            connection(echo.url, "secret-token"),
            connection(f"http://127.0.0.1:{closed_port()}", "secret-token"),
            connection("http://127.0.0.1/path", "secret-token"),
            connection("http://127.0.0.1", ""),
        ]
        for one in written:
            monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", one)
            works, message = EitherHook(hook.kind)("test_connection")
            assert not works
            assert message
            assert "secret-token" not in message


def test_token_echoed_by_a_server_is_not_in_the_error(hook: EitherHook, monkeypatch: pytest.MonkeyPatch) -> None:
    for body in (
        b'{"error_code": 400001, "error_message": "bad: Bearer secret-token"}',
        b"Bearer secret-token",
    ):
        with RawServer(always(reply(body, "400 Bad Request"))) as echo:
            monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(echo.url, "secret-token"))
            with pytest.raises(WanError) as caught:
                EitherHook(hook.kind)("get_status", "abc")
        assert "secret-token" not in str(caught.value)
