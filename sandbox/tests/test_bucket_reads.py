# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.api_core.exceptions import NotFound, PreconditionFailed, RequestRangeNotSatisfiable
from google.oauth2 import service_account

from sandbox.tests.bucket_support import BUCKET, MIB, BucketServer, bytes_of


@pytest.fixture(scope="module")
def signer() -> Any:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return service_account.Credentials.from_service_account_info(
        {
            "client_email": "signer@sandbox.iam.gserviceaccount.com",
            "token_uri": "http://127.0.0.1/token",
            "private_key": pem.decode(),
        }
    )


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=20)


def changed(url: str, **query: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode({**dict(parse_qsl(parts.query)), **query})).geturl()


@pytest.mark.parametrize("size", [100_000, 3 * MIB])
@pytest.mark.parametrize(("start", "end"), [(0, 0), (5, 9), (90_000, None), (None, 99), (99_999, 10**9)])
def test_range_returns_exactly_the_requested_bytes(
    server: BucketServer, size: int, start: int | None, end: int | None
) -> None:
    data = bytes_of(size)
    blob = server.bucket().blob("ranged")
    blob.upload_from_string(data)
    expected = data[start or 0 : None if end is None else end + 1]
    assert server.bucket().blob("ranged").download_as_bytes(start=start, end=end) == expected


def test_download_in_chunks_returns_the_whole_object(server: BucketServer) -> None:
    data = bytes_of(3 * MIB + 11)
    server.bucket().blob("chunked").upload_from_string(data)
    sink = io.BytesIO()
    server.bucket().blob("chunked", chunk_size=MIB).download_to_file(sink)
    assert sink.getvalue() == data
    assert server.calls()["bytes_read"] == len(data)


def test_ranges_follow_http(server: BucketServer) -> None:
    server.bucket().blob("r").upload_from_string(b"0123456789")
    url = f"{server.url}/{BUCKET}/r"
    suffix = get(url, Range="bytes=-3")
    assert (suffix.status_code, suffix.content) == (206, b"789")
    assert suffix.headers["Content-Range"] == "bytes 7-9/10"
    assert get(url, Range="bytes=8-2").content == b"0123456789"
    assert get(url, Range="lines=1-2").status_code == 200
    behind = get(url, Range="bytes=10-")
    assert (behind.status_code, behind.headers["Content-Range"]) == (416, "bytes */10")
    with pytest.raises(RequestRangeNotSatisfiable):
        server.bucket().blob("r").download_as_bytes(start=50)


def test_range_with_an_outdated_if_range_returns_the_whole_object(server: BucketServer) -> None:
    blob = server.bucket().blob("r")
    blob.upload_from_string(b"0123456789")
    url = f"{server.url}/{BUCKET}/r"
    tag = get(url).headers["ETag"]
    assert get(url, Range="bytes=2-3", **{"If-Range": tag}).content == b"23"
    blob.upload_from_string(b"abcdefghij")
    whole = get(url, Range="bytes=2-3", **{"If-Range": tag})
    assert (whole.status_code, whole.content) == (200, b"abcdefghij")


def test_download_headers_describe_the_object(server: BucketServer) -> None:
    blob = server.bucket().blob("told")
    blob.cache_control = "max-age=5"
    blob.upload_from_string(b"hello", content_type="text/plain")
    answer = get(blob.media_link)
    assert answer.headers["X-Goog-Generation"] == str(blob.generation)
    assert answer.headers["X-Goog-Metageneration"] == "1"
    assert answer.headers["X-Goog-Hash"] == f"crc32c={blob.crc32c},md5={blob.md5_hash}"
    assert answer.headers["X-Goog-Stored-Content-Length"] == "5"
    assert answer.headers["X-Goog-Stored-Content-Encoding"] == "identity"
    assert answer.headers["Content-Type"] == "text/plain"
    assert answer.headers["Cache-Control"] == "max-age=5"
    assert answer.headers["ETag"] == blob.etag
    assert {"Date", "Last-Modified"} <= set(answer.headers)


def test_conditions_on_a_download(server: BucketServer) -> None:
    blob = server.bucket().blob("c")
    blob.upload_from_string(b"one")
    generation = blob.generation
    assert blob.download_as_bytes(if_generation_match=generation) == b"one"
    assert get(changed(blob.media_link, ifGenerationNotMatch=str(generation))).status_code == 304
    assert get(changed(blob.media_link, ifMetagenerationMatch="9")).status_code == 412
    assert get(blob.media_link, **{"If-None-Match": blob.etag}).status_code == 304
    assert get(blob.media_link, **{"If-Match": "other"}).status_code == 412
    server.bucket().blob("c").upload_from_string(b"two")
    fresh = server.bucket().blob("c")
    with pytest.raises(PreconditionFailed):
        fresh.download_as_bytes(if_generation_match=generation)
    with pytest.raises(NotFound):
        blob.download_as_bytes()  # names the deleted generation
    assert fresh.download_as_bytes() == b"two"


def test_missing_object_returns_googles_not_found_error(server: BucketServer) -> None:
    with pytest.raises(NotFound):
        server.bucket().blob("nothing").download_as_bytes()
    error = get(f"{server.url}/storage/v1/b/{BUCKET}/o/nothing").json()["error"]
    assert error["code"] == 404
    assert error["message"] == f"No such object: {BUCKET}/nothing"
    assert error["errors"][0]["reason"] == "notFound"
    assert not server.bucket().blob("nothing").exists()
    assert not server.bucket("nowhere").exists()
    assert b"<Code>NoSuchKey</Code>" in get(f"{server.url}/{BUCKET}/nothing").content


def test_gzip_objects_are_decompressed_for_clients_that_do_not_accept_gzip(server: BucketServer) -> None:
    text = bytes_of(2 * MIB)
    blob = server.bucket().blob("zipped")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(text, 1), content_type="text/plain")
    assert gzip.decompress(blob.download_as_bytes(raw_download=True)) == text
    assert blob.download_as_bytes() == text
    plain = get(f"{server.url}/{BUCKET}/zipped", **{"Accept-Encoding": "identity"})
    assert plain.content == text
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["X-Goog-Stored-Content-Encoding"] == "gzip"


def test_public_link_needs_no_token_and_a_private_bucket_refuses_it(server: BucketServer) -> None:
    blob = server.bucket().blob("dir/clip one.mp4")
    blob.metadata = {"request-id": "r-1"}
    blob.upload_from_string(b"video")
    url = f"{server.url}/{BUCKET}/dir/clip%20one.mp4"
    assert get(url).content == b"video"
    head = requests.head(url, timeout=20)
    assert (head.headers["Content-Length"], head.headers["x-goog-meta-request-id"]) == ("5", "r-1")
    assert requests.put(url, data=b"x", timeout=20).status_code == 403
    server.control("POST", "buckets", {"name": BUCKET, "public": False})
    refused = get(url)
    assert refused.status_code == 403
    assert b"<Code>AccessDenied</Code>" in refused.content
    assert blob.download_as_bytes() == b"video"


def test_a_bucket_that_prevents_public_access_refuses_links(server: BucketServer) -> None:
    bucket = server.client().bucket("private")
    bucket.iam_configuration.public_access_prevention = "enforced"
    bucket.create()
    bucket.blob("x").upload_from_string(b"x")
    assert get(f"{server.url}/private/x").status_code == 403


def test_a_signed_link_opens_a_private_bucket_until_it_expires(server: BucketServer, signer: Any) -> None:
    server.control("POST", "buckets", {"name": BUCKET, "public": False})
    blob = server.bucket().blob("ü/signed photo.jpg")
    blob.upload_from_string(b"pixels", content_type="image/jpeg")
    url = blob.generate_signed_url(
        version="v4", expiration=timedelta(hours=1), credentials=signer, response_type="image/x"
    )
    assert url.startswith(server.url)
    answer = get(url)
    assert (answer.content, answer.headers["Content-Type"]) == (b"pixels", "image/x")
    expired = get(changed(url, **{"X-Goog-Date": "20200101T000000Z"}))
    assert expired.status_code == 400
    assert b"<Code>ExpiredToken</Code>" in expired.content
    unsigned = get(changed(url, **{"X-Goog-Signature": ""}))
    assert unsigned.status_code in {400, 403}
    assert get(changed(url, **{"X-Goog-Expires": "604801"})).status_code == 400
    assert get(changed(url, **{"X-Goog-Date": "yesterday"})).status_code == 400
    assert get(changed(url, **{"X-Goog-Algorithm": "ROT13"})).status_code == 400


def test_signed_link_accepts_an_upload(server: BucketServer, signer: Any) -> None:
    blob = server.bucket().blob("put.jpg")
    url = blob.generate_signed_url(
        version="v4",
        expiration=timedelta(minutes=5),
        method="PUT",
        credentials=signer,
        content_type="image/jpeg",
    )
    without_type = requests.put(url, data=b"pixels", timeout=20)
    assert (without_type.status_code, b"SignatureDoesNotMatch" in without_type.content) == (403, True)
    headers = {"Content-Type": "image/jpeg", "x-goog-meta-origin": "test"}
    assert requests.put(url, data=b"pixels", headers=headers, timeout=20).status_code == 200
    seen = server.bucket().get_blob("put.jpg")
    assert (seen.size, seen.content_type, seen.metadata) == (6, "image/jpeg", {"origin": "test"})
    fresh_only = {**headers, "x-goog-if-generation-match": "0"}
    assert requests.put(url, data=b"other", headers=fresh_only, timeout=20).status_code == 412


def test_concurrent_downloads_each_get_their_own_bytes(server: BucketServer) -> None:
    bucket = server.bucket()
    bodies = {f"n{number}": bytes([number]) * (MIB + number * 1000) for number in range(8)}
    for name, body in bodies.items():
        bucket.blob(name).upload_from_string(body)
    with ThreadPoolExecutor(8) as pool:
        found = dict(pool.map(lambda name: (name, bucket.blob(name).download_as_bytes()), list(bodies) * 3))
    assert found == bodies


def test_download_of_an_object_replaced_meanwhile_completes(server: BucketServer) -> None:
    old, new = b"a" * (5 * MIB), b"b" * (5 * MIB)
    blob = server.bucket().blob("moving")
    blob.upload_from_string(old)
    with requests.get(f"{server.url}/{BUCKET}/moving", stream=True, timeout=20) as reading:
        first = reading.raw.read(1000)
        server.bucket().blob("moving").upload_from_string(new)
        rest = reading.raw.read()
    assert first + rest == old
    assert server.bucket().blob("moving").download_as_bytes() == new
