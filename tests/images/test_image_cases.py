# SPDX-License-Identifier: Apache-2.0
"""Real files that failed once: plan, preparation and submit agree, whatever other code does to Pillow."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from PIL import Image, ImageFile

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.dataset import DatasetReader
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.preparation import Preparation, Unusable, Usable
from airflow_provider_wan.images.prepare import prepare
from airflow_provider_wan.images.source import ImageOptions, ImageSources
from airflow_provider_wan.model_api.schema import LazyModel, Model
from tests.image_samples import encoded, photo
from tests.sandboxes import MODEL, Bucket

CASES = Path(__file__).parent / "cases"
FILES = sorted(path for path in CASES.iterdir() if path.suffix not in (".md", "") and path.name[0] != ".")
LOG = logging.getLogger(__name__)
#: The expected result for each file: its size when prepared, or the rule that it breaks and that cannot be
#: fixed.
RIGHT: dict[str, tuple[int, int] | str] = {
    "odd_801x601.heic": (801, 601),
    "junk_before_dqt.jpg": (800, 600),
    "no_iend.png": (800, 600),
    "xmp_orientation6.png": (800, 600),
    "float32.tif": "decodable",
    "truncated_55pct.jpg": "decodable",
    "tiny_6x6.jpg": "min_side_px",
}
#: Faults that the header does not show: a plan counts the image as usable.
BEHIND_THE_HEADER = {"truncated_55pct.jpg"}
Sources = Callable[..., ImageSources]


@pytest.fixture
def sources(bucket: Bucket) -> Sources:
    def make(**options: object) -> ImageSources:
        options.setdefault("allow_private", True)
        return ImageSources(LazyModel(MODEL), lambda: bucket.client, LOG, options=ImageOptions(**options))  # type: ignore[arg-type]

    return make


@pytest.fixture(params=["Pillow as it is", "Pillow changed by other code"])
def pillow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "Pillow changed by other code":
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)


def test_every_case_is_judged() -> None:
    assert {path.name for path in FILES} == set(RIGHT)


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_plan_preparation_and_submit_agree(path: Path, bucket: Bucket, sources: Sources) -> None:
    right = RIGHT[path.name]
    bucket.put(f"in/{path.name}", path.read_bytes())
    uri = f"gs://videos/in/{path.name}"
    reader = DatasetReader(lambda: bucket.client)
    preparation = Preparation(sources(staging="gs://videos/staged"), workers=1)

    (planned,) = preparation.plan(reader.rows("gs://videos/in/"))
    (prepared,) = preparation.run(reader.rows("gs://videos/in/"))

    if isinstance(right, str):
        assert isinstance(prepared, Unusable)
        assert right in [problem["rule"] for problem in prepared.problems]
        assert isinstance(planned, Usable if path.name in BEHIND_THE_HEADER else Unusable)
        for options in ({}, {"staging": "gs://videos/staged"}):
            with pytest.raises(WanInputError, match=r"Upload it again|Nothing was bought"):
                sources(**options).open(uri).addresses()["img_url"]
        return
    assert isinstance(planned, Usable)
    assert isinstance(prepared, Usable)
    image = prepared.row.images[0].prepared
    assert image is not None
    assert (image.width, image.height) == right
    sent = requests.get(sources(staging="gs://videos/staged").open(uri).addresses()["img_url"], timeout=60).content
    assert (inspect(sent).width, inspect(sent).height) == right


@pytest.mark.usefixtures("pillow")
@pytest.mark.parametrize("name", ["junk_before_dqt.jpg", "no_iend.png", "xmp_orientation6.png"])
def test_image_that_every_viewer_opens_is_sent_as_it_is_without_staging(
    name: str, bucket: Bucket, sources: Sources
) -> None:
    bucket.put(name, (CASES / name).read_bytes())
    assert sources().open(f"gs://videos/{name}").addresses()["img_url"].endswith(name)


@pytest.mark.usefixtures("pillow")
def test_cut_image_behind_a_web_address_is_refused_before_it_is_sent(bucket: Bucket, sources: Sources) -> None:
    bucket.put("cut.jpg", (CASES / "truncated_55pct.jpg").read_bytes())
    url = f"{bucket.sandbox.bucket_url}/videos/cut.jpg"
    for options in ({}, {"staging": "gs://videos/staged"}):
        with pytest.raises(WanInputError, match="truncated or damaged"):
            sources(**options).open(url).addresses()["img_url"]


def test_stray_bytes_between_jpeg_segments_are_removed_and_the_pixels_stay() -> None:
    data = (CASES / "junk_before_dqt.jpg").read_bytes()
    result = prepare(data, rules=_rules())
    assert result.changes == ("removed stray bytes between segments",)
    assert len(result.data) < len(data)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(result.data)) as after:
        assert before.tobytes() == after.tobytes()


def test_png_without_its_end_chunk_gets_one() -> None:
    data = (CASES / "no_iend.png").read_bytes()
    assert b"IEND" not in data
    result = prepare(data, rules=_rules())
    assert result.data.endswith(b"IEND\xaeB`\x82")
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(result.data)) as after:
        assert before.tobytes() == after.tobytes()


def test_orientation_that_only_xmp_gives_is_noted_in_log_and_plan(
    bucket: Bucket, sources: Sources, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("in/a.png", (CASES / "xmp_orientation6.png").read_bytes())
    preparation = Preparation(sources(staging="gs://videos/staged"), workers=1)
    rows = list(DatasetReader(lambda: bucket.client).rows("gs://videos/in/"))
    (planned,), (prepared,) = preparation.plan(rows), preparation.run(rows)
    for result in (planned, prepared):
        assert not isinstance(result, Unusable)
        assert "orientation 6 is given by XMP only and not applied" in result.notes[0]
    with caplog.at_level("WARNING"):
        sources().open("gs://videos/in/a.png").addresses()["img_url"]
    assert "orientation 6 is given by XMP only" in caplog.text


@pytest.mark.parametrize("too_small", ["upscale", "reject"])
def test_tiny_image_is_taken_by_a_model_without_a_least_side(too_small: str) -> None:
    data = (CASES / "tiny_6x6.jpg").read_bytes()
    rules = replace(_rules(), min_side_px=None)
    result = prepare(data, rules=rules, too_small=too_small)  # type: ignore[arg-type]
    assert (result.width, result.height, result.changes) == (6, 6, ())


def test_macos_companion_file_is_passed_over_and_counted(bucket: Bucket) -> None:
    bucket.put("in/._applephoto.jpg", (CASES / "._applephoto.jpg").read_bytes())
    bucket.put("in/applephoto.jpg", encoded(photo(), "JPEG"))
    reader = DatasetReader(lambda: bucket.client)
    assert len(list(reader.rows("gs://videos/in/"))) == 1
    assert reader.passed_over.kinds == {"macOS companion file": 1}
    with pytest.raises(WanInputError, match="macOS companion file"):
        inspect((CASES / "._applephoto.jpg").read_bytes(), name="._applephoto.jpg")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF"])
def test_pillow_settings_of_other_code_decide_nothing_and_are_kept(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"speed": 10} if fmt == "AVIF" else {}
    data = encoded(photo(), fmt, **options)
    expected = prepare(data, rules=_rules()).sha256
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert prepare(data, rules=_rules()).sha256 == expected
    for part in (0.6, 0.9, 0.99):
        with pytest.raises(WanInputError, match="truncated or damaged"):
            prepare(data[: int(len(data) * part)], rules=_rules())
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, 100)


def _rules():  # type: ignore[no-untyped-def]
    (rules,) = Model.bundled(MODEL).images
    assert rules is not None
    return rules
