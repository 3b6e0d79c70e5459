# SPDX-License-Identifier: Apache-2.0
"""The example Dag that writes prompts before it buys videos, run by Airflow against the sandbox."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from tests.dag_runs import Run, run_example
from tests.sandboxes import Bucket

PHOTOS = Path(__file__).resolve().parent.parent.parent / "demo" / "photos"

pytestmark = pytest.mark.usefixtures("airflow_db")


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")


def put_photo(bucket: Bucket, name: str) -> None:
    bucket.put(f"photos/{name}.jpg", (PHOTOS / "coffee.jpg").read_bytes() + name.encode(), "image/jpeg")


def run() -> Run:
    done = run_example("wan_caption_prompts", {"images": "gs://videos/photos/", "bucket": "videos"})
    assert done.states()["make_videos"] == "success"
    return done


def rows(bucket: Bucket) -> dict[str, str]:
    lines = map(json.loads, bucket.read("captioned/prompts.jsonl").decode().splitlines())
    return {line["image"].rpartition("/")[2]: line["prompt"] for line in lines}


def bought(bucket: Bucket) -> list[str]:
    return sorted(one["inputs"]["prompt"] for one in bucket.sandbox.ledger()["purchases"])


def test_each_image_gets_its_own_prompt_and_a_saved_prompt_is_used_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without_a_model(name: str) -> ModuleSpec | None:
        return None if name == "airflow.providers.common.ai" else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_a_model)
    put_photo(bucket, "red_boat")
    run()
    assert rows(bucket) == {"red_boat.jpg": "A slow move closer to the red boat"}
    bucket.put(
        "captioned/prompts.jsonl",
        json.dumps({"image": "gs://videos/photos/red_boat.jpg", "prompt": "The boat rocks"}).encode(),
    )
    put_photo(bucket, "harbour")
    for _ in range(2):
        run()
    assert rows(bucket) == {
        "red_boat.jpg": "The boat rocks",
        "harbour.jpg": "A slow move closer to the harbour",
    }
    assert bought(bucket) == [
        "A slow move closer to the harbour",
        "A slow move closer to the red boat",
        "The boat rocks",
    ]


def test_a_language_model_writes_the_prompts_where_its_provider_is_installed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.common.ai", reason="needs apache-airflow-providers-common-ai")
    connection: dict[str, Any] = {
        "conn_type": "pydanticai",
        "extra": {"model": "test"},
    }  # answers without a network
    monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))
    put_photo(bucket, "boat")
    run()
    (prompt,) = rows(bucket).values()
    assert prompt == "success (no tool calls)"  # the words of that model
    assert bought(bucket) == [prompt]
