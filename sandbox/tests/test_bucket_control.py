# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import requests

from sandbox.tests.bucket_support import BUCKET, MIB, BucketServer, bytes_of


def test_health_route_answers(server: BucketServer) -> None:
    assert server.control("GET", "health") == {"ok": True, "buckets": [BUCKET]}


def test_objects_route_counts_writes_of_each_name(server: BucketServer) -> None:
    blob = server.bucket().blob("a/x")
    blob.upload_from_string(b"1")
    blob.upload_from_string(b"22", content_type="text/plain")
    server.bucket().blob("b").upload_from_string(b"b")
    found = server.control("GET", f"objects?bucket={BUCKET}&prefix=a/")
    assert found["writes"] == {"a/x": 2}
    assert found["objects"] == [
        {
            "name": "a/x",
            "size_bytes": 2,
            "generation": blob.generation,
            "metageneration": 1,
            "crc32c": blob.crc32c,
            "content_type": "text/plain",
            "metadata": {},
            "writes": 2,
        }
    ]


def test_calls_and_bytes_are_counted(server: BucketServer) -> None:
    blob = server.bucket().blob("n")
    blob.upload_from_string(bytes_of(MIB), if_generation_match=0)
    blob.download_as_bytes(start=0, end=999)
    blob.reload()
    list(server.bucket().list_blobs())
    seen = server.calls()
    assert seen["calls"].pop("bucket.metadata") >= 1  # the client reads the bucket's metadata now and then
    assert seen["calls"] == {"bucket.upload": 1, "bucket.get": 1, "bucket.list": 1}
    assert seen["statuses"]["bucket.get 206"] == 1
    assert seen["bytes_read"] == 1000
    assert MIB <= seen["bytes_written"] < MIB + 2000
    server.control("DELETE", "calls")
    assert "bucket.upload" not in server.calls()["calls"]


def test_seeding_creates_many_objects_in_one_call(server: BucketServer) -> None:
    order = {"bucket": "data", "prefix": "in/", "suffix": ".jpg", "count": 1000, "size": 2_000_000}
    assert server.control("POST", "seed", {**order, "content_type": "image/jpeg"}) == {"created": 1000}
    assert server.control("POST", "seed", order) == {"created": 0}
    blob = server.bucket("data").get_blob("in/000999.jpg")
    assert (blob.size, blob.content_type) == (2_000_000, "image/jpeg")
    assert len(blob.download_as_bytes()) == 2_000_000
    text = {"bucket": "data", "prefix": "r/", "count": 2, "text": "{}", "metadata": {"state": "landed"}}
    server.control("POST", "seed", text)
    record = server.bucket("data").get_blob("r/000001")
    assert (record.download_as_bytes(), record.metadata) == (b"{}", {"state": "landed"})
    bad = requests.post(f"{server.url}/_sandbox/seed", json={"count": "x"}, timeout=20)
    assert bad.status_code == 400


def test_reset_deletes_objects_counts_and_files(server: BucketServer) -> None:
    server.bucket().blob("big").upload_from_string(bytes_of(2 * MIB))
    server.client().create_bucket("extra")
    server.control("POST", "reset")
    assert server.control("GET", "health")["buckets"] == [BUCKET]
    assert server.names() == []
    assert server.calls()["bytes_written"] == 0
    server.bucket().blob("big").upload_from_string(bytes_of(2 * MIB))
    assert server.bucket().blob("big").download_as_bytes() == bytes_of(2 * MIB)


def test_link_speed_can_be_limited_and_restored(server: BucketServer) -> None:
    shape = {"latency_s": 0.001, "bytes_per_s": 50e6, "write_interval_s": 0.0}
    assert server.control("POST", "shape", shape) == shape
    blob = server.bucket().blob("shaped")
    blob.upload_from_string(bytes_of(2 * MIB))
    assert blob.download_as_bytes() == bytes_of(2 * MIB)
    assert server.control("POST", "shape", {"latency_s": 0})["bytes_per_s"] == 50e6
    bad = requests.post(f"{server.url}/_sandbox/shape", json={"latency_s": "slow"}, timeout=20)
    assert bad.status_code == 400


def test_fault_rules_can_be_set_on_the_bucket_port(server: BucketServer) -> None:
    server.fault("bucket.list", "quota")
    assert server.faults.rules()[0].fault == "quota"
    refused = requests.post(
        f"{server.url}/_sandbox/faults", json={"call": "bucket.list", "fault": "nonsense"}, timeout=20
    )
    assert refused.status_code == 400


def test_files_of_large_objects_are_deleted_with_the_object_and_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> list[Path]:
        return list(tmp_path.glob("wan-sandbox-bucket-*/*"))

    # A temporary directory of this test only: other sandboxes of this machine use the default one.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with BucketServer() as server:
        blob = server.bucket().blob("big")
        blob.upload_from_string(bytes_of(2 * MIB))
        blob.upload_from_string(bytes_of(2 * MIB))
        server.bucket().blob("small").upload_from_string(b"small")
        assert len(files()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["storage/v1/x", "storage/v1/b/videos/acl", "upload/storage/v1/b/videos/o"])
def test_unknown_control_path_is_refused(server: BucketServer, path: str) -> None:
    assert requests.post(f"{server.url}/{path}", timeout=20).status_code in {400, 404, 405}


def test_seeded_objects_may_have_a_content_of_their_own(server: BucketServer) -> None:
    order = {
        "bucket": BUCKET,
        "objects": {"a": {}, "b": {"stage": "landed"}},
        "texts": {"a": "one", "b": "two"},
    }
    assert server.control("POST", "seed", order) == {"created": 2}
    assert [server.bucket().blob(name).download_as_bytes() for name in "ab"] == [b"one", b"two"]
