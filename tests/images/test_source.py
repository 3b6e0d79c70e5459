# SPDX-License-Identifier: Apache-2.0
"""From a source image to what RunComfy can fetch: identity, staged copies and links, against the sandbox's bucket."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.images.source import ImageOptions, ImageSources
from airflow_provider_wan.model_api.inputs import fingerprint
from tests.image_samples import encoded, exif_with, photo, quadrants
from tests.sandboxes import MODEL, Bucket

LOG = logging.getLogger(__name__)
PROMPT = {"prompt": "a slow wave"}
Sources = Callable[..., ImageSources]


@pytest.fixture
def sources(bucket: Bucket) -> Sources:
    def make(**options: Any) -> ImageSources:
        options.setdefault("allow_private", True)
        return ImageSources(MODEL, lambda: bucket.client, LOG, options=ImageOptions(**options))

    return make


def fits() -> bytes:
    return encoded(photo(640, 480), "JPEG", quality=90)


def turned() -> bytes:
    return encoded(photo(640, 480), "JPEG", quality=90, exif=exif_with(orientation=6, gps=True))


def test_what_counts_is_the_content_wherever_it_lies(
    bucket: Bucket, sources: Sources, tmp_path: Path
) -> None:
    bucket.put("a.jpg", fits())
    bucket.put("again/ä b.jpg", fits())
    (tmp_path / "c.jpg").write_bytes(fits())
    half = len(fits()) // 2
    bucket.put("1", fits()[:half])
    bucket.put("2", fits()[half:])
    handle = bucket.client.bucket("videos")
    handle.blob("composed.jpg").compose([handle.blob("1"), handle.blob("2")])
    assert handle.get_blob("composed.jpg").md5_hash is None

    addresses = [
        "gs://videos/a.jpg",
        "gs://videos/again/ä b.jpg",
        "gs://videos/composed.jpg",
        str(tmp_path / "c.jpg"),
    ]
    opened = [sources().open(address) for address in addresses]
    assert {one.identity for one in opened} == {f"md5:{hashlib.md5(fits()).hexdigest()}"}
    assert len({one.wanted(MODEL, PROMPT).fingerprint for one in opened}) == 1


def test_an_image_on_the_web_counts_as_its_address_whichever_parameter_names_it(sources: Sources) -> None:
    url = "https://images.example.com/a.jpg"
    wanted = sources().open(f"{url}?X-Amz-Signature=abc").wanted(MODEL, PROMPT, variation="2")
    assert wanted.fingerprint == fingerprint(MODEL, {**PROMPT, "img_url": url}, variation="2")
    assert wanted.recorded_inputs == {**PROMPT, "img_url": url}


def test_nothing_is_read_staged_or_signed_before_a_purchase(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", turned())
    bucket.sandbox.bucket_control("calls", method="DELETE")
    wanted = sources(staging="gs://videos/staged").open("gs://videos/a.jpg").wanted(MODEL, PROMPT)
    shown = bucket.sandbox.bucket_control("calls")
    assert shown["bytes_read"] == shown["bytes_written"] == 0
    assert wanted.recorded_inputs == {**PROMPT, "img_url": "gs://videos/a.jpg"}
    assert wanted.make_inputs()["img_url"].startswith(f"{bucket.sandbox.bucket_url}/videos/staged/")


def test_an_image_that_fits_is_sent_from_where_it_is(bucket: Bucket, sources: Sources) -> None:
    bucket.put("my photos/ä 1.jpg", fits())
    url = sources(staging="gs://videos/staged").open("gs://videos/my photos/ä 1.jpg").make_address()
    assert url == f"{bucket.sandbox.bucket_url}/videos/my%20photos/%C3%A4%201.jpg"
    copies = [name for name, about in bucket.objects("staged/").items() if about["size_bytes"]]
    assert copies == []


def test_a_second_time_nothing_is_read_and_nothing_is_written(bucket: Bucket, sources: Sources) -> None:
    bucket.put("turned.jpg", turned())
    bucket.put("fits.jpg", fits())
    first = [
        sources(staging="gs://videos/staged").open(f"gs://videos/{n}.jpg").make_address()
        for n in ("turned", "fits")
    ]
    bucket.sandbox.bucket_control("calls", method="DELETE")
    again = [
        sources(staging="gs://videos/staged").open(f"gs://videos/{n}.jpg").make_address()
        for n in ("turned", "fits")
    ]
    shown = bucket.sandbox.bucket_control("calls")
    assert again == first
    assert shown["bytes_read"] == shown["bytes_written"] == 0


def test_a_staged_copy_is_upright_and_private_data_is_gone(bucket: Bucket, sources: Sources) -> None:
    bucket.put("turned.jpg", turned())
    url = sources(staging="gs://videos/staged").open("gs://videos/turned.jpg").make_address()
    answer = requests.get(url, timeout=10)
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (480, 640)
        assert not image.getexif()
    assert answer.headers["Content-Type"] == "image/jpeg"


def test_another_background_is_another_copy(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.png", encoded(quadrants().convert("RGBA"), "PNG"))
    urls = [
        sources(staging="gs://videos/staged", background=colour).open("gs://videos/a.png").make_address()
        for colour in ("white", "#ffffff", "black")
    ]
    assert urls[0] == urls[1] != urls[2]


def test_without_staging_what_does_not_fit_is_refused_and_the_way_out_is_named(
    bucket: Bucket, sources: Sources
) -> None:
    bucket.put("a.png", encoded(quadrants().convert("RGBA"), "PNG"))
    with pytest.raises(WanInputError, match=r"gs://videos/a.png would be refused: .*transparency.*staging="):
        sources().open("gs://videos/a.png").make_address()


def test_an_image_cut_off_inside_its_pixels_is_found(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits()[:-3000])
    for options in ({}, {"staging": "gs://videos/staged"}):
        with pytest.raises(WanInputError, match=r"gs://videos/a.jpg: the file is truncated or damaged"):
            sources(**options).open("gs://videos/a.jpg").make_address()
    assert bucket.objects("staged/") == {}


def test_an_object_that_is_not_there_is_named(bucket: Bucket, sources: Sources) -> None:
    with pytest.raises(WanInputError, match=r"nobody\.jpg: there is no such object"):
        sources().open("gs://videos/nobody.jpg")


def test_an_object_replaced_after_the_look_is_not_sent(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    opened = sources().open("gs://videos/a.jpg")
    bucket.put("a.jpg", turned())
    with pytest.raises(WanInputError, match="replaced while it was looked at"):
        opened.make_address()


def test_an_address_on_the_web_that_fits_goes_as_it_is_with_its_signature(
    bucket: Bucket, sources: Sources
) -> None:
    bucket.put("a.jpg", fits())
    url = f"{bucket.sandbox.bucket_url}/videos/a.jpg?sig=abc"
    opened = sources(staging="gs://videos/staged").open(url)
    assert opened.make_address() == url
    assert "abc" not in repr(opened)
    assert "abc" not in repr(opened.wanted(MODEL, PROMPT))


def test_an_address_on_the_web_that_does_not_fit_is_staged_once(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", turned())
    url = f"{bucket.sandbox.bucket_url}/videos/a.jpg"
    made = {sources(staging="gs://videos/staged").open(url).make_address() for _ in range(2)}
    assert len(made) == 1
    assert "/videos/staged/" in made.pop()
    assert [about["writes"] for about in bucket.objects("staged/").values()] == [1]


def test_a_file_is_staged_even_where_it_fits(bucket: Bucket, sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(fits())
    bucket.put("same.jpg", fits())
    sources(staging="gs://videos/staged").open(
        "gs://videos/same.jpg"
    ).make_address()  # leaves a mark of the same content
    url = sources(staging="gs://videos/staged").open(str(tmp_path / "a.jpg")).make_address()
    assert requests.get(url, timeout=10).content == fits()
    with pytest.raises(WanInputError, match="is a file of this machine"):
        sources().open(str(tmp_path / "a.jpg")).make_address()


@pytest.mark.parametrize(
    "address", ["", "ftp://h/a.jpg", "data:image/png;base64,AAAA", "gs://videos", "gs://B/x"]
)
def test_what_is_no_image_address_is_refused(sources: Sources, address: str) -> None:
    with pytest.raises(WanInputError):
        sources().open(address).make_address()


def test_a_private_address_is_not_read(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    with pytest.raises(WanDownloadError, match="not a public address"):
        sources(allow_private=False).open(f"{bucket.sandbox.bucket_url}/videos/a.jpg").make_address()


def test_an_input_given_twice_is_refused(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    with pytest.raises(WanInputError, match="img_url and image"):
        sources().open("gs://videos/a.jpg").wanted(
            MODEL, {**PROMPT, "img_url": "https://x.example.com/a.jpg"}
        )


def test_a_row_overrides_the_task(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    row = {"image": "gs://videos/a.jpg", "prompt": "rain", "seed": "7", "variation": "b"}
    wanted = sources().open(row).wanted(MODEL, {**PROMPT, "resolution": "1080P"}, variation="a")
    assert wanted.recorded_inputs == {
        "prompt": "rain",
        "seed": 7,
        "resolution": "1080P",
        "img_url": row["image"],
    }
    assert wanted.variation == "b"
