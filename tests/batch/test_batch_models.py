# SPDX-License-Identifier: Apache-2.0
"""Batches and preparations of every model of the sandbox's table, whose images the sandbox checks by their rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_wan.batch.report import Report
from airflow_provider_wan.hooks import wan as hooks
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator
from tests.batch.batch_support import connection, manifest, outcomes, run
from tests.image_samples import encoded, photo
from tests.sandboxes import Bucket
from wan_sandbox.server import Sandbox

STAGING = "gs://videos/staged"


@dataclass(frozen=True)
class Table:
    """How a model of the table is used.

    :param field: the input that takes the source image.
    :param second: the input that takes a second image.
    :param inputs: what the model needs besides.
    """

    field: str
    second: str | None = None
    inputs: tuple[tuple[str, Any], ...] = ()


WAN_3 = "wan-ai/wan-3.0/image-to-video"
FIRST_LAST = "bytedance/seedance-2.5/first-last-frame/480p"
MINIMAX = "minimax/minimax-h3/image-to-video"
MODELS = {
    "wan-ai/wan-2-2/image-to-video": Table("img_url"),
    "wan-ai/wan-2-5/image-to-video": Table("img_url"),
    "wan-ai/wan-2-6/image-to-video": Table("img_url"),
    "wan-ai/wan-2.7/image-to-video": Table("image_url", "end_image_url"),
    WAN_3: Table("image_url", "end_image_url"),
    "wan-ai/wan-3.0-prime/image-to-video": Table("image_url", "end_image_url"),
    "bytedance/seedance-2.5/image-to-video/480p": Table("image"),
    "bytedance/seedance-2.5/image-to-video/4k": Table("image"),
    FIRST_LAST: Table("first_frame", "last_frame"),
    "alibaba/happyhorse-1.1/image-to-video": Table("image_url"),
    "kling/kling-3.0/pro/image-to-video": Table("start_image_url", "end_image_url"),
    "kling/kling-video-o3/pro/image-to-video": Table("image", "end_image"),
    MINIMAX: Table("image", "last_image", (("duration", 6), ("resolution", "768p"))),
    "lightricks/ltx-2.5/image-to-video/fast": Table("image_url", "end_image_url"),
    "lightricks/ltx-2.5/image-to-video/pro": Table("image_url", "end_image_url"),
}
EACH = pytest.mark.parametrize("model_id", list(MODELS))
#: MiniMax states its limits in the text only, so nothing can be fixed for it; LTX has none for pixels.
TWO_WITH_PIXEL_RULES = pytest.mark.parametrize(
    "model_id",
    [
        name
        for name, table in MODELS.items()
        if table.second and not name.startswith(("minimax", "lightricks"))
    ],
)


@pytest.fixture(scope="module")
def checking_sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=200, concurrency=10, video_bytes=20_000, buckets=("videos",)) as started:
        yield started


@pytest.fixture(autouse=True)
def sandbox(checking_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.05")
    monkeypatch.setattr(hooks, "_pages", {})
    checking_sandbox.reset()
    checking_sandbox.control("speed", {"speed": 200, "generation_seconds": None})
    for name, value in checking_sandbox.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(checking_sandbox, allow_private_images=True))
    return checking_sandbox


@pytest.fixture
def bucket(sandbox: Sandbox) -> Bucket:
    from google.cloud import storage

    return Bucket(storage.Client(), "videos", sandbox)


def image(width: int = 800, height: int = 600, **options: Any) -> bytes:
    return encoded(photo(width, height), "JPEG", quality=90, **options)


def start(images: Any, model_id: str, **more: Any) -> Report:
    inputs = (
        {"prompt": "waves", **dict(MODELS[model_id].inputs)} if model_id in MODELS else {"prompt": "waves"}
    )
    return run(images, model_id=model_id, inputs=inputs, check_images=True, **more)


def submitted(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Return the inputs of each purchase."""
    return [dict(purchase["inputs"]) for purchase in sandbox.ledger()["purchases"]]


def row_of(
    model_id: str, image: str = "gs://videos/a.jpg", second: str = "gs://videos/b.jpg"
) -> dict[str, str]:
    """Return a row with every image that a model needs."""
    table = MODELS[model_id]
    return {"image": image} | ({table.second: second} if table.second else {})


def prepare(dataset: Any, model_id: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    """Prepare a dataset; return what the task returns, and its summary."""
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        task_id="prepare",
        map_index=-1,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
    )
    inputs = {"prompt": "waves", **dict(MODELS[model_id].inputs)}
    task = WanPrepareImagesOperator(
        task_id="prepare", dataset=dataset, staging=STAGING, model_id=model_id, inputs=inputs, **more
    )
    return task.execute({"ti": ti, "task_instance": ti}), pushed.get("summary", {})


def lines(bucket: Bucket, uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bucket.read(uri.removeprefix("gs://videos/")).decode().splitlines()]


# -- every model -------------------------------------------------------------------------------------------


@EACH
def test_batch_lands_a_video_of_each_row(model_id: str, sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600))
    report = start([row_of(model_id)], model_id)
    assert outcomes(report) == {"landed": 1}, manifest(report)
    (inputs,) = submitted(sandbox)
    table = MODELS[model_id]
    assert inputs[table.field].endswith("/videos/a.jpg")
    assert table.second is None or inputs[table.second].endswith("/videos/b.jpg")
    assert report.summary["cost_usd"] > 0
