# SPDX-License-Identifier: Apache-2.0
"""``airflow wan models``, ``request`` and ``balance``."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from airflow_provider_wan.cli import main, snippet_of
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.model_api.dialect import model_of_page
from airflow_provider_wan.model_api.inputs import validate_inputs
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.utils.params import given_inputs
from tests.sandboxes import INPUTS, MODEL
from wan_sandbox.server import Sandbox

WAN_3 = "wan-ai/wan-3.0/image-to-video"


def run(capsys: pytest.CaptureFixture[str], *arguments: str, output: str = "json") -> Any:
    """Run a command; return its rows, or the text that it printed."""
    capsys.readouterr()
    main([*arguments, "--output", output])
    printed = capsys.readouterr().out
    return json.loads(printed) if output == "json" else printed


def test_models_are_found_by_words_and_category(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "models", "wan-3", "--category", "image-to-video")
    assert [row["id"] for row in rows] == [WAN_3, "wan-ai/wan-3.0-prime/image-to-video"]
    assert rows[0] | {"note": "", "base_price_usd": ""} == {
        "id": WAN_3,
        "image_fields": "image_url, end_image_url",
        "durations": "2 to 30; default 5",
        "resolutions": "480p, 720p, 1080p; default 720p",
        "base_price_usd": "",
        "per": "second",
        "note": "",
    }
    assert "base" in rows[0]["note"]
    assert "No data found" in run(capsys, "models", "no-such-model", output="table")


def test_all_models_are_listed_through_every_page(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_wan.hooks.common.MODELS_PER_PAGE", 7)
    rows = run(capsys, "models")
    assert len({row["id"] for row in rows}) == len(rows) > 20
    assert sandbox.ledger()["calls"]["models"] == -(-len(rows) // 7)


def test_one_model_is_shown_in_full(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    [shown] = run(capsys, "models", "show", WAN_3)
    inputs = {row["input"]: row for row in shown["inputs"]}
    assert (inputs["image_url"]["type"], inputs["image_url"]["required"]) == ("image", "yes")
    assert inputs["image_url"]["values"] == "240 to 8000 px a side; 0.125 to 8 width / height; under 20 MB"
    table = run(capsys, "models", "show", WAN_3, output="table")
    for part in ("enable_audio", "Wan 3.0 image to video", "WanSubmitOperator(", f'model_id="{WAN_3}",'):
        assert part in table


def test_snippet_of_every_model_can_be_pasted(sandbox: Sandbox) -> None:
    for page in WanHook().list_models():
        model = model_of_page(page)[0]
        tree = ast.parse(snippet_of(model), mode="eval").body
        assert isinstance(tree, ast.Call)
        task = WanSubmitOperator(**{word.arg: ast.literal_eval(word.value) for word in tree.keywords if word.arg})
        images = dict(task.images or {})
        if task.image:
            images[model.image_field()] = task.image
        links = json.loads(json.dumps(images).replace("gs://", "https://storage.googleapis.com/"))
        assert validate_inputs(model, {**given_inputs(task), **links})


def test_state_result_and_cost_of_a_request_are_shown_without_signatures(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    request_id = WanHook().submit(MODEL, INPUTS).request_id
    [row] = run(capsys, "request", request_id)
    assert (row["request_id"], row["state"]) == (request_id, "succeeded")
    assert float(row["cost_usd"]) > 0
    assert row["videos"].startswith("http")
    assert "?" not in row["videos"]
    sandbox.control("speed", {"generation_seconds": 3600})
    [row] = run(capsys, "request", WanHook().submit(MODEL, {**INPUTS, "seed": 2}).request_id)
    assert (row["state"], row["videos"]) in {("running", ""), ("queued", "")}


def test_balance_is_shown(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = run(capsys, "balance")
    assert float(row["balance_usd"]) == WanHook().get_balance().balance_usd
    assert row["currency"] == "USD"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("request", "../../x"), "not valid"),
        (("request", "unknown-1"), "404001"),
        (("models", "show"), "Give the id of one model"),
        (("models", "show", "acme/nothing/x"), "400001"),
    ],
)
def test_errors_are_printed_without_a_traceback(sandbox: Sandbox, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert says in str(ended.value.code)


def test_square_brackets_of_a_page_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    from airflow_provider_wan.cli import _print

    _print([{"description": "a [/b] and [red] text"}], "table")
    assert "a [/b] and [red] text" in capsys.readouterr().out
