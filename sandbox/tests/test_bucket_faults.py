# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import requests
from google.api_core.exceptions import (
    BadRequest,
    Forbidden,
    PreconditionFailed,
    ServiceUnavailable,
    TooManyRequests,
)
from google.cloud.storage.exceptions import DataCorruption

from sandbox.tests.bucket_support import BUCKET, MIB, QUICK_RETRY, BucketServer, bytes_of


def upload(server: BucketServer, name: str = "n", data: bytes = b"data", **options: Any) -> None:
    server.bucket().blob(name).upload_from_string(data, **options)


def upload_resumable(server: BucketServer, data: bytes, **options: Any) -> None:
    blob = server.bucket().blob("n", chunk_size=256 * 1024)
    blob.upload_from_file(io.BytesIO(data), **options)


def delete_in_a_batch(server: BucketServer, *names: str) -> None:
    client = server.client()
    with client.batch():
        for name in names:
            client.bucket(BUCKET).blob(name).delete()


@pytest.mark.parametrize("call", ["bucket.upload", "bucket.upload.start", "bucket.upload.chunk"])
def test_upload_survives_an_outage_in_any_step(server: BucketServer, call: str) -> None:
    server.fault(call, "status", params={"status": 503}, count=2)
    upload_resumable(server, bytes_of(600_000), retry=QUICK_RETRY, if_generation_match=0)
    assert server.bucket().blob("n").download_as_bytes() == bytes_of(600_000)
    hits = [rule["hits"] for rule in server.control("GET", "faults")["faults"]]
    assert hits == [2]


@pytest.mark.parametrize("fault", ["reset", "reset_after", "lost_ack"])
def test_resumable_upload_survives_a_cut_connection(server: BucketServer, fault: str) -> None:
    server.fault("bucket.upload.chunk", fault, count=1, skip=1)
    upload_resumable(server, bytes_of(600_000), retry=QUICK_RETRY, if_generation_match=0)
    assert server.bucket().blob("n").download_as_bytes() == bytes_of(600_000)
    assert server.control("GET", f"objects?bucket={BUCKET}")["writes"] == {"n": 1}


def test_lost_response_of_an_upload_leaves_the_object(server: BucketServer) -> None:
    server.fault("bucket.upload", "lost_ack", count=1)
    with pytest.raises(requests.ConnectionError):
        upload(server, if_generation_match=0, retry=None)
    assert server.bucket().blob("n").download_as_bytes() == b"data"
    server.fault("bucket.upload", "lost_ack", count=1)
    # The client's own retry then finds its own object: the classic 412.
    with pytest.raises(PreconditionFailed):
        upload(server, "m", if_generation_match=0, retry=QUICK_RETRY)
    assert server.names() == ["m", "n"]


def test_lost_response_of_a_delete_leaves_no_object(server: BucketServer) -> None:
    upload(server)
    server.fault("bucket.delete", "lost_ack", count=1)
    with pytest.raises(requests.ConnectionError):
        server.bucket().blob("n").delete(retry=None)
    assert server.names() == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [("precondition", PreconditionFailed), ("quota", TooManyRequests), ("forbidden", Forbidden)],
)
@pytest.mark.parametrize("call", ["upload", "get", "metadata", "list", "delete", "update", "compose", "copy"])
def test_every_call_can_fail_with_googles_errors(
    server: BucketServer, call: str, fault: str, error: type[Exception]
) -> None:
    upload(server)
    bucket, blob = server.bucket(), server.bucket().blob("n")
    server.fault(f"bucket.{call}", fault)
    calls: dict[str, Callable[[], object]] = {
        "upload": lambda: blob.upload_from_string(b"x", retry=None),
        "get": lambda: blob.download_as_bytes(retry=None),
        "metadata": lambda: blob.reload(retry=None),
        "list": lambda: list(bucket.list_blobs(retry=None)),
        "delete": lambda: blob.delete(retry=None),
        "update": lambda: blob.patch(retry=None),
        "compose": lambda: bucket.blob("m").compose([blob], retry=None),
        "copy": lambda: bucket.blob("m").rewrite(blob, retry=None),
    }
    with pytest.raises(error):
        calls[call]()
    assert server.names() == ["n"]


def test_fault_hits_only_the_objects_it_names(server: BucketServer) -> None:
    server.fault("bucket.*", "status", params={"status": 503, "object_contains": "bad"})
    upload(server, "good")
    with pytest.raises(ServiceUnavailable):
        upload(server, "dir/bad.mp4", retry=None)
    with pytest.raises(ServiceUnavailable):
        server.bucket().blob("bad").create_resumable_upload_session(retry=None)
    assert server.bucket().blob("good").download_as_bytes() == b"data"


def test_client_detects_corruption_during_a_download(server: BucketServer) -> None:
    upload(server, data=bytes_of(2 * MIB))
    server.fault("bucket.get", "corrupt", count=1)
    with pytest.raises(DataCorruption):
        server.bucket().blob("n").download_as_bytes()
    assert server.bucket().blob("n").download_as_bytes() == bytes_of(2 * MIB)


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_every_reader_detects_corrupt_stored_bytes(server: BucketServer, size: int) -> None:
    server.fault("bucket.upload", "corrupt", count=1)
    upload(server, data=bytes_of(size))
    for _ in range(2):
        with pytest.raises(DataCorruption):
            server.bucket().blob("n").download_as_bytes()


def test_corrupt_upload_with_a_checksum_is_refused(server: BucketServer) -> None:
    server.fault("bucket.upload", "corrupt", params={"at": "wire"})
    with pytest.raises(BadRequest):
        upload(server, checksum="crc32c")
    with pytest.raises(BadRequest):
        upload_resumable(server, bytes_of(300_000), checksum="crc32c")
    assert server.names() == []


def test_second_update_of_an_object_within_a_second_is_refused(server: BucketServer) -> None:
    server.fault("bucket.upload", "write_rate", params={"interval_s": 600})
    upload(server, "one")
    upload(server, "two")
    with pytest.raises(TooManyRequests, match="rate limit for object mutation"):
        upload(server, "one", retry=None)
    server.control("DELETE", "faults")
    upload(server, "one")
    server.control("POST", "shape", {"write_interval_s": 600})
    with pytest.raises(TooManyRequests):
        server.bucket().blob("one").delete(retry=None)


def test_resumable_upload_refused_by_the_write_rate_can_be_finished_later(server: BucketServer) -> None:
    upload(server)
    server.fault("bucket.upload", "write_rate", params={"interval_s": 600}, count=2)
    upload_resumable(server, bytes_of(600_000), retry=QUICK_RETRY)
    assert server.bucket().blob("n").download_as_bytes() == bytes_of(600_000)


@pytest.mark.parametrize("fault", ["drip", "cut_json", "delay", "hang"])
def test_slow_and_cut_downloads(server: BucketServer, fault: str) -> None:
    upload(server, data=bytes_of(1000))
    params = {
        "drip": {"every_s": 0.001, "bytes": 100},
        "cut_json": {"honest": False},
        "delay": {"seconds": 0.01},
        "hang": {"seconds": 0.05},
    }
    server.fault("bucket.get", fault, params=params[fault], count=1)
    found = server.bucket().blob("n").download_as_bytes(retry=QUICK_RETRY)
    assert found == bytes_of(1000)


def test_no_write_is_lost_under_many_faults(server: BucketServer) -> None:
    for fault in ("status", "reset", "quota", "reset_after"):
        server.fault("bucket.*", fault, rate=0.1)
    for number in range(20):
        server.bucket().blob(f"n{number}").upload_from_string(str(number), retry=QUICK_RETRY)
    server.control("DELETE", "faults")
    assert len(server.names()) == 20


def test_fault_hits_one_part_of_a_batch(server: BucketServer) -> None:
    upload(server, "a")
    upload(server, "b")
    server.fault("bucket.delete", "forbidden", params={"object_contains": "b"})
    with pytest.raises(Forbidden):
        delete_in_a_batch(server, "a", "b")
    assert server.names() == ["b"]
