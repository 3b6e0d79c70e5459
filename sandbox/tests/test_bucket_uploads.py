# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import hashlib
import io
import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from urllib.parse import urlsplit

import google_crc32c
import pytest
import requests
from google.api_core.exceptions import BadRequest, NotFound, PreconditionFailed

from sandbox.tests.bucket_support import BUCKET, MIB, BucketServer, bytes_of
from wan_sandbox.bucket.errors import StorageError
from wan_sandbox.bucket.multipart import RelatedParser


def md5_of(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def crc32c_of(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


@pytest.mark.parametrize("size", [0, 1, 1000, MIB, 3 * MIB + 17])
def test_small_upload_is_read_back_unchanged(server: BucketServer, size: int) -> None:
    data = bytes_of(size)
    blob = server.bucket().blob("a/b c/ü.bin")
    blob.upload_from_string(data, content_type="video/mp4")
    assert blob.download_as_bytes() == data
    assert (blob.size, blob.crc32c, blob.md5_hash) == (size, crc32c_of(data), md5_of(data))
    assert blob.content_type == "video/mp4"


@pytest.mark.parametrize("size", [20 * MIB + 5, 16 * MIB])
def test_resumable_upload_in_chunks_is_read_back_unchanged(server: BucketServer, size: int) -> None:
    data = bytes_of(size)
    blob = server.bucket().blob("big.bin", chunk_size=4 * MIB)
    blob.upload_from_file(io.BytesIO(data), size=size, content_type="video/mp4", if_generation_match=0)
    assert blob.download_as_bytes() == data
    assert (blob.size, blob.crc32c) == (size, crc32c_of(data))
    assert server.calls()["calls"]["bucket.upload.start"] == 1


@pytest.mark.parametrize("size", [0, 5, 512 * 1024, 512 * 1024 + 1])
def test_a_resumable_upload_of_unknown_length_ends_with_its_last_chunk(server: BucketServer, size: int) -> None:
    data = bytes_of(size)
    blob = server.bucket().blob("stream.bin")
    with blob.open("wb", chunk_size=256 * 1024) as writer:
        writer.write(data)
    assert blob.download_as_bytes() == data


def test_metadata_sent_with_an_upload_is_kept(server: BucketServer) -> None:
    blob = server.bucket().blob("clip.mp4", chunk_size=256 * 1024)
    blob.metadata = {"request-id": "r-1", "note": "größe"}
    blob.cache_control = "no-store"
    blob.content_disposition = 'attachment; filename="clip.mp4"'
    blob.upload_from_file(io.BytesIO(b"x" * 300_000), content_type="video/mp4")
    seen = server.bucket().get_blob("clip.mp4")
    assert seen.metadata == {"request-id": "r-1", "note": "größe"}
    assert seen.cache_control == "no-store"
    assert seen.content_disposition == 'attachment; filename="clip.mp4"'
    assert seen.media_link.startswith(server.url)
    assert seen.self_link.startswith(server.url)
    assert seen.time_created is not None
    assert (seen.storage_class, seen.metageneration) == ("STANDARD", 1)


def test_generations_only_increase(server: BucketServer) -> None:
    blob, seen = server.bucket().blob("again"), []
    for number in range(20):
        blob.upload_from_string(str(number))
        seen.append(blob.generation)
    assert seen == sorted(set(seen))


def test_media_upload_stores_the_body(server: BucketServer) -> None:
    url = f"{server.url}/upload/storage/v1/b/{BUCKET}/o"
    answer = requests.post(
        url,
        params={"uploadType": "media", "name": "a/raw"},
        data=b"hello",
        headers={"Content-Type": "text/x"},
        timeout=20,
    )
    assert answer.json()["size"] == "5"
    assert server.bucket().get_blob("a/raw").content_type == "text/x"


def test_bytes_that_differ_from_the_clients_checksum_are_refused(server: BucketServer) -> None:
    blob = server.bucket().blob("sums")
    blob.md5_hash = md5_of(b"something else")
    with pytest.raises(BadRequest, match="doesn't match calculated MD5"):
        blob.upload_from_string(b"data", checksum=None)
    url = f"{server.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=sums"
    wrong = requests.post(url, data=b"data", headers={"X-Goog-Hash": f"crc32c={crc32c_of(b'x')}"}, timeout=20)
    right = requests.post(url, data=b"data", headers={"X-Goog-Hash": f"crc32c={crc32c_of(b'data')}"}, timeout=20)
    assert (wrong.status_code, right.status_code) == (400, 200)
    assert wrong.json()["error"]["code"] == 400


@pytest.mark.parametrize("is_resumable", [False, True])
def test_one_of_many_concurrent_creations_succeeds(server: BucketServer, is_resumable: bool) -> None:
    writers = 6
    barrier = Barrier(writers)
    data = [bytes([number]) * (600 * 1024) for number in range(writers)]

    def write(number: int) -> bool:
        blob = server.bucket().blob("claim", chunk_size=256 * 1024)
        size = None if is_resumable else len(data[number])
        barrier.wait(20)
        try:
            blob.upload_from_file(io.BytesIO(data[number]), size=size, if_generation_match=0)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(write, range(writers)))
    assert won.count(True) == 1
    assert server.bucket().blob("claim").download_as_bytes() == data[won.index(True)]
    assert server.control("GET", f"objects?bucket={BUCKET}")["writes"] == {"claim": 1}


def test_a_condition_is_checked_when_a_resumable_upload_starts_and_again_when_it_ends(
    server: BucketServer,
) -> None:
    bucket = server.bucket()
    late = start_session(server, "race", if_generation_match=0)
    bucket.blob("race").upload_from_string(b"first")
    with pytest.raises(PreconditionFailed):
        bucket.blob("race").create_resumable_upload_session(if_generation_match=0)
    refused = requests.put(late, data=b"second", headers={"Content-Range": "bytes 0-5/6"}, timeout=20)
    assert refused.status_code == 412
    assert refused.json()["error"]["errors"][0]["reason"] == "conditionNotMet"
    assert bucket.blob("race").download_as_bytes() == b"first"


def start_session(server: BucketServer, name: str, if_generation_match: int | None = None) -> str:
    blob = server.bucket().blob(name)
    return str(blob.create_resumable_upload_session(if_generation_match=if_generation_match))


def test_interrupted_resumable_upload_continues_at_the_servers_offset(server: BucketServer) -> None:
    data, unit = bytes_of(700 * 1024), 256 * 1024
    session = start_session(server, "resumed")
    ask = {"Content-Range": f"bytes */{len(data)}"}
    assert "Range" not in requests.put(session, headers=ask, timeout=20).headers
    # Not a multiple of 256 KiB: only complete multiples are kept, as in Cloud Storage.
    first = requests.put(session, data=data[:300_000], headers={"Content-Range": "bytes 0-299999/*"}, timeout=20)
    assert (first.status_code, first.headers["Range"]) == (308, f"bytes=0-{unit - 1}")
    send_half_a_chunk_and_leave(session, data, start=unit)
    status = requests.put(session, headers=ask, timeout=20)
    assert status.status_code == 308
    kept = int(status.headers["Range"].rpartition("-")[2]) + 1
    assert kept >= unit
    assert kept % unit == 0
    # An overlap is allowed: bytes that were already received are skipped.
    rest = {"Content-Range": f"bytes {kept - 10}-{len(data) - 1}/{len(data)}"}
    last = requests.put(session, data=data[kept - 10 :], headers=rest, timeout=20)
    assert last.json()["size"] == str(len(data))
    assert server.bucket().blob("resumed").download_as_bytes() == data
    # A client that missed the answer and asks again receives the same one.
    assert requests.put(session, headers=ask, timeout=20).json() == last.json()


def send_half_a_chunk_and_leave(session: str, data: bytes, *, start: int) -> None:
    address = urlsplit(session)
    head = (
        f"PUT {address.path}?{address.query} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Length: {len(data) - start}\r\n"
        f"Content-Range: bytes {start}-{len(data) - 1}/{len(data)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + data[start : start + 300_000])


def test_cancelled_resumable_upload_leaves_no_object(server: BucketServer) -> None:
    session = start_session(server, "cancelled")
    assert requests.delete(session, timeout=20).status_code == 499
    again = requests.put(session, data=b"abc", headers={"Content-Range": "bytes 0-2/3"}, timeout=20)
    assert again.status_code == 404
    assert server.names() == []


def test_aborted_upload_leaves_no_object(server: BucketServer) -> None:
    address = urlsplit(server.url)
    head = (
        f"POST /upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=cut HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + b"x" * 500_000)
    assert server.names() == []


def test_upload_to_a_missing_bucket_is_not_found(server: BucketServer) -> None:
    with pytest.raises(NotFound):
        server.bucket("nowhere").blob("x").upload_from_string(b"x")
    with pytest.raises(NotFound):
        server.bucket("nowhere").blob("x").create_resumable_upload_session()


@pytest.mark.parametrize("name", ["", "line\nbreak", ".."])
def test_name_that_cloud_storage_refuses_is_refused(server: BucketServer, name: str) -> None:
    url = f"{server.url}/upload/storage/v1/b/{BUCKET}/o"
    answer = requests.post(url, params={"uploadType": "media", "name": name}, data=b"x", timeout=20)
    assert answer.status_code == 400


HEAD = b'--b1\r\nContent-Type: application/json\r\n\r\n{"name": "n"}\r\n--b1\r\ncontent-type: v/x\r\n\r\n'


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize("payload", [b"", b"\r\n", b"\r\n--b", b"--b1", b"a\r\n\r\nb\n--b2", b"\r\r\n" * 50])
def test_multipart_body_is_parsed_at_any_chunk_size(step: int, payload: bytes) -> None:
    body = HEAD + payload + b"\r\n--b1--\r\n"
    parser = RelatedParser('multipart/related; boundary="b1"')
    found = b"".join(parser.feed(body[at : at + step]) for at in range(0, len(body), step))
    parser.finish()
    assert (found, parser.metadata, parser.content_type) == (payload, {"name": "n"}, "v/x")


@pytest.mark.parametrize(
    "body",
    [HEAD + b"abc", HEAD + b"abc\r\n--b1\r\n\r\nmore\r\n--b1--", b"--b1\r\n\r\n{no json\r\n--b1\r\n\r\n"],
)
def test_incomplete_multipart_body_is_refused(body: bytes) -> None:
    def read() -> None:
        parser = RelatedParser("multipart/related; boundary=b1")
        parser.feed(body)
        parser.finish()

    with pytest.raises(StorageError):
        read()
