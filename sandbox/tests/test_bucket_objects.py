# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import pytest
from google.api_core.exceptions import BadRequest, Conflict, NotFound, PreconditionFailed

from sandbox.tests.bucket_support import BUCKET, MIB, BucketServer, bytes_of


def test_bucket_is_created_listed_and_removed_when_empty(server: BucketServer) -> None:
    client = server.client()
    bucket = client.create_bucket("fresh", location="EU")
    assert client.get_bucket("fresh").location == "EU"
    assert [found.name for found in client.list_buckets()] == ["fresh", BUCKET]
    with pytest.raises(Conflict):
        client.create_bucket("fresh")
    bucket.blob("x").upload_from_string(b"x")
    with pytest.raises(Conflict):
        bucket.delete()
    bucket.blob("x").delete()
    bucket.delete()
    with pytest.raises(NotFound):
        client.get_bucket("fresh")
    with pytest.raises(BadRequest):
        client.create_bucket("Not A Name")


def test_a_buckets_metadata_is_changed(server: BucketServer) -> None:
    bucket = server.client().get_bucket(BUCKET)
    bucket.labels = {"team": "data"}
    bucket.patch()
    seen = server.client().get_bucket(BUCKET)
    assert (seen.labels, seen.metageneration) == ({"team": "data"}, 2)
    assert seen.test_iam_permissions(["storage.objects.create"]) == ["storage.objects.create"]


def test_metadata_patch_keeps_the_generation(server: BucketServer) -> None:
    blob = server.bucket().blob("meta")
    blob.metadata = {"keep": "1", "drop": "2"}
    blob.upload_from_string(b"data", content_type="text/plain")
    generation = blob.generation
    blob.metadata = {"keep": "3", "drop": None}
    blob.patch(if_metageneration_match=1)
    seen = server.bucket().get_blob("meta")
    assert (seen.metadata, seen.content_type) == ({"keep": "3"}, "text/plain")
    assert (seen.generation, seen.metageneration) == (generation, 2)
    assert seen.updated >= seen.time_created
    with pytest.raises(PreconditionFailed):
        blob.patch(if_metageneration_match=1)


def test_an_update_replaces_all_metadata(server: BucketServer) -> None:
    blob = server.bucket().blob("meta")
    blob.cache_control = "no-store"
    blob.upload_from_string(b"data")
    blob.reload()
    blob.cache_control = None
    blob.metadata = {"only": "this"}
    blob.update()
    seen = server.bucket().get_blob("meta")
    assert (seen.cache_control, seen.metadata) == (None, {"only": "this"})


def test_delete_checks_its_precondition(server: BucketServer) -> None:
    blob = server.bucket().blob("gone")
    blob.upload_from_string(b"1")
    old = blob.generation
    blob.upload_from_string(b"2")
    with pytest.raises(PreconditionFailed):
        server.bucket().blob("gone").delete(if_generation_match=old)
    server.bucket().blob("gone").delete(if_generation_match=blob.generation)
    with pytest.raises(NotFound):
        server.bucket().blob("gone").delete()
    assert server.control("GET", f"objects?bucket={BUCKET}")["writes"] == {"gone": 2}


def test_one_of_many_concurrent_swaps_of_a_generation_succeeds(server: BucketServer) -> None:
    blob = server.bucket().blob("journal")
    blob.upload_from_string(b"claim")
    generation = blob.generation

    def swap(number: int) -> bool:
        try:
            server.bucket().blob("journal").upload_from_string(str(number), if_generation_match=generation)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(swap, range(24)))
    assert won.count(True) == 1
    assert server.bucket().blob("journal").download_as_bytes() == str(won.index(True)).encode()


def test_copy_has_the_same_bytes_and_a_new_generation(server: BucketServer) -> None:
    bucket = server.bucket()
    other = server.client().create_bucket("other")
    source = bucket.blob("dir/source")
    source.metadata = {"k": "v"}
    source.upload_from_string(bytes_of(2 * MIB), content_type="video/mp4")
    token, done, size = other.blob("dir/copy").rewrite(source, if_generation_match=0)
    assert (token, done, size) == (None, 2 * MIB, 2 * MIB)
    copy = other.get_blob("dir/copy")
    assert (copy.crc32c, copy.md5_hash) == (source.crc32c, source.md5_hash)
    assert (copy.metadata, copy.content_type) == ({"k": "v"}, "video/mp4")
    assert copy.generation > source.generation
    with pytest.raises(PreconditionFailed):
        other.blob("dir/copy").rewrite(source, if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        other.blob("new").rewrite(source, if_source_generation_match=1)
    bucket.copy_blob(source, other, "third")
    source.delete()
    assert other.blob("third").download_as_bytes() == bytes_of(2 * MIB)


def test_move_removes_the_source(server: BucketServer) -> None:
    bucket = server.bucket()
    bucket.blob("old").upload_from_string(b"data")
    bucket.move_blob(bucket.blob("old"), "new/name")
    assert server.names() == ["new/name"]


def test_a_composite_object_has_its_parts_in_order_and_no_md5(server: BucketServer) -> None:
    bucket = server.bucket()
    data = bytes_of(3 * MIB)
    parts = []
    for number in range(3):
        part = bucket.blob(f"part-{number}")
        part.upload_from_string(data[number * MIB : (number + 1) * MIB])
        parts.append(part)
    whole = bucket.blob("whole")
    whole.content_type = "video/mp4"
    whole.compose(parts, if_generation_match=0)
    assert whole.download_as_bytes() == data
    assert (whole.component_count, whole.md5_hash, whole.content_type) == (3, None, "video/mp4")
    assert whole.crc32c == base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
    twice = bucket.blob("twice")
    twice.compose([whole, parts[0]])
    assert (twice.component_count, twice.size) == (4, 4 * MIB)
    with pytest.raises(PreconditionFailed):
        whole.compose(parts, if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("never").compose(parts, if_source_generation_match=[1, 1, 1])
    with pytest.raises(NotFound):
        bucket.blob("never").compose([bucket.blob("missing")])
    with pytest.raises(BadRequest):
        bucket.blob("never").compose([parts[0]] * 33)


def test_a_batch_is_answered_part_by_part(server: BucketServer) -> None:
    client = server.client()
    bucket = client.bucket(BUCKET)
    for name in ("x", "y/ü z", "kept"):
        bucket.blob(name).upload_from_string(b"data")
    with client.batch():
        bucket.blob("x").delete()
        bucket.blob("y/ü z").delete()
        changed = bucket.blob("kept")
        changed.metadata = {"in": "batch"}
        changed.patch()
    assert server.names() == ["kept"]
    assert bucket.get_blob("kept").metadata == {"in": "batch"}
    with pytest.raises(NotFound):
        delete_in_a_batch(server, "kept", "missing")
    assert server.names() == []


def delete_in_a_batch(server: BucketServer, *names: str) -> None:
    client = server.client()
    with client.batch():
        for name in names:
            client.bucket(BUCKET).blob(name).delete()


def test_names_that_look_like_calls_are_names(server: BucketServer) -> None:
    bucket = server.bucket()
    for name in ("a/compose", "o/b/rewriteTo/b/o", "100%25", "a//b", "?q=1#x", "+ +"):
        bucket.blob(name).upload_from_string(name.encode())
        assert bucket.blob(name).download_as_bytes() == name.encode()
        assert bucket.get_blob(name).name == name
        bucket.blob(name).delete()
    assert server.names() == []
