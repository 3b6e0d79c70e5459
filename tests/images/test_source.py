# SPDX-License-Identifier: Apache-2.0
"""From a source image to a URL that RunComfy can fetch: identity, staged copies and links, with the sandbox's
bucket.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from PIL import Image

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError, WanStorageError
from airflow_provider_wan.images.dataset import DatasetReader
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.preparation import Preparation, Usable
from airflow_provider_wan.images.readers import look_up_object
from airflow_provider_wan.images.rows import DatasetRow, RowImage
from airflow_provider_wan.images.source import ImageOptions, ImageSource, ImageSources
from airflow_provider_wan.model_api.fingerprints import fingerprint
from airflow_provider_wan.model_api.schema import LazyModel
from airflow_provider_wan.model_api.video_spec import VideoSpec
from tests.image_samples import encoded, exif_with, noise, photo, put_gzip, quadrants
from tests.raw_servers import RawServer, always, reply
from tests.sandboxes import MODEL, Bucket

LOG = logging.getLogger(__name__)
PROMPT = {"prompt": "a slow wave"}
Sources = Callable[..., ImageSources]


def spec_of(source: ImageSource, inputs: dict[str, Any], variation: str | None = None) -> VideoSpec:
    row = source.row
    row = replace(row, inputs={**inputs, **row.inputs}, variation=row.variation or variation)
    return replace(source, row=row).spec(owner="o")


@pytest.fixture
def sources(bucket: Bucket) -> Sources:
    def make(**options: Any) -> ImageSources:
        options.setdefault("allow_private", True)
        return ImageSources(LazyModel(MODEL), lambda: bucket.client, LOG, options=ImageOptions(**options))

    return make


def fits() -> bytes:
    return encoded(photo(640, 480), "JPEG", quality=90)


def turned() -> bytes:
    return encoded(photo(640, 480), "JPEG", quality=90, exif=exif_with(orientation=6, gps=True))


def test_same_content_is_the_same_image_in_every_place(bucket: Bucket, sources: Sources, tmp_path: Path) -> None:
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
    assert {one.images[0].identity for one in opened} == {f"md5:{hashlib.md5(fits()).hexdigest()}"}
    assert len({spec_of(one, PROMPT).fingerprint for one in opened}) == 1


def test_web_image_is_identified_by_its_address_under_either_parameter(sources: Sources) -> None:
    url = "https://images.example.com/a.jpg"
    spec = spec_of(sources().open(f"{url}?X-Amz-Signature=abc"), PROMPT, variation="2")
    assert spec.fingerprint == fingerprint(MODEL, {**PROMPT, "img_url": url}, variation="2")
    assert spec.recorded_inputs == {**PROMPT, "img_url": url}


def test_nothing_is_read_staged_or_signed_before_a_purchase(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", turned())
    bucket.sandbox.bucket_control("calls", method="DELETE")
    spec = spec_of(sources(staging="gs://videos/staged").open("gs://videos/a.jpg"), PROMPT)
    shown = bucket.sandbox.bucket_control("calls")
    assert shown["bytes_read"] == shown["bytes_written"] == 0
    assert spec.recorded_inputs == {**PROMPT, "img_url": "gs://videos/a.jpg"}
    assert spec.make_inputs()["img_url"].startswith(f"{bucket.sandbox.bucket_url}/videos/staged/")


def test_an_image_that_fits_is_sent_from_where_it_is(bucket: Bucket, sources: Sources) -> None:
    bucket.put("my photos/ä 1.jpg", fits())
    url = sources(staging="gs://videos/staged").open("gs://videos/my photos/ä 1.jpg").addresses()["img_url"]
    assert url == f"{bucket.sandbox.bucket_url}/videos/my%20photos/%C3%A4%201.jpg"
    copies = [name for name, about in bucket.objects("staged/").items() if about["size_bytes"]]
    assert copies == []


def test_second_run_reads_and_writes_nothing(bucket: Bucket, sources: Sources) -> None:
    bucket.put("turned.jpg", turned())
    bucket.put("fits.jpg", fits())
    first = [
        sources(staging="gs://videos/staged").open(f"gs://videos/{n}.jpg").addresses()["img_url"]
        for n in ("turned", "fits")
    ]
    bucket.sandbox.bucket_control("calls", method="DELETE")
    again = [
        sources(staging="gs://videos/staged").open(f"gs://videos/{n}.jpg").addresses()["img_url"]
        for n in ("turned", "fits")
    ]
    shown = bucket.sandbox.bucket_control("calls")
    assert again == first
    assert shown["bytes_read"] == shown["bytes_written"] == 0


def test_staged_copy_is_upright_and_without_private_data(bucket: Bucket, sources: Sources) -> None:
    bucket.put("turned.jpg", turned())
    url = sources(staging="gs://videos/staged").open("gs://videos/turned.jpg").addresses()["img_url"]
    answer = requests.get(url, timeout=10)
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (480, 640)
        assert not image.getexif()
    assert answer.headers["Content-Type"] == "image/jpeg"


def test_another_background_is_another_copy(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.png", encoded(quadrants().convert("RGBA"), "PNG"))
    urls = [
        sources(staging="gs://videos/staged", background=colour).open("gs://videos/a.png").addresses()["img_url"]
        for colour in ("white", "#ffffff", "black")
    ]
    assert urls[0] == urls[1] != urls[2]


def test_unfit_image_without_staging_is_refused_and_staging_is_named(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.png", encoded(quadrants().convert("RGBA"), "PNG"))
    with pytest.raises(WanInputError, match=r"gs://videos/a.png would be refused: .*transparency.*staging="):
        sources().open("gs://videos/a.png").addresses()["img_url"]


def test_image_cut_off_inside_its_pixels_is_refused(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits()[:-3000])
    for options in ({}, {"staging": "gs://videos/staged"}):
        with pytest.raises(WanInputError, match=r"gs://videos/a.jpg: the file is truncated or damaged"):
            sources(**options).open("gs://videos/a.jpg").addresses()["img_url"]
    assert bucket.objects("staged/") == {}


def test_missing_object_is_named(bucket: Bucket, sources: Sources) -> None:
    with pytest.raises(WanInputError, match=r"nobody\.jpg: there is no such object"):
        sources().open("gs://videos/nobody.jpg")


def test_object_replaced_after_it_was_opened_is_not_sent(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    opened = sources().open("gs://videos/a.jpg")
    bucket.put("a.jpg", turned())
    with pytest.raises(WanInputError, match="replaced while it was read"):
        opened.addresses()["img_url"]


def test_valid_https_image_is_sent_unchanged_with_its_signature(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    url = f"{bucket.sandbox.bucket_url}/videos/a.jpg?sig=s3cret-signature"
    opened = sources(staging="gs://videos/staged").open(url)
    assert opened.addresses()["img_url"] == url
    assert "s3cret" not in repr(opened)
    assert "s3cret" not in repr(spec_of(opened, PROMPT))


def test_invalid_https_image_is_staged_once(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", turned())
    url = f"{bucket.sandbox.bucket_url}/videos/a.jpg"
    made = {sources(staging="gs://videos/staged").open(url).addresses()["img_url"] for _ in range(2)}
    assert len(made) == 1
    assert "/videos/staged/" in made.pop()
    assert [about["writes"] for about in bucket.objects("staged/").values()] == [1]


def test_a_file_is_staged_even_where_it_fits(bucket: Bucket, sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(fits())
    bucket.put("same.jpg", fits())
    sources(staging="gs://videos/staged").open("gs://videos/same.jpg").addresses()[
        "img_url"
    ]  # leaves a mark of the same content
    url = sources(staging="gs://videos/staged").open(str(tmp_path / "a.jpg")).addresses()["img_url"]
    assert requests.get(url, timeout=10).content == fits()
    with pytest.raises(WanInputError, match="is a file of this machine"):
        sources().open(str(tmp_path / "a.jpg")).addresses()["img_url"]


@pytest.mark.parametrize("address", ["", "ftp://h/a.jpg", "data:image/png;base64,AAAA", "gs://videos", "gs://B/x"])
def test_invalid_image_address_is_refused(sources: Sources, address: str) -> None:
    with pytest.raises(WanInputError):
        sources().open(address).addresses()["img_url"]


def test_a_private_address_is_not_read(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    with pytest.raises(WanDownloadError, match="not a public address"):
        sources(allow_private=False).open(f"{bucket.sandbox.bucket_url}/videos/a.jpg").addresses()["img_url"]


def test_an_input_given_twice_is_refused(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    with pytest.raises(WanInputError, match="img_url: given as an image and among the inputs"):
        spec_of(sources().open("gs://videos/a.jpg"), {**PROMPT, "img_url": "https://x.example.com/a.jpg"})


def test_a_row_overrides_the_task(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", fits())
    row = {"image": "gs://videos/a.jpg", "prompt": "rain", "seed": "7", "variation": "b"}
    spec = spec_of(sources().open(row), {**PROMPT, "resolution": "1080P"}, variation="a")
    assert spec.recorded_inputs == {
        "prompt": "rain",
        "seed": 7,
        "resolution": "1080P",
        "img_url": row["image"],
    }
    assert spec.variation == "b"


# -- buckets ---------------------------------------------------------------------------------------------------------


def test_image_that_is_stored_compressed_is_read_as_the_image_it_is(bucket: Bucket, sources: Sources) -> None:
    put_gzip(bucket, "fits.jpg", fits())
    put_gzip(bucket, "turned.jpg", turned())
    assert sources().open("gs://videos/fits.jpg").addresses()["img_url"].endswith("/fits.jpg")
    url = sources(staging="gs://videos/staged").open("gs://videos/turned.jpg").addresses()["img_url"]
    assert inspect(requests.get(url, timeout=10).content).displayed_width == 480
    (planned,) = Preparation(sources(staging="gs://videos/other"), workers=1).plan(
        DatasetReader(lambda: bucket.client).rows(["gs://videos/fits.jpg"])
    )
    assert isinstance(planned, Usable)
    assert planned.is_fit


def test_compressed_object_that_is_cut_off_or_no_gzip_is_named(bucket: Bucket, sources: Sources) -> None:
    for name, data in (("a.jpg", gzip.compress(fits())[:-500]), ("b.jpg", fits())):
        blob = bucket.client.bucket("videos").blob(name)
        blob.content_encoding = "gzip"
        blob.upload_from_string(data, content_type="image/jpeg")
        with pytest.raises(WanInputError, match=r"compressed content is cut off|is not gzip"):
            sources().open(f"gs://videos/{name}").addresses()["img_url"]


def test_listing_without_md5_costs_one_metadata_call_and_no_read(bucket: Bucket, sources: Sources) -> None:
    """Listings leave out the MD5 of objects with a customer-managed key; the object's own metadata has it."""
    bucket.put("a.jpg", fits())
    known = replace(look_up_object(bucket.client, "gs://videos/a.jpg"), md5=None)
    bucket.sandbox.bucket_control("calls", method="DELETE")
    opened = sources().open(DatasetRow((RowImage("gs://videos/a.jpg", known=known),)))
    assert opened.images[0].identity == f"md5:{hashlib.md5(fits()).hexdigest()}"
    shown = bucket.sandbox.bucket_control("calls")
    assert (sum(shown["calls"].values()), shown["bytes_read"]) == (1, 0)


class _WithQuotaProject(AnonymousCredentials):
    quota_project_id = "who-pays"


@pytest.mark.parametrize("credentials", [AnonymousCredentials(), _WithQuotaProject()])
def test_requester_pays_bucket_is_read_on_the_quota_project(credentials: Any) -> None:
    heads: list[str] = []
    body = b'{"error": {"message": "Bucket is a requester pays bucket but no user project provided."}}'
    refusal = reply(body, "400 Bad Request", Content_Type="application/json")
    with RawServer(always(refusal, heads=heads)) as server:
        client = storage.Client("p", credentials, client_options={"api_endpoint": server.url})
        with pytest.raises(WanStorageError, match=r"requester pays.*GOOGLE_CLOUD_QUOTA_PROJECT"):
            look_up_object(client, "gs://paid-by-reader/a.jpg")
        with pytest.raises(WanStorageError, match=r"requester pays.*GOOGLE_CLOUD_QUOTA_PROJECT"):
            list(DatasetReader(lambda: client).rows("gs://paid-by-reader/in/"))
    for head in (head for head in heads if "/paid-by-reader/o" in head):  # the client asks for the bucket by itself
        assert ("userProject=who-pays" in head) == isinstance(credentials, _WithQuotaProject)


@pytest.mark.parametrize("staging", [None, "gs://videos/staged"])
def test_no_image_is_read_by_ranges_and_then_completely(staging: str | None, bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.jpg", encoded(noise(900, 900), "JPEG", quality=95))
    size = bucket.objects()["a.jpg"]["size_bytes"]
    url = f"{bucket.sandbox.bucket_url}/videos/a.jpg"
    for address in ("gs://videos/a.jpg", url):
        bucket.sandbox.bucket_control("calls", method="DELETE")
        sources(staging=staging).open(address).addresses()["img_url"]
        assert bucket.sandbox.bucket_control("calls")["bytes_read"] in (size, 0)


def test_image_of_which_the_size_alone_is_too_large_is_refused_by_its_header(bucket: Bucket, sources: Sources) -> None:
    bucket.put("a.bmp", encoded(noise(1900, 1900), "BMP"))
    bucket.sandbox.bucket_control("calls", method="DELETE")
    with pytest.raises(WanInputError, match="the model takes less than 10,000,000"):
        sources().open("gs://videos/a.bmp").addresses()["img_url"]
    assert bucket.sandbox.bucket_control("calls")["bytes_read"] <= 16 * 1024
