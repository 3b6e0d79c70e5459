# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from google.api_core.exceptions import NotFound

from sandbox.tests.bucket_support import BUCKET, BucketServer
from wan_sandbox.bucket.listing import read_token, successor, write_token

NAMES = ["a", "a/1", "a/2", "a/b/1", "a/b/2", "b/x.mp4", "b/y.json", "c", "é/1", "🎬"]


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    with BucketServer() as running:
        for name in reversed(NAMES):
            running.bucket().blob(name).upload_from_string(name)
        running.control("POST", "seed", {"bucket": "many", "prefix": "p/", "count": 100_000, "size": 3})
        running.control("POST", "seed", {"bucket": "many", "prefix": "q/", "count": 5})
        yield running


def listed(server: BucketServer, **query: object) -> list[str]:
    return [blob.name for blob in server.client().list_blobs(BUCKET, **query)]


def test_listing_is_sorted_by_the_bytes_of_the_names(server: BucketServer) -> None:
    assert listed(server) == sorted(NAMES, key=str.encode)


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
def test_pages_together_contain_every_object_once(server: BucketServer, page_size: int) -> None:
    pages = list(server.client().list_blobs(BUCKET, prefix="a", page_size=page_size).pages)
    assert [blob.name for page in pages for blob in page] == ["a", "a/1", "a/2", "a/b/1", "a/b/2"]
    assert len(pages) == -(-5 // page_size)


@pytest.mark.parametrize("page_size", [1, 2, 100])
@pytest.mark.parametrize(
    ("prefix", "names", "folders"),
    [
        ("", ["a", "c", "🎬"], {"a/", "b/", "é/"}),
        ("a/", ["a/1", "a/2"], {"a/b/"}),
        ("a/b/", ["a/b/1", "a/b/2"], set()),
        ("none", [], set()),
    ],
)
def test_a_delimiter_folds_names_into_prefixes(
    server: BucketServer, page_size: int, prefix: str, names: list[str], folders: set[str]
) -> None:
    found = server.client().list_blobs(BUCKET, prefix=prefix, delimiter="/", page_size=page_size)
    assert [blob.name for blob in found] == names
    assert found.prefixes == folders


def test_start_and_end_offset_limit_a_listing(server: BucketServer) -> None:
    assert listed(server, start_offset="a/2", end_offset="b/y") == ["a/2", "a/b/1", "a/b/2", "b/x.mp4"]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("a/*", ["a/1", "a/2"]),
        ("a/**", ["a/1", "a/2", "a/b/1", "a/b/2"]),
        ("**.{mp4,json}", ["b/x.mp4", "b/y.json"]),
        ("?", ["a", "c", "🎬"]),
        ("[!a]", ["c", "🎬"]),
    ],
)
def test_match_glob_filters_names(server: BucketServer, glob: str, names: list[str]) -> None:
    assert listed(server, match_glob=glob) == names


def test_listing_includes_metadata(server: BucketServer) -> None:
    blob = next(iter(server.client().list_blobs(BUCKET, prefix="b/x")))
    assert (blob.size, blob.generation) == (7, server.bucket().get_blob("b/x.mp4").generation)


def test_a_hundred_thousand_objects_come_in_pages_of_a_thousand(server: BucketServer) -> None:
    url, token, count, pages = f"{server.url}/storage/v1/b/many/o", "", 0, 0
    while pages == 0 or token:
        query = {"prefix": "p/", "pageToken": token, "maxResults": "5000"}
        page = requests.get(url, params=query, timeout=20).json()
        token, count, pages = page.get("nextPageToken", ""), count + len(page["items"]), pages + 1
        if pages == 3:  # the last page is a good sample
            assert page["items"][0]["name"] == "p/002000"
            token = write_token("p/099000")
    assert (count, pages) == (4000, 4)


def test_listing_of_folders_skips_their_objects(server: BucketServer) -> None:
    found = server.client().list_blobs("many", delimiter="/")
    assert list(found) == []
    assert found.prefixes == {"p/", "q/"}


def test_listing_a_missing_bucket_is_not_found(server: BucketServer) -> None:
    with pytest.raises(NotFound):
        list(server.client().list_blobs("nowhere"))


@pytest.mark.parametrize("query", ["maxResults=many", "maxResults=-1", "pageToken=%21"])
def test_invalid_listing_query_is_refused(server: BucketServer, query: str) -> None:
    answer = requests.get(f"{server.url}/storage/v1/b/{BUCKET}/o?{query}", timeout=20)
    assert answer.status_code == 400


@pytest.mark.parametrize("prefix", ["a/", "z", "\U0010ffff", "a\U0010ffff", "\ud7ff"])
def test_successor_of_a_prefix_sorts_after_all_its_names(prefix: str) -> None:
    behind = successor(prefix)
    assert behind > prefix + "\U0010ffff" * 3
    assert read_token(write_token(behind)) == behind
