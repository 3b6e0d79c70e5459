# SPDX-License-Identifier: Apache-2.0
"""Datasets as users name them, read from the sandbox's bucket and from disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.dataset import Columns, DatasetRow, RowError
from airflow_provider_wan.images.dataset_reader import DatasetReader, Row
from airflow_provider_wan.images.rows import PreparedRow
from tests.sandboxes import Bucket

COLUMNS = Columns(inputs=("prompt", "seed"), defaults={"prompt": "waves"}, variation="v")
Read = Callable[[Any], list[Row]]


@pytest.fixture
def read(bucket: Bucket) -> Read:
    return lambda dataset: list(DatasetReader(lambda: bucket.client, COLUMNS).rows(dataset))


def images(rows: list[Row]) -> list[str]:
    return [row.image if isinstance(row, DatasetRow) else f"error: {row.message}" for row in rows]


def test_a_prefix_gives_its_images_with_what_the_listing_tells(bucket: Bucket, read: Read) -> None:
    for name in (
        "shoes/b.JPG",
        "shoes/a ä.png",
        "shoes/deep/c.heic",
        "shoes/readme.txt",
        "shoes/",
        "hats/a.jpg",
    ):
        bucket.put(name, b"data")
    rows = read("gs://videos/shoes/")
    assert images(rows) == [f"gs://videos/shoes/{name}" for name in ("a ä.png", "b.JPG", "deep/c.heic")]
    assert all(isinstance(row, DatasetRow) and row.known and row.known.size_bytes == 4 for row in rows)
    assert all(isinstance(row, DatasetRow) and row.inputs == {"prompt": "waves"} for row in rows)


def test_a_long_prefix_is_listed_by_pages(bucket: Bucket, read: Read) -> None:
    bucket.sandbox.bucket_control(
        "seed", {"bucket": "videos", "prefix": "many/", "count": 2500, "suffix": ".jpg"}
    )
    bucket.sandbox.bucket_control("calls", method="DELETE")
    rows = DatasetReader(lambda: bucket.client, COLUMNS).rows("gs://videos/many/")
    next(rows)
    assert sum(bucket.calls().values()) == 1
    assert 1 + len(list(rows)) == 2500
    assert sum(bucket.calls().values()) == 3


def test_a_prefix_without_images_is_an_error(bucket: Bucket, read: Read) -> None:
    bucket.put("notes/a.txt", b"x")
    for uri in ("gs://videos/notes/", "gs://videos/nothing/"):
        with pytest.raises(WanInputError, match="There is no image under"):
            read(uri)


@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_a_manifest_is_read_wherever_it_lies(place: str, bucket: Bucket, read: Read, tmp_path: Path) -> None:
    text = 'image,prompt,seed,variation\ngs://videos/a.jpg,,7,\n"b c.jpg","rain, at\nnight",,w\n,x,,\n'
    if place == "bucket":
        bucket.put("sets/one.csv", text.encode())
        rows, beside = read("gs://videos/sets/one.csv"), "gs://videos/sets/b c.jpg"
    else:
        (tmp_path / "one.csv").write_text(text)
        rows, beside = read(str(tmp_path / "one.csv")), str(tmp_path / "b c.jpg")
    assert images(rows) == ["gs://videos/a.jpg", beside, "error: there is no image"]
    first, second = rows[:2]
    assert isinstance(first, DatasetRow)
    assert isinstance(second, DatasetRow)
    assert (dict(first.inputs), first.variation) == ({"prompt": "waves", "seed": "7"}, "v")
    assert (dict(second.inputs), second.variation) == ({"prompt": "rain, at\nnight"}, "w")


def test_a_manifest_larger_than_a_block_loses_no_line(bucket: Bucket, read: Read) -> None:
    lines = [json.dumps({"image": f"{number:05}.jpg", "prompt": "ü" * 300}) for number in range(4000)]
    bucket.put("m.jsonl", "\n".join(lines).encode())
    assert images(read("gs://videos/m.jsonl")) == [f"gs://videos/{number:05}.jpg" for number in range(4000)]


def test_a_list_mixes_what_it_likes(bucket: Bucket, read: Read) -> None:
    prepared = PreparedRow(
        "gs://videos/p.jpg", "gs://videos/staged/p.jpg", 640, 480, 9, "ab", inputs={"seed": 3}
    )
    bucket.put("chunk.jsonl", json.dumps(prepared.as_dict()).encode())
    bucket.put("shoes/a.jpg", b"x")
    dataset = [
        "gs://videos/one.jpg",
        "https://images.example.com/two.jpg?size=large",
        {"image": "gs://videos/three.jpg", "prompt": "rain"},
        {"image": "gs://videos/four.jpg", "promt": "rain"},
        {"prompt": "no image"},
        5,
        "gs://videos/shoes/",
        "gs://videos/chunk.jsonl",
        prepared.as_dict(),
    ]
    rows = read(json.dumps(dataset))
    assert images(rows) == [
        "gs://videos/one.jpg",
        "https://images.example.com/two.jpg?size=large",
        "gs://videos/three.jpg",
        "error: unknown column 'promt'; did you mean 'prompt'?",
        "error: there is no image",
        "error: it is of type int, not an address or a row",
        "gs://videos/shoes/a.jpg",
        "gs://videos/p.jpg",
        "gs://videos/p.jpg",
    ]
    for row in rows[-2:]:
        assert isinstance(row, DatasetRow)
        assert row.prepared == prepared
        assert row.inputs == {"prompt": "waves", "seed": 3}


def test_a_broken_row_leaves_the_rest_alone(bucket: Bucket, read: Read) -> None:
    good = b'{"image": "a.jpg"}\n'
    bucket.put("m.jsonl", good + b'{"image": \n' + b"\xff\xfe\n" + b'{"staged_uri": "x"}\n' + good)
    rows = read("gs://videos/m.jsonl")
    assert [isinstance(row, RowError) for row in rows] == [False, True, True, True, False]


@pytest.mark.parametrize(
    "dataset", ["gs://videos/none.csv", "https://h.example.com/set.csv", "[1,", 7, "gs://V/x/"]
)
def test_what_is_no_dataset_is_refused(dataset: Any, read: Read) -> None:
    with pytest.raises(WanInputError):
        read(dataset)
