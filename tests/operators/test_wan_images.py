# SPDX-License-Identifier: Apache-2.0
"""Preparing whole datasets, against the sandbox's bucket and API."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from PIL import Image

from airflow_provider_wan.exceptions import WanInputError, WanStorageError
from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_images import WanPrepareImagesOperator
from tests.image_samples import (
    animation,
    claiming_size,
    encoded,
    exif_with,
    jpeg_claiming_size,
    noise,
    photo,
    quadrants,
    sixteen_bit_png,
)
from tests.sandboxes import MODEL, Bucket
from tests.task_runs import make_context

STAGING = "gs://videos/staged"
Run = Callable[..., Any]


@pytest.fixture
def pushed() -> dict[str, Any]:
    """XComs that a task pushes besides its return value."""
    return {}


@pytest.fixture
def run(bucket: Bucket, pushed: dict[str, Any]) -> Run:
    ti = SimpleNamespace(
        dag_id="shoes",
        run_id="manual__2026-01-01T00:00:00+00:00",
        task_id="prepare",
        map_index=-1,
        xcom_push=lambda key, value: pushed.__setitem__(key, json.loads(json.dumps(value))),
    )

    def prepare(dataset: Any, **parameters: Any) -> Any:
        parameters.setdefault("staging", STAGING)
        task = WanPrepareImagesOperator(task_id="prepare", dataset=dataset, **parameters)
        return task.execute({"ti": ti, "task_instance": ti})

    return prepare


def fits(width: int = 640, height: int = 480) -> bytes:
    return encoded(photo(width, height), "JPEG", quality=90)


def turned() -> bytes:
    return encoded(photo(640, 480), "JPEG", quality=90, exif=exif_with(orientation=6, gps=True))


def lines(bucket: Bucket, uri: str) -> list[dict[str, Any]]:
    name = uri.removeprefix("gs://videos/")
    return [json.loads(line) for line in bucket.read(name).decode().splitlines()]


def writes(bucket: Bucket) -> int:
    return sum(about["writes"] for name, about in bucket.objects("staged/").items() if "/manifests/" not in name)


def test_a_dataset_comes_out_as_chunks_of_prepared_rows(bucket: Bucket, run: Run, pushed: dict[str, Any]) -> None:
    for number in range(4):
        bucket.put(f"in/{number}.jpg", fits(640 + number))
    bucket.put("in/4.jpg", turned())
    chunks = run("gs://videos/in/", chunk_size=2, inputs={"prompt": "waves"})
    assert [uri.rpartition("/")[2] for uri in chunks] == [f"chunk-0000{n}.jsonl" for n in range(3)]
    assert [len(lines(bucket, uri)) for uri in chunks] == [2, 2, 1]

    plain = lines(bucket, chunks[0])[0]
    data = fits(640)
    assert plain == {
        "source": "gs://videos/in/0.jpg",
        "staged_uri": "gs://videos/in/0.jpg",
        "width": 640,
        "height": 480,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "changes": [],
        "identity": f"md5:{hashlib.md5(data).hexdigest()}",
        "inputs": {"prompt": "waves"},
        "variation": None,
    }
    [fixed] = lines(bucket, chunks[2])
    assert fixed["staged_uri"].startswith(f"{STAGING}/")
    assert (fixed["width"], fixed["height"]) == (480, 640)
    assert fixed["changes"][0] == "turned upright (orientation 6)"
    assert hashlib.sha256(bucket.read(fixed["staged_uri"].removeprefix("gs://videos/"))).hexdigest() == fixed["sha256"]
    assert pushed["summary"]["images"] == 5
    assert lines(bucket, pushed["summary"]["report"]) == []


def test_rerun_reads_and_stages_nothing_and_returns_the_same(bucket: Bucket, run: Run) -> None:
    for number in range(3):
        bucket.put(f"in/{number}.jpg", fits(640 + number) if number else turned())
    first = run("gs://videos/in/")
    before, rows, read = writes(bucket), lines(bucket, first[0]), bucket.sandbox.bucket_control("calls")
    assert run("gs://videos/in/") == first
    again = bucket.sandbox.bucket_control("calls")
    assert lines(bucket, first[0]) == rows
    assert writes(bucket) == before == 3
    assert again["bytes_read"] == read["bytes_read"]


HOSTILE: dict[str, tuple[bytes, str]] = {
    "bomb.png": (claiming_size(60_000, 60_000), "image"),
    "bomb.jpg": (jpeg_claiming_size(29_000, 29_000), "image"),
    "truncated.jpg": (encoded(photo(640, 480), "JPEG", quality=90)[:-3000], "decodable"),
    "truncated.png": (encoded(noise(400, 400), "PNG")[:-3000], "decodable"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "image"),
    "empty.jpg": (b"", "image"),
    "pixel.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), "min_side_px"),
    "strip.png": (encoded(Image.new("RGB", (25_000, 20)), "PNG"), "max_side_px"),
    "endless.png": (claiming_size(30_000, 400), "image"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="400"/>', "image"),
    "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "image"),
    "random.webp": (random.Random(3).randbytes(5000), "image"),
}
MENDED: dict[str, bytes] = {
    "wrong suffix.png": encoded(photo(640, 480), "JPEG", quality=90),
    "sixteen.png": sixteen_bit_png(),
    "palette.png": encoded(quadrants().convert("P"), "PNG"),
    "transparent.png": encoded(quadrants().convert("RGBA"), "PNG"),
    "cmyk.jpg": encoded(photo(640, 480).convert("CMYK"), "JPEG"),
    "progressive.jpg": encoded(photo(640, 480), "JPEG", progressive=True),
    "moving.webp": animation("WEBP"),
    "moving.gif": animation("GIF"),
    "grey.jpg": encoded(photo(640, 480).convert("L"), "JPEG"),
    "große Höhe ☂ 100%.jpg": encoded(photo(640, 2400), "JPEG"),
    "tiny.jpg": encoded(photo(100, 120), "JPEG"),
    "photo.tiff": encoded(photo(640, 480), "TIFF"),
    "photo.heic": b"",
}


def _heic() -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    return encoded(photo(640, 480), "HEIF")


def test_fixable_images_are_fixed_and_the_others_reported(bucket: Bucket, run: Run, pushed: dict[str, Any]) -> None:
    for name, (data, _) in HOSTILE.items():
        bucket.put(f"in/{name}", data)
    for name, data in MENDED.items():
        bucket.put(f"in/{name}", data or _heic())
    chunks = run("gs://videos/in/", on_invalid="skip", tolerated_share=0.6)
    rows = [row for uri in chunks for row in lines(bucket, uri)]
    assert {row["source"] for row in rows} == {f"gs://videos/in/{name}" for name in MENDED}
    for row in rows:
        assert 360 <= min(row["width"], row["height"]) <= max(row["width"], row["height"]) <= 2000, row
    report = lines(bucket, pushed["summary"]["report"])
    assert {one["image"]: one["rule"] for one in report} == {
        f"gs://videos/in/{name}": rule for name, (_, rule) in HOSTILE.items()
    }
    assert all(one["message"] and one["row"] for one in report)
    assert pushed["summary"]["unusable"] == len(HOSTILE)


def test_one_bad_image_fails_the_task_after_the_rest_is_prepared(bucket: Bucket, run: Run) -> None:
    bucket.put("in/a.jpg", turned())
    bucket.put("in/b.jpg", b"<html>")
    bucket.put("in/c.png", encoded(quadrants().convert("RGBA"), "PNG"))
    with pytest.raises(WanInputError, match=r"1 of 3 images \(33.3%\) can't be used; see gs://") as failed:
        run("gs://videos/in/")
    assert isinstance(failed.value, AirflowFailException)
    assert writes(bucket) == 2


def test_more_than_the_tolerated_share_fails(bucket: Bucket, run: Run) -> None:
    for number in range(4):
        bucket.put(f"in/{number}.jpg", fits() if number else b"x")
    with pytest.raises(WanInputError, match=r"tolerated_share is 20.0%"):
        run("gs://videos/in/", on_invalid="skip", tolerated_share=0.2)
    assert run("gs://videos/in/", on_invalid="skip", tolerated_share=0.25)


def test_dataset_without_a_usable_image_fails_even_if_all_failures_are_tolerated(bucket: Bucket, run: Run) -> None:
    bucket.put("in/0.jpg", b"x")
    with pytest.raises(WanInputError, match="No usable image is left"):
        run("gs://videos/in/", on_invalid="skip", tolerated_share=1)


def test_manifest_columns_override_the_task_and_bad_rows_are_reported(
    bucket: Bucket, run: Run, pushed: dict[str, Any]
) -> None:
    bucket.put("in/a.jpg", fits())
    table = [
        "image,prompt,seed,resolution,variation,sku",
        "a.jpg,rain,7,1080P,b,s1",
        "a.jpg,,,,,s2",
        "a.jpg,,seven,,,s3",
        "vanished.jpg,,,,,s4",
        "http://127.0.0.1:1/x.jpg,,,,,s5",
        "ftp://h/x.jpg,,,,,s6",
    ]
    bucket.put("in/set.csv", "\n".join(table).encode())
    chunks = run(
        "gs://videos/in/set.csv",
        inputs={"prompt": "waves", "resolution": "480P"},
        variation="a",
        passthrough=["sku"],
        on_invalid="skip",
        tolerated_share=0.9,
    )
    first, second = lines(bucket, chunks[0])
    assert (first["inputs"], first["variation"]) == (
        {"prompt": "rain", "seed": "7", "resolution": "1080P"},
        "b",
    )
    assert (second["inputs"], second["variation"]) == ({"prompt": "waves", "resolution": "480P"}, "a")
    assert [row["passthrough"] for row in (first, second)] == [{"sku": "s1"}, {"sku": "s2"}]
    report = lines(bucket, pushed["summary"]["report"])
    assert [(one["row"].rpartition(" ")[2], one["rule"]) for one in report] == [
        ("4", "inputs"),
        ("5", "address"),
        ("6", "reachable"),
        ("7", "row"),
    ]


def test_images_of_the_web_go_as_they_are_unless_they_do_not_fit_or_their_link_is_signed(
    bucket: Bucket, run: Run
) -> None:
    bucket.put("web/fits.jpg", fits())
    bucket.put("web/turned.jpg", turned())
    web = f"{bucket.sandbox.bucket_url}/videos/web"
    urls = [f"{web}/fits.jpg", f"{web}/turned.jpg", f"{web}/fits.jpg?sig=s3cret"]
    rows = lines(bucket, run(urls)[0])
    assert [row["source"] for row in rows] == [urls[0], urls[1], f"{web}/fits.jpg"]
    assert rows[0]["staged_uri"] == urls[0]
    assert all(row["staged_uri"].startswith(f"{STAGING}/") for row in rows[1:])
    assert all(b"s3cret" not in bucket.read(name) for name in bucket.objects("staged/manifests/"))
    before = writes(bucket)
    run(urls)
    assert writes(bucket) == before


def test_unavailable_bucket_is_not_reported_as_bad_images(
    bucket: Bucket, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_wan.hooks import gcs

    bucket.put("in/a.jpg", fits())
    monkeypatch.setattr(gcs, "RETRY_FOR_S", 0.1)
    with pytest.raises(WanStorageError, match="no such bucket"):
        run("gs://videos/in/", staging="gs://nobody-has-this/staged")


def test_image_deleted_after_the_listing_is_reported_and_the_others_prepared(bucket: Bucket) -> None:
    from airflow_provider_wan.images.dataset import DatasetReader
    from airflow_provider_wan.images.preparation import Preparation, Unusable, Usable
    from airflow_provider_wan.images.source import ImageOptions, ImageSources
    from airflow_provider_wan.model_api.schema import LazyModel

    for name in ("a", "b", "c"):
        bucket.put(f"in/{name}.jpg", fits(640 + ord(name)))
    rows = list(DatasetReader(lambda: bucket.client).rows("gs://videos/in/"))
    bucket.client.bucket("videos").blob("in/b.jpg").delete()
    sources = ImageSources(
        LazyModel(MODEL), lambda: bucket.client, logging.getLogger(), options=ImageOptions(staging=STAGING)
    )
    done = list(Preparation(sources, workers=2).run(rows))
    assert [type(one) for one in done] == [Usable, Unusable, Usable]
    assert isinstance(done[1], Unusable)
    assert "no such object" in done[1].problems[0]["message"]


def test_signatures_are_in_no_manifest_xcom_or_log(
    bucket: Bucket, run: Run, pushed: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    bucket.put("in/a.jpg", turned())
    chunks = run([f"{bucket.sandbox.bucket_url}/videos/in/a.jpg?X-Amz-Signature={'ab' * 20}"])
    log = capfd.readouterr().out
    assert "1 images for model" in log
    manifest = bucket.read(chunks[0].removeprefix("gs://videos/")).decode()
    assert "X-Amz" not in json.dumps([chunks, pushed]) + manifest + log


# -- planning --------------------------------------------------------------------------------------------------


def test_a_plan_counts_and_prices_and_writes_nothing(bucket: Bucket, run: Run) -> None:
    bucket.put("in/a.jpg", fits())
    bucket.put("in/b.jpg", turned())
    bucket.put("in/c.jpg", fits())  # the same content: one video
    bucket.put("in/d.jpg", b"<html>")
    bucket.put("in/e.png", encoded(Image.new("RGB", (25_000, 20)), "PNG"))
    before = bucket.objects()
    bucket.sandbox.bucket_control("calls", method="DELETE")
    plan = run("gs://videos/in/", dry_run="on", inputs={"prompt": "waves"})
    assert bucket.objects() == before
    not_counts = ("problems", "price_usd", "expected_cost_usd", "passed_over_by_kind", "passed_over_first")
    not_counts += ("prices", "price_source", "pricing_note")
    assert {name: plan[name] for name in plan if name not in not_counts} == {
        "model_id": MODEL,
        "images": 5,
        "usable_as_they_are": 2,
        "fixable": 1,
        "unusable": 2,
        "by_rule": {"image": 1, "max_side_px": 1, "min_side_px": 1},
        "prepared_before": 0,
        "headers_only": 3,
        "bought_before": 0,
        "repeated": 1,
        "videos_to_buy": 2,
        "passed_over": 0,
    }
    assert plan["expected_cost_usd"] == pytest.approx(2 * plan["price_usd"])
    assert plan["price_usd"] > 0
    assert plan["price_source"] == "base", "nothing is learned yet"
    assert [one["rule"] for one in plan["problems"]] == ["image", "min_side_px", "max_side_px"]


def test_plan_and_summary_count_and_name_what_was_passed_over(bucket: Bucket, run: Run, pushed: dict[str, Any]) -> None:
    bucket.put("in/a.jpg", fits())
    bucket.put("in/._a.jpg", b"companion")
    bucket.put("in/notes.txt", b"x")
    plan = run("gs://videos/in/", dry_run=True)
    run("gs://videos/in/")
    for result in (plan, pushed["summary"]):
        assert result["images"] == 1
        assert result["passed_over"] == 2
        assert result["passed_over_by_kind"] == {".txt": 1, "macOS companion file": 1}
        assert result["passed_over_first"] == ["gs://videos/in/._a.jpg", "gs://videos/in/notes.txt"]


def test_a_plan_reads_headers_only(bucket: Bucket, run: Run) -> None:
    for number in range(5):
        bucket.put(f"in/{number}.jpg", encoded(noise(1000, 800 + number), "JPEG", quality=95))
    bucket.sandbox.bucket_control("calls", method="DELETE")
    run("gs://videos/in/", dry_run=True)
    assert bucket.sandbox.bucket_control("calls")["bytes_read"] <= 5 * 64 * 1024


def test_a_plan_knows_what_was_prepared_and_bought_before(bucket: Bucket, run: Run, pushed: dict[str, Any]) -> None:
    from airflow_provider_wan.operators.wan import WanSubmitOperator

    bucket.put("in/a.jpg", fits())
    bucket.put("in/b.jpg", turned())
    [chunk] = run("gs://videos/in/", inputs={"prompt": "waves"})
    row = lines(bucket, chunk)[1]
    ti = SimpleNamespace(
        dag_id="d", run_id="r", task_id="t", map_index=-1, xcom_push=lambda key, value: None, try_number=1
    )
    WanSubmitOperator(task_id="submit", image=row, journal="gs://videos/journal").execute({"ti": ti})
    plan = run("gs://videos/in/", dry_run=True, inputs={"prompt": "waves"}, journal="gs://videos/journal")
    assert (plan["prepared_before"], plan["bought_before"], plan["videos_to_buy"]) == (2, 1, 1)
    other = run("gs://videos/in/", dry_run=True, inputs={"prompt": "rain"}, journal="gs://videos/journal")
    assert other["videos_to_buy"] == 2


def test_rows_whose_video_has_landed_are_left_out_of_the_chunks(
    bucket: Bucket, run: Run, pushed: dict[str, Any]
) -> None:
    bucket.put("in/a.jpg", fits())
    bucket.put("in/b.jpg", turned())
    inputs, journal = {"prompt": "waves"}, "gs://videos/journal"
    chunks = run("gs://videos/in/", inputs=inputs, chunk_size=1)
    batch = {"bucket_name": "videos", "object_name": "out/", "journal": journal, "deferrable": False}
    for number, chunk in enumerate(chunks):
        task = WanBatchOperator(task_id=f"batch{number}", images=chunk, check_image=False, **batch)
        task.execute(make_context(task_id=task.task_id))
        left = run("gs://videos/in/", inputs=inputs, journal=journal, skip_landed=True)
        assert [len(lines(bucket, uri)) for uri in left] == [1 - number] * (1 - number)
        assert pushed["summary"]["landed_before"] == number + 1
    other = run("gs://videos/in/", inputs={"prompt": "rain"}, journal=journal, skip_landed=True)
    assert [len(lines(bucket, uri)) for uri in other] == [2]
    with pytest.raises(AirflowFailException, match="journal="):
        run("gs://videos/in/", inputs=inputs, skip_landed=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_invalid": "maybe"},
        {"on_empty": "maybe"},
        {"tolerated_share": 2},
        {"chunk_size": 0},
        {"workers": 0},
    ],
)
def test_invalid_parameters_are_refused_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WanPrepareImagesOperator(task_id="prepare", dataset="gs://b/x/", staging=STAGING, **wrong)


def test_a_manifest_on_disk_and_its_files_are_staged(bucket: Bucket, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(fits())
    (tmp_path / "set.jsonl").write_text('{"image": "a.jpg"}\n')
    [row] = lines(bucket, run(str(tmp_path / "set.jsonl"))[0])
    assert row["staged_uri"].startswith(f"{STAGING}/")
    assert row["changes"] == []
