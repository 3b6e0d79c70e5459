# SPDX-License-Identifier: Apache-2.0
"""Datasets in every form that users can name, read from the sandbox's bucket and from disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.dataset import DatasetReader
from airflow_provider_wan.images.rows import Columns, DatasetRow, PreparedImage, Row, RowError
from tests.image_samples import put_gzip
from tests.sandboxes import Bucket

COLUMNS = Columns(inputs=("prompt", "seed"), defaults={"prompt": "waves"}, variation="v")
Read = Callable[[Any], list[Row]]


@pytest.fixture
def read(bucket: Bucket) -> Read:
    return lambda dataset: list(DatasetReader(lambda: bucket.client, COLUMNS).rows(dataset))


def images(rows: list[Row]) -> list[str]:
    return [str(row.image) if isinstance(row, DatasetRow) else f"error: {row.message}" for row in rows]


def test_prefix_yields_its_images_with_facts_of_the_listing(bucket: Bucket, read: Read) -> None:
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
    assert all(
        isinstance(row, DatasetRow) and row.images[0].known and row.images[0].known.size_bytes == 4 for row in rows
    )
    assert all(isinstance(row, DatasetRow) and row.inputs == {"prompt": "waves"} for row in rows)


def test_posters_of_videos_are_not_source_images(bucket: Bucket, read: Read) -> None:
    bucket.put("shoes/a.jpg", b"data")
    bucket.put("shoes/videos/a.poster.jpg", b"data", "image/jpeg", **{"wan-request-id": "r"})
    assert images(read("gs://videos/shoes/")) == ["gs://videos/shoes/a.jpg"]


def test_a_long_prefix_is_listed_by_pages(bucket: Bucket, read: Read) -> None:
    bucket.sandbox.bucket_control("seed", {"bucket": "videos", "prefix": "many/", "count": 2500, "suffix": ".jpg"})
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
def test_manifest_is_read_from_every_kind_of_location(place: str, bucket: Bucket, read: Read, tmp_path: Path) -> None:
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


def test_a_manifest_is_read_in_blocks_and_loses_no_line(bucket: Bucket, read: Read) -> None:
    lines = [json.dumps({"image": f"{number:05}.jpg", "prompt": "ü" * 300}) for number in range(4000)]
    bucket.put("m.jsonl", "\n".join(lines).encode())
    before = sum(bucket.calls().values())
    assert images(read("gs://videos/m.jsonl")) == [f"gs://videos/{number:05}.jpg" for number in range(4000)]
    assert sum(bucket.calls().values()) - before <= 9, "a look-up, and blocks of 1 MiB"


def test_list_mixes_addresses_rows_prefixes_and_manifests(bucket: Bucket, read: Read) -> None:
    image = PreparedImage("gs://videos/p.jpg", "gs://videos/staged/p.jpg", 640, 480, 9, "ab")
    prepared = {**image.as_dict(), "inputs": {"seed": 3}, "variation": None}
    bucket.put("chunk.jsonl", json.dumps(prepared).encode())
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
        prepared,
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
        assert row.images[0].prepared == image
        assert row.inputs == {"prompt": "waves", "seed": 3}


def test_broken_row_does_not_affect_the_rest(bucket: Bucket, read: Read) -> None:
    good = b'{"image": "a.jpg"}\n'
    bucket.put("m.jsonl", good + b'{"image": \n' + b"\xff\xfe\n" + b'{"staged_uri": "x"}\n' + good)
    rows = read("gs://videos/m.jsonl")
    assert [isinstance(row, RowError) for row in rows] == [False, True, True, True, False]


@pytest.mark.parametrize("dataset", ["gs://videos/none.csv", "https://h.example.com/set.csv", "[1,", 7, "gs://V/x/"])
def test_invalid_dataset_is_refused(dataset: Any, read: Read) -> None:
    with pytest.raises(WanInputError):
        read(dataset)


# -- what a prefix passes over ---------------------------------------------------------------------------------------


def test_objects_that_are_no_images_are_passed_over_counted_and_named(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "notes.txt", "more.TXT", "README", "._a.jpg", "folder/", "set.backup.zip"):
        bucket.put(f"in/{name}", b"x")
    reader = DatasetReader(lambda: bucket.client, COLUMNS)
    with caplog.at_level("WARNING"):
        assert images(list(reader.rows("gs://videos/in/"))) == ["gs://videos/in/a.jpg"]
    assert reader.passed_over.kinds == {".txt": 2, "no suffix": 1, "macOS companion file": 1, ".zip": 1}
    assert "gs://videos/in/README" in reader.passed_over.names
    assert "5 objects under gs://videos/in/ are not source images and were passed over" in caplog.text
    assert "gs://videos/in/._a.jpg" in caplog.text


@pytest.mark.parametrize("suffix", ["hif", "jpe", "apng", "dib", "mpo", "jp2", "dng", "JFIF", "avif", "svg"])
def test_every_suffix_that_people_take_for_an_image_is_a_row(suffix: str, bucket: Bucket, read: Read) -> None:
    bucket.put(f"in/a.{suffix}", b"x")
    assert images(read("gs://videos/in/")) == [f"gs://videos/in/a.{suffix}"]


def test_object_without_suffix_is_an_image_by_its_content_type(bucket: Bucket, read: Read) -> None:
    bucket.put("in/photo", b"x", content_type="image/jpeg")
    bucket.put("in/other", b"x", content_type="text/plain")
    assert images(read("gs://videos/in/")) == ["gs://videos/in/photo"]


def test_given_suffixes_replace_the_defaults(bucket: Bucket) -> None:
    bucket.put("in/a.jpg", b"x")
    bucket.put("in/b.raw1", b"x")
    bucket.put("in/c", b"x", content_type="image/jpeg")
    reader = DatasetReader(lambda: bucket.client, COLUMNS, (".raw1",))
    assert images(list(reader.rows("gs://videos/in/"))) == ["gs://videos/in/b.raw1"]
    assert reader.passed_over.total == 2


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tsv", "xlsx", "json", "avro", "orc", "csv.gz", "txt", "zip"])
@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_table_of_another_kind_is_refused_by_name(
    suffix: str, place: str, bucket: Bucket, read: Read, tmp_path: Path
) -> None:
    bucket.put(f"set.{suffix}", b"image\na.jpg\n")
    (tmp_path / f"set.{suffix}").write_bytes(b"image\na.jpg\n")
    address = f"gs://videos/set.{suffix}" if place == "bucket" else str(tmp_path / f"set.{suffix}")
    with pytest.raises(WanInputError, match=r"is not a manifest of a kind that is read.*\.parquet"):
        read(address)


def test_object_of_an_unknown_kind_is_not_called_missing(bucket: Bucket, read: Read) -> None:
    bucket.put("in/set.unknown", b"x")
    with pytest.raises(WanInputError, match="it is one object, by its name neither an image nor a manifest"):
        read("gs://videos/in/set.unknown")


@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_parquet_is_read_where_pyarrow_is_installed(place: str, bucket: Bucket, read: Read, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "set.parquet"
    table = pyarrow.table({"image": ["gs://videos/a.jpg", None, "b.jpg"], "seed": [7, 8, None]})
    parquet.write_table(table, path)
    bucket.put("sets/set.parquet", path.read_bytes())
    rows = read("gs://videos/sets/set.parquet" if place == "bucket" else str(path))
    beside = "gs://videos/sets/b.jpg" if place == "bucket" else str(tmp_path / "b.jpg")
    assert images(rows) == ["gs://videos/a.jpg", "error: there is no image", beside]
    assert isinstance(rows[0], DatasetRow)
    assert rows[0].inputs == {"prompt": "waves", "seed": 7}
    parquet.write_table(pyarrow.table({"image": ["a.jpg"], "promt": ["x"]}), path)
    with pytest.raises(WanInputError, match="unknown column 'promt'; did you mean 'prompt'"):
        read(str(path))
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(WanInputError, match="is not a Parquet table that can be read"):
        read(str(path))


def test_parquet_without_pyarrow_names_the_package(monkeypatch: pytest.MonkeyPatch, read: Read, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    with pytest.raises(WanInputError, match="pip install pyarrow"):
        read(str(tmp_path / "set.parquet"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("place", ["bucket", "disk"])
def test_csv_is_read_with_any_line_end(end: str, place: str, bucket: Bucket, read: Read, tmp_path: Path) -> None:
    text = end.join(["image,prompt", "gs://videos/a.jpg,rain", 'gs://videos/b.jpg,"fog, mist"', ""])
    bucket.put("set.csv", text.encode())
    (tmp_path / "set.csv").write_bytes(text.encode())
    rows = read("gs://videos/set.csv" if place == "bucket" else str(tmp_path / "set.csv"))
    assert images(rows) == ["gs://videos/a.jpg", "gs://videos/b.jpg"]
    assert [row.inputs["prompt"] for row in rows if isinstance(row, DatasetRow)] == ["rain", "fog, mist"]


def test_line_ends_at_the_edge_of_a_block_are_not_counted_twice(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    first = "image,prompt\r\n"
    row = f"a.jpg,{'x' * 100}\r\n"
    filler = 1024 * 1024 - len(first) - len("b.jpg,\r")
    count, rest = divmod(filler, len(row))
    path.write_text(first + row * count + f"b.jpg,{'y' * rest}\r\nc.jpg,z\r\n", newline="")
    rows = read(str(path))
    assert [row.line for row in rows if isinstance(row, DatasetRow)][-2:] == [count + 2, count + 3]


def test_manifest_that_is_stored_compressed_is_read(bucket: Bucket, read: Read) -> None:
    put_gzip(bucket, "set.csv", b"image\ngs://videos/a.jpg\n")
    assert images(read("gs://videos/set.csv")) == ["gs://videos/a.jpg"]
