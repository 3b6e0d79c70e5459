# SPDX-License-Identifier: Apache-2.0
"""What the gallery reads from buckets, over real sockets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_wan.gallery.media import Media, VideoVersion
from airflow_provider_wan.gallery.run_cards import BatchStatus

if TYPE_CHECKING:
    from tests.sandboxes import Bucket

DATA = bytes(range(256)) * 40


@pytest.fixture
def video(bucket: Bucket) -> VideoVersion:
    generation = bucket.put("2026/a ü.mp4", DATA, "video/mp4", **{"wan-request-id": "request-1"})
    crc32c = bucket.objects()["2026/a ü.mp4"]["crc32c"]
    return VideoVersion("gs://videos/2026/a ü.mp4", "request-1", generation, crc32c)


@pytest.fixture
def media(bucket: Bucket) -> Media:
    return Media(bucket.client)


@pytest.mark.parametrize(
    ("asked", "if_range", "status", "body", "content_range"),
    [
        (None, None, 200, DATA, None),
        ("bytes=0-", None, 206, DATA, f"bytes 0-{len(DATA) - 1}/{len(DATA)}"),
        ("bytes=100-199", None, 206, DATA[100:200], f"bytes 100-199/{len(DATA)}"),
        ("bytes=-16", None, 206, DATA[-16:], f"bytes {len(DATA) - 16}-{len(DATA) - 1}/{len(DATA)}"),
        ("bytes=100-199", "the same", 206, DATA[100:200], f"bytes 100-199/{len(DATA)}"),
        ("bytes=100-199", '"another"', 200, DATA, None),
        ("bytes=0-1,5-6", None, 200, DATA, None),
        ("lines=1-2", None, 200, DATA, None),
    ],
)
def test_part_of_a_video_follows_http_ranges(
    media: Media,
    video: VideoVersion,
    asked: str | None,
    if_range: str | None,
    status: int,
    body: bytes,
    content_range: str | None,
) -> None:
    if_range = f'"{video.generation}"' if if_range == "the same" else if_range
    part = media.part(video, range_header=asked, if_range=if_range)
    assert (part.status_code, part.content) == (status, body)
    assert part.headers.get("Content-Range") == content_range
    assert part.headers["Accept-Ranges"] == "bytes"
    assert int(part.headers["Content-Length"]) == len(body)


def test_range_beyond_the_end_is_answered_with_416(media: Media, video: VideoVersion) -> None:
    assert media.part(video, range_header="bytes=999999-", if_range=None).status_code == 416


def test_only_what_the_provider_landed_is_shown(media: Media, video: VideoVersion, bucket: Bucket) -> None:
    assert media.is_what_landed(video)
    assert media.is_what_landed(replace(video, request_id="request-2"))  # the same bytes, kept by a landing
    other = bucket.put("secret.mp4", b"not yours", "video/mp4")
    named = VideoVersion("gs://videos/secret.mp4", "request-1", other, video.crc32c)
    assert not media.is_what_landed(named)
    assert not media.is_what_landed(replace(video, generation=12345))


def test_other_video_under_the_same_name_is_not_shown(media: Media, video: VideoVersion, bucket: Bucket) -> None:
    bucket.put("2026/a ü.mp4", b"another take", "video/mp4", **{"wan-request-id": "request-2"})
    part = media.part(video, range_header=None, if_range=None)
    assert part.status_code == 404
    assert not media.is_what_landed(video)


def test_credentials_without_a_key_give_no_signed_address(media: Media, video: VideoVersion) -> None:
    assert media.signed_address(video) is None


def test_credentials_with_a_key_give_a_signed_address(bucket: Bucket, video: VideoVersion) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from google.cloud import storage
    from google.oauth2 import service_account

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    info = {
        "client_email": "robot@example.com",
        "token_uri": "https://example.com",
        "private_key": key.decode(),
    }
    credentials = service_account.Credentials.from_service_account_info(info)
    client = storage.Client(
        project="p", credentials=credentials, client_options={"api_endpoint": bucket.sandbox.bucket_url}
    )
    disposition = "attachment; filename*=UTF-8''a.mp4"
    address = Media(client).signed_address(video, disposition=disposition)
    assert address is not None
    assert "X-Goog-Signature=" in address
    assert "X-Goog-Expires=900" in address or "X-Goog-Expires=899" in address
    assert f"generation={video.generation}" in address
    assert parse_qs(urlsplit(address).query)["response-content-disposition"] == [disposition]


def test_video_of_a_batch_is_found_by_address_and_request(media: Media, video: VideoVersion, bucket: Bucket) -> None:
    assert media.find_landed(video.uri, "request-1") == video
    assert media.find_landed(video.uri, "request-2") is None
    assert media.find_landed("gs://videos/none.mp4", "request-1") is None


def test_file_of_a_batch_is_read_once_for_all_viewers(media: Media, bucket: Bucket) -> None:
    batch = BatchStatus("batch", -1, "gs://videos/_manifests/a.jsonl")
    bucket.put("_manifests/a.jsonl", b'{"outcome":"landed"}\n{"outcome":"left"}\n', "application/x-ndjson")
    before = bucket.calls()
    with ThreadPoolExecutor(8) as viewers:
        found = list(viewers.map(lambda _: media.images(batch), range(24)))
    assert len(set(map(id, found))) == 1
    assert found[0] is not None
    cards = [found[0].card(number) for number in (0, 1, 2)]
    assert [card and card.state for card in cards] == ["landed", "left undone", None]
    assert bucket.calls()["bucket.get"] - before.get("bucket.get", 0) == 1


def test_unreadable_file_of_a_batch_has_no_images(media: Media, bucket: Bucket) -> None:
    bucket.put("_manifests/b.jsonl", b"not json", "application/x-ndjson")
    unread = media.images(BatchStatus("batch", -1, "gs://videos/_manifests/b.jsonl"))
    assert unread is not None
    assert unread.totals.counts == {}
    assert media.images(BatchStatus("batch", -1, "gs://videos/_manifests/none.jsonl")) is None
    assert media.images(BatchStatus("batch", -1, "no address")) is None


def test_record_is_read_if_it_is_an_object(media: Media, bucket: Bucket) -> None:
    bucket.put("_journal/a.json", b'{"request_id":"request-1"}', "application/json")
    bucket.put("_journal/b.json", b"[]", "application/json")
    assert media.record("gs://videos/_journal/a.json") == {"request_id": "request-1"}
    assert media.record("gs://videos/_journal/b.json") is None
    assert media.record("gs://videos/_journal/none.json") is None
