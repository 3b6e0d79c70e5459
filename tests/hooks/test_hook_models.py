# SPDX-License-Identifier: Apache-2.0
"""A model's page is read once, its rules apply, and a page that can't be used is not an error of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanAuthError, WanInputError, WanTransientError
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.model_api.inputs import validate_inputs
from airflow_provider_wan.model_api.schema import load_schema
from tests.hooks.either_hook import QUICK, connection
from tests.raw_servers import RawServer, always, reply
from tests.sandboxes import INPUTS, MODEL
from wan_sandbox.server import Sandbox

ACME = "acme/video/fast"


def hook_of(wire: RawServer, monkeypatch: pytest.MonkeyPatch) -> WanHook:
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(wire.url))
    return WanHook(retry=QUICK)


def page(model_id: str, **fields: Any) -> bytes:
    schema = {"type": "object", "properties": fields}
    return reply(json.dumps({"model_id": model_id, "input_schema": schema}).encode())


def test_models_are_typed_and_searched(sandbox: Sandbox) -> None:
    hook = WanHook()
    [model] = hook.list_models("wan-2.7")
    assert (model.model_id, model.image_fields) == (
        "wan-ai/wan-2.7/image-to-video",
        ("image_url", "end_image_url"),
    )
    assert (model.price_unit, model.base_price_usd) == ("output", 0.2)
    assert model.schema is not None
    assert model.schema.fields["duration"]["default"] == 5
    assert {"text-to-video"} == {m.model_id.rpartition("/")[2] for m in hook.list_models(category="text-to-video")}


def test_page_is_read_once_for_all_hooks_of_a_connection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    WanHook().get_model(MODEL)
    WanHook().model(MODEL)
    assert sandbox.ledger()["calls"]["model"] == 1
    monkeypatch.setenv("AIRFLOW_CONN_WAN_OTHER", connection(sandbox.url, sandbox.token))
    WanHook("wan_other").get_model(MODEL)
    assert sandbox.ledger()["calls"]["model"] == 2


def test_page_of_wan_2_2_decides_and_differences_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundled = load_schema(MODEL)
    assert bundled is not None
    fields = {name: {"type": rules["type"]} for name, rules in bundled.fields.items()}
    fields |= {
        "duration": {"type": "integer", "enum": [5, 10]},
        "prompt": {"type": "string", "maxLength": 20},
    }
    with RawServer(always(page(MODEL, **fields))) as wire:
        hook = hook_of(wire, monkeypatch)
        model = hook.model(MODEL)
        hook.model(MODEL)
    assert validate_inputs(model, {**INPUTS, "duration": "10"})["duration"] == 10
    with pytest.raises(WanInputError, match="at most 20"):
        validate_inputs(model, {**INPUTS, "prompt": "x" * 21})
    log = capfd.readouterr().out
    assert log.count("differs from the rules of this package") == 1
    assert "duration: enum [5] is now enum [5, 10]" in log


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"<html>", "404 Not Found"),
        reply(b"{}", "502 Bad Gateway"),
        reply(b'{"model_id": 5}'),
        reply(b'{"error_code": 400001, "error_message": "malformed"}', "400 Bad Request"),
        reply(json.dumps({"model_id": ACME, "input_schema": "x"}).encode()),
        page("acme/another/model", prompt={}),
    ],
    ids=["404", "502", "not a page", "400001", "no schema", "another model"],
)
def test_page_that_can_not_be_used_leaves_inputs_unchecked_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answer: bytes
) -> None:
    with RawServer(always(answer)) as wire:
        hook = hook_of(wire, monkeypatch)
        assert validate_inputs(hook.model(ACME), {"anything": 1}) == {"anything": 1}
        assert capfd.readouterr().out.count("sent unchecked") == 1
        with pytest.raises((WanInputError, WanTransientError), match="require_schema=True, so nothing was sent"):
            hook.model(ACME, require_schema=True)
        assert hook.model(MODEL, require_schema=True).schema == load_schema(MODEL)


def test_refused_token_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(always(reply(b'{"error_code": 400004}', "401 Unauthorized"))) as wire:
        for model_id in (MODEL, ACME):
            with pytest.raises(WanAuthError):
                hook_of(wire, monkeypatch).model(model_id)
