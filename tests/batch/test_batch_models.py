# SPDX-License-Identifier: Apache-2.0
"""Batches and preparations of every model of the sandbox's table, whose images the sandbox checks by their rules."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from airflow_provider_wan.batch.report import Report
from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks import wan as hooks
from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.source import ImageOptions, ImageSources
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator
from airflow_provider_wan.utils.images import open_images
from airflow_provider_wan.utils.params import model_of
from tests.batch.batch_support import LOG, manifest, outcomes, point_at, run, run_over_a_wait
from tests.image_samples import encoded, exif_with, photo
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
    [name for name, table in MODELS.items() if table.second and not name.startswith(("minimax", "lightricks"))],
)


@pytest.fixture(scope="module")
def checking_sandbox() -> Iterator[Sandbox]:
    with Sandbox(speed=2000, concurrency=10, video_bytes=20_000, buckets=("videos",)) as started:
        yield started


@pytest.fixture(autouse=True)
def sandbox(checking_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("WAN_POLL_INTERVAL_SCALE", "0.01")
    monkeypatch.setattr(hooks, "_pages", {})
    checking_sandbox.reset()
    checking_sandbox.control("speed", {"speed": 2000, "generation_seconds": None})
    point_at(monkeypatch, checking_sandbox, allow_private_images=True)
    return checking_sandbox


@pytest.fixture
def bucket(sandbox: Sandbox) -> Bucket:
    from google.cloud import storage

    return Bucket(storage.Client(), "videos", sandbox)


def image(width: int = 800, height: int = 600, **options: Any) -> bytes:
    return encoded(photo(width, height), "JPEG", quality=90, **options)


def start(images: Any, model_id: str, **more: Any) -> Report:
    inputs = {"prompt": "waves", **dict(MODELS[model_id].inputs)} if model_id in MODELS else {"prompt": "waves"}
    return run(images, model_id=model_id, inputs=inputs, check_images=True, **more)


def reuses(sandbox: Sandbox, images: Any, model_id: str, **more: Any) -> bool:
    """Run a batch; return whether it had all its videos without a purchase."""
    before = len(submitted(sandbox))
    return set(outcomes(start(images, model_id, **more))) == {"landed"} and len(submitted(sandbox)) == before


def submitted(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Return the inputs of each purchase."""
    return [dict(purchase["inputs"]) for purchase in sandbox.ledger()["purchases"]]


def row_of(model_id: str, image: str = "gs://videos/a.jpg", second: str = "gs://videos/b.jpg") -> dict[str, str]:
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
def test_batch_lands_a_video_that_plan_and_preparation_find(model_id: str, sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600))
    rows = [row_of(model_id)]
    report = start(rows, model_id)
    assert outcomes(report) == {"landed": 1}, manifest(report)
    (inputs,) = submitted(sandbox)
    table = MODELS[model_id]
    assert inputs[table.field].endswith("/videos/a.jpg")
    assert table.second is None or inputs[table.second].endswith("/videos/b.jpg")
    assert report.summary["cost_usd"] > 0
    plan, _ = prepare(rows, model_id, dry_run=True, journal="gs://videos/_journal")
    assert (plan["model_id"], plan["images"], plan["bought_before"]) == (model_id, 1, 1)
    (chunk,), _ = prepare(rows, model_id)
    assert reuses(sandbox, chunk, model_id)


@EACH
def test_prepared_rows_carry_their_images_into_a_batch(model_id: str, sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("a.jpg", image(exif=exif_with(orientation=6, gps=True)))
    bucket.put("b.jpg", image(820, 600, exif=exif_with(gps=True)))
    (chunk,), summary = prepare([row_of(model_id)], model_id)
    assert summary["fixable"] == 1
    assert outcomes(start(chunk, model_id)) == {"landed": 1}
    (inputs,) = submitted(sandbox)
    table = MODELS[model_id]
    assert "/staged/" in inputs[table.field]
    assert table.second is None or "/staged/" in inputs[table.second]


# -- rules of images ---------------------------------------------------------------------------------------


@TWO_WITH_PIXEL_RULES
@pytest.mark.parametrize("which", ["first", "second"])
def test_an_image_that_breaks_a_rule_is_refused_and_named_before_anything_is_sent(
    model_id: str, which: str, sandbox: Sandbox, bucket: Bucket
) -> None:
    bucket.put("a.jpg", image())
    bucket.put("small.jpg", image(200, 150))
    row = row_of(model_id, second="gs://videos/a.jpg") | {
        "image" if which == "first" else str(MODELS[model_id].second): "gs://videos/small.jpg"
    }
    (line,) = manifest(start([row], model_id))
    assert line["outcome"] == "refused"
    assert "small.jpg would be refused: it is 200x150 px, a side must have at least" in line["error"]
    assert sandbox.ledger()["submits"] == []


@TWO_WITH_PIXEL_RULES
def test_a_second_image_that_is_too_small_is_enlarged_and_staged(
    model_id: str, sandbox: Sandbox, bucket: Bucket
) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(200, 150))
    assert outcomes(start([row_of(model_id)], model_id, staging=STAGING)) == {"landed": 1}
    (inputs,) = submitted(sandbox)
    sent = inputs[str(MODELS[model_id].second)]
    assert "/staged/" in sent
    assert inspect(requests.get(sent, timeout=10).content).height > 200


@TWO_WITH_PIXEL_RULES
def test_an_image_of_a_wrong_aspect_ratio_is_refused_with_rule_and_value_and_not_cropped(
    model_id: str, sandbox: Sandbox, bucket: Bucket
) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(3600, 400))
    rows = [row_of(model_id)]
    plan, _ = prepare(rows, model_id, dry_run=True)
    (problem,) = plan["problems"]
    assert (problem["rule"], problem["value"]) == ("max_aspect", 9)
    assert problem["message"].startswith(
        f"{MODELS[model_id].second}: it is 3600x400 px, and width / height (9) must be at most"
    )
    (line,) = manifest(start(rows, model_id, staging=STAGING))
    assert (line["outcome"], "must be at most" in line["error"]) == ("refused", True)
    assert sandbox.ledger()["submits"] == []


def test_a_row_is_fixed_if_only_its_second_image_is(bucket: Bucket) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600, exif=exif_with(gps=True)))
    for dry_run in (True, False):
        result, summary = prepare([row_of(WAN_3)], WAN_3, dry_run=dry_run)
        counts = result if dry_run else summary
        assert (counts["usable_as_they_are"], counts["fixable"]) == (0, 1)


def test_every_problem_of_every_image_of_a_row_is_reported(bucket: Bucket) -> None:
    bucket.put("a.jpg", image(4, 4))
    bucket.put("b.jpg", image(3600, 400))
    plan, _ = prepare([row_of(WAN_3)], WAN_3, dry_run=True)
    assert [(problem["image"], problem["rule"]) for problem in plan["problems"]] == [
        ("gs://videos/a.jpg", "min_side_px"),
        ("gs://videos/b.jpg", "max_aspect"),
    ]


# -- which video a second image makes ----------------------------------------------------------------------


def test_a_second_image_is_known_by_its_content_and_another_one_is_another_video(
    sandbox: Sandbox, bucket: Bucket
) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600))
    bucket.put("moved/b.jpg", image(820, 600))
    bucket.put("c.jpg", image(840, 600))
    assert outcomes(start([row_of(WAN_3)], WAN_3)) == {"landed": 1}
    assert reuses(sandbox, [row_of(WAN_3, second="gs://videos/moved/b.jpg")], WAN_3)
    assert outcomes(start([row_of(WAN_3, second="gs://videos/c.jpg")], WAN_3)) == {"landed": 1}
    assert outcomes(start([{"image": "gs://videos/a.jpg"}], WAN_3)) == {"landed": 1}
    assert len(submitted(sandbox)) == 3


def test_a_second_image_under_another_signature_is_the_same_video(sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600))
    url = f"{sandbox.bucket_url}/videos/b.jpg"
    first = start([row_of(WAN_3, second=f"{url}?X-Amz-Signature=ab")], WAN_3)
    again = start([row_of(WAN_3, second=f"{url}?X-Amz-Signature=cd")], WAN_3)
    assert outcomes(first) == outcomes(again) == {"landed": 1}
    assert "X-Amz" not in json.dumps([manifest(first), manifest(again)])
    assert len(submitted(sandbox)) == 1


@pytest.mark.parametrize("model_id", ["wan-ai/wan-2-2/image-to-video", WAN_3, FIRST_LAST, MINIMAX])
def test_a_single_submit_of_the_same_images_is_the_same_video(model_id: str, bucket: Bucket) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600))
    row, table, hook = row_of(model_id), MODELS[model_id], WanHook("wan_default")
    task = SimpleNamespace(model_id=model_id, log=LOG, image_field=None, schema=None, require_schema=False)
    model = model_of(task, hook)
    sources = ImageSources(model, storage_client, LOG, options=ImageOptions(allow_private=True))
    second = {table.second: row[table.second]} if table.second else {}
    inputs = {"prompt": "waves", **dict(table.inputs)}
    spec = open_images(sources, row["image"], second, inputs=inputs, variation=None).spec()
    (line,) = manifest(start([row], model_id))
    assert (line["outcome"], line["fingerprint"]) == ("landed", spec.fingerprint)


# -- forms of rows -----------------------------------------------------------------------------------------


def test_images_that_are_all_named_by_their_inputs_need_no_image_column(sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("in/a.jpg", image(exif=exif_with(gps=True)))
    bucket.put("in/b.jpg", image(820, 600))
    bucket.put("in/set.csv", b"first_frame,last_frame,prompt\na.jpg,b.jpg,rain\n")
    (chunk,), _ = prepare("gs://videos/in/set.csv", FIRST_LAST)
    (line,) = lines(bucket, chunk)
    assert (line["source"], line["input_name"]) == ("gs://videos/in/a.jpg", "first_frame")
    assert line["images"]["last_frame"]["staged_uri"] == "gs://videos/in/b.jpg"
    assert outcomes(start(chunk, FIRST_LAST)) == {"landed": 1}
    assert reuses(sandbox, "gs://videos/in/set.csv", FIRST_LAST)
    (inputs,) = submitted(sandbox)
    assert "/staged/" in inputs["first_frame"]
    assert inputs["prompt"] == "rain"


@pytest.mark.parametrize("row", ['"[""a.jpg"", ""b.jpg""]"', '"[""gs://videos/in/a.jpg"", ""gs://videos/in/b.jpg""]"'])
@pytest.mark.parametrize("column", ["image", "image_urls"])
def test_an_array_of_images_is_a_json_list_in_csv(column: str, row: str, sandbox: Sandbox, bucket: Bucket) -> None:
    model_id = "wan-ai/wan-3.0/reference-to-video"
    bucket.put("in/a.jpg", image())
    bucket.put("in/b.jpg", image(820, 600))
    bucket.put("in/set.csv", f"{column},prompt\n{row},rain\n".encode())
    assert outcomes(start("gs://videos/in/set.csv", model_id)) == {"landed": 1}
    (inputs,) = submitted(sandbox)
    assert [url.rpartition("/")[2] for url in inputs["image_urls"]] == ["a.jpg", "b.jpg"]


def test_one_image_of_a_model_that_takes_an_array_is_sent_as_a_list(sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("in/a.jpg", image())
    assert outcomes(start("gs://videos/in/", "wan-ai/wan-3.0/reference-to-video")) == {"landed": 1}
    (inputs,) = submitted(sandbox)
    assert inputs["image_urls"] == [f"{sandbox.bucket_url}/videos/in/a.jpg"]


def test_a_second_image_of_the_task_counts_for_every_image_of_a_prefix(sandbox: Sandbox, bucket: Bucket) -> None:
    for name in ("a", "b"):
        bucket.put(f"in/{name}.jpg", image(800 + ord(name), 600))
    bucket.put("end.jpg", image(820, 600))
    inputs = {"prompt": "waves", "end_image_url": "gs://videos/end.jpg"}
    assert outcomes(run("gs://videos/in/", model_id=WAN_3, inputs=inputs, check_images=True)) == {"landed": 2}
    assert all(each["end_image_url"].endswith("/videos/end.jpg") for each in submitted(sandbox))


@pytest.mark.parametrize("form", ["rows", "csv", "jsonl"])
def test_text_to_video_rows_have_no_image(form: str, sandbox: Sandbox, bucket: Bucket) -> None:
    prompts = ["rain", "snow", "rain"]
    dataset: Any = [{"prompt": prompt} for prompt in prompts]
    if form != "rows":
        text = "\n".join(["prompt", *prompts] if form == "csv" else map(json.dumps, dataset))
        bucket.put(f"set.{form}", text.encode())
        dataset = f"gs://videos/set.{form}"
    report = start(dataset, "wan-ai/wan-3.0/text-to-video")
    assert outcomes(report) == {"landed": 2}
    assert sorted(each["prompt"] for each in submitted(sandbox)) == ["rain", "snow"]
    assert all(line["uri"].startswith("gs://videos/out/video-") for line in manifest(report))
    assert reuses(sandbox, dataset, "wan-ai/wan-3.0/text-to-video")


def test_an_image_for_a_text_to_video_model_is_refused(sandbox: Sandbox) -> None:
    (line,) = manifest(start(["gs://videos/a.jpg"], "wan-ai/wan-3.0/text-to-video"))
    assert "names no input for an image" in line["error"]
    assert sandbox.ledger()["submits"] == []


# -- pages that can't be read ------------------------------------------------------------------------------


def over_a_wait(sandbox: Sandbox, images: Any, meanwhile: Callable[[], Any], **more: Any) -> Report:
    """Generate two videos one after the other, so that the second is submitted after a wait."""
    given: dict[str, Any] = {"model_id": WAN_3, "check_images": True, "limits": {"max_in_flight": 1}}
    return run_over_a_wait(sandbox, images, meanwhile, **given, **more)


@pytest.mark.parametrize("meanwhile", ["down", "other rules"])
def test_a_batch_keeps_the_rules_that_it_began_with_over_its_waits(
    meanwhile: str, sandbox: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("b.jpg", image(820, 600))
    for name in ("a", "c"):
        bucket.put(f"in/{name}.jpg", image(800 + ord(name), 600))
    rows = [row_of(WAN_3, f"gs://videos/in/{name}.jpg") for name in ("a", "c")]

    def other_process() -> None:
        monkeypatch.setattr(hooks, "_pages", {})  # it has no cached page
        if meanwhile == "down":
            sandbox.add_fault("model", "status", status=503)
        else:
            monkeypatch.setattr(hooks.WanHook, "model", lambda *args, **kwargs: pytest.fail("the page was read"))

    report = over_a_wait(sandbox, rows, other_process, staging=STAGING)
    assert outcomes(report) == {"landed": 2}, manifest(report)
    assert all(each["end_image_url"].endswith("/videos/b.jpg") for each in submitted(sandbox))


def test_prepared_images_outlive_their_dataset_over_a_wait(sandbox: Sandbox, bucket: Bucket) -> None:
    bucket.put("a.jpg", image(exif=exif_with(gps=True)))
    bucket.put("b.jpg", image(820, 600, exif=exif_with(gps=True)))
    (chunk,), _ = prepare([row_of(WAN_3), row_of(WAN_3, "gs://videos/b.jpg")], WAN_3)
    blob = bucket.client.bucket("videos").blob(chunk.removeprefix("gs://videos/"))
    report = over_a_wait(sandbox, chunk, blob.delete)
    assert outcomes(report) == {"landed": 2}, manifest(report)


def test_without_a_page_an_image_needs_its_input_named_and_a_rerun_buys_nothing(
    sandbox: Sandbox, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a.jpg", image())
    bucket.put("b.jpg", image(820, 600))
    start([row_of(WAN_3)], WAN_3)
    sandbox.add_fault("model", "status", status=404)
    monkeypatch.setattr(hooks, "_pages", {})
    (line,) = manifest(start([row_of(WAN_3)], WAN_3))
    assert 'Set image_field=, such as image_field="image_url"' in line["error"]
    assert reuses(sandbox, [row_of(WAN_3)], WAN_3, model={"image_field": "image_url"})
    with pytest.raises(WanInputError, match="require_schema=True"):
        start([row_of(WAN_3)], WAN_3, model={"image_field": "image_url", "require_schema": True})
    assert len(submitted(sandbox)) == 1


def test_a_given_schema_takes_the_place_of_the_page(
    sandbox: Sandbox, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.add_fault("model", "status", status=404)
    bucket.put("a.jpg", image())
    schema = {
        "properties": {"image_url": {"type": "string", "format": "image_uri"}, "prompt": {"type": "string"}},
        "required": ["image_url"],
    }
    with caplog.at_level(logging.WARNING):
        report = start(
            ["gs://videos/a.jpg", {"image": "gs://videos/a.jpg", "promt": "x"}],
            WAN_3,
            model={"schema": schema},
        )
    assert outcomes(report) == {"landed": 1, "refused": 1}
    assert "did you mean 'prompt'" in next(line["error"] for line in manifest(report) if line["error"])
