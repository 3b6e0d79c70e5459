# SPDX-License-Identifier: Apache-2.0
"""Rows of a manifest: what they override, what is refused, and constant memory for any number of rows."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.dataset import read_manifest
from airflow_provider_wan.images.rows import Columns, DatasetRow, RowError, RowImage, resolve_image
from airflow_provider_wan.model_api.schema import load_schema

SCHEMA = load_schema("wan-ai/wan-2-2/image-to-video")
assert SCHEMA is not None
INPUTS = tuple(name for name in SCHEMA.fields if name not in SCHEMA.image_fields)
COLUMNS = Columns(inputs=INPUTS, defaults={"prompt": "a slow pan", "resolution": "480P"}, passthrough=("sku",))


def _csv(text: str, columns: Columns = COLUMNS, origin: str = "gs://shoes/set.csv") -> list[DatasetRow | RowError]:
    return list(read_manifest(io.BytesIO(text.encode()), origin=origin, columns=columns))


def _jsonl(*rows: Any, columns: Columns = COLUMNS) -> list[DatasetRow | RowError]:
    texts = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    lines = b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts)
    return list(read_manifest(io.BytesIO(lines), origin="set.jsonl", columns=columns))


def test_a_row_overrides_the_tasks_defaults_and_an_empty_cell_does_not() -> None:
    rows = _csv(
        "image,prompt,seed,resolution,variation,sku\n"
        "gs://shoes/a.jpg,it turns,7,,take 2,A-1\n"
        'https://example.com/b.jpg,"left, then right",,1080P,,\n'
    )
    assert rows == [
        DatasetRow(
            (RowImage("gs://shoes/a.jpg"),),
            inputs={"prompt": "it turns", "resolution": "480P", "seed": "7"},
            variation="take 2",
            passthrough={"sku": "A-1"},
            origin="gs://shoes/set.csv",
            line=2,
        ),
        DatasetRow(
            (RowImage("https://example.com/b.jpg"),),
            inputs={"prompt": "left, then right", "resolution": "1080P"},
            origin="gs://shoes/set.csv",
            line=3,
        ),
    ]


def test_jsonl_keeps_types_and_null_means_not_given() -> None:
    (row,) = _jsonl({"image": "gs://a/b.jpg", "seed": 7, "prompt_extend": False, "prompt": None, "variation": 3})
    assert isinstance(row, DatasetRow)
    assert row.inputs == {"prompt": "a slow pan", "resolution": "480P", "seed": 7, "prompt_extend": False}
    assert row.variation == "3"


def test_row_without_a_variation_uses_the_tasks() -> None:
    columns = Columns(inputs=INPUTS, variation="spring")
    rows = _csv("image,variation\na.jpg,\nb.jpg,own\n", columns)
    assert [row.variation for row in rows if isinstance(row, DatasetRow)] == ["spring", "own"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,promt", "unknown column 'promt'; did you mean 'prompt'?"),
        ("img_url,prompt", "unknown column 'img_url'; did you mean 'image'?"),
        ("image,price", "unknown column 'price'; known are image, prompt,"),
        ("prompt,seed", "there is no column 'image'"),
        ("image,prompt,prompt", "column 'prompt' is there twice"),
        ("image;prompt", "not separated by commas"),
        ("image,", "unknown column ''"),
        ("", "there is no column 'image'"),
    ],
)
def test_a_header_that_is_wrong_refuses_the_file_and_names_it(header: str, message: str) -> None:
    with pytest.raises(WanInputError) as caught:
        _csv(f"{header}\ngs://a/b.jpg,x\n")
    assert message in str(caught.value)
    assert str(caught.value).startswith("gs://shoes/set.csv")


def test_bad_row_is_reported_with_file_and_line_and_the_rest_is_read() -> None:
    rows = _csv(
        "image,prompt\n"
        "gs://a/1.jpg,fine\n"
        "\n"
        ",no image\n"
        "gs://a/2.jpg,one, two\n"
        'gs://a/3.jpg,"quoted" wrongly\n'
        "s3://a/4.jpg,elsewhere\n"
        'gs://a/5.jpg,"two\nlines"\n'
        "gs://a/6.jpg,fine\n"
    )
    assert [str(row) for row in rows if isinstance(row, RowError)] == [
        "gs://shoes/set.csv, line 4: there is no image",
        "gs://shoes/set.csv, line 5: it has 3 cells and the first line 2; put a text with a comma in quotes",
        "gs://shoes/set.csv, line 6: it is not CSV (',' expected after '\"'); is a quote not closed?",
        "gs://shoes/set.csv, line 7: the image 's3://a/4.jpg' is at s3://; use gs:// or https://",
    ]
    assert [(row.image, row.line) for row in rows if isinstance(row, DatasetRow)] == [
        ("gs://a/1.jpg", 2),
        ("gs://a/5.jpg", 8),
        ("gs://a/6.jpg", 10),
    ]


def test_bad_jsonl_row_is_reported_with_file_and_line_and_the_rest_is_read() -> None:
    rows = _jsonl(
        {"image": "gs://a/1.jpg"},
        "{not json",
        "",
        '"gs://a/2.jpg"',
        {"image": 7},
        {"image": "gs://a/3.jpg", "promt": "x"},
        '{"image": "gs://a/4.jpg", "seed": NaN}',
        b'{"image": "gs://a/\xff.jpg"}',
        {"image": "gs://a/5.jpg", "prompt": "x" * 2_000_000},
        {"image": "gs://a/6.jpg"},
    )
    errors = [(row.line, row.message) for row in rows if isinstance(row, RowError)]
    assert [line for line, _ in errors] == [2, 4, 5, 6, 7, 8, 9]
    for (_, message), part in zip(
        errors,
        (
            "not JSON",
            "not an object",
            "must be a text",
            "did you mean 'prompt'?",
            "NaN",
            "not UTF-8",
            "longer than",
        ),
        strict=True,
    ):
        assert part in message
    assert [row.image for row in rows if isinstance(row, DatasetRow)] == ["gs://a/1.jpg", "gs://a/6.jpg"]


def test_unclosed_quote_is_bounded() -> None:
    lines = ["image,prompt\n", 'gs://a/1.jpg,"open\n'] + [f"gs://a/{n}.jpg,fine words here\n" for n in range(9000)]
    rows = _csv("".join(lines))
    assert isinstance(rows[0], RowError)
    assert isinstance(rows[-1], DatasetRow)


def test_byte_order_mark_spaces_and_other_alphabets_are_accepted() -> None:
    text = "\ufeffimage , prompt\r\n gs://schuhe/größe 42/靴.jpg ,  dreht sich langsam \r\n"
    (row,) = _csv(text, origin="set.CSV")
    assert isinstance(row, DatasetRow)
    assert (row.image, row.inputs["prompt"]) == ("gs://schuhe/größe 42/靴.jpg", "dreht sich langsam")


def test_a_file_in_utf_16_is_refused() -> None:
    with pytest.raises(WanInputError, match="UTF-16"):
        list(read_manifest(io.BytesIO("image\n".encode("utf-16")), origin="set.csv", columns=COLUMNS))


def test_any_column_is_an_input_where_the_model_is_not_known() -> None:
    (row,) = _csv("image,strength\na.jpg,0.5\n", Columns(inputs=None))
    assert isinstance(row, DatasetRow)
    assert row.inputs == {"strength": "0.5"}


@pytest.mark.parametrize(
    ("image", "origin", "expected"),
    [
        ("gs://other/x.jpg", "gs://shoes/sets/set.csv", "gs://other/x.jpg"),
        ("https://example.com/x.jpg?a=1", "set.csv", "https://example.com/x.jpg?a=1"),
        ("a b.jpg", "gs://shoes/sets/set.csv", "gs://shoes/sets/a b.jpg"),
        ("photos/ü.jpg", "gs://shoes/set.csv", "gs://shoes/photos/ü.jpg"),
        ("../x.jpg", "gs://shoes/sets/may/set.csv", "gs://shoes/sets/x.jpg"),
        ("../../../x.jpg", "gs://shoes/sets/set.csv", "gs://shoes/x.jpg"),
        ("a b.jpg", "https://example.com/sets/set.csv", "https://example.com/sets/a%20b.jpg"),
        ("photos/x.jpg", "/data/sets/set.csv", "/data/sets/photos/x.jpg"),
        ("/data/x.jpg", "/data/sets/set.csv", "/data/x.jpg"),
        ("x.jpg", "set.csv", "x.jpg"),
    ],
)
def test_a_relative_image_is_beside_its_manifest(image: str, origin: str, expected: str) -> None:
    assert resolve_image(image, origin=origin) == expected


@pytest.mark.parametrize(
    "image", ["", "  ", "gs://bucket", "gs:///x.jpg", "https://host", "data:image/png;base64,AA", "s3://b/x"]
)
def test_an_address_that_names_no_usable_file_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match="image"):
        resolve_image(image, origin="set.csv")


def _peak_of(count: int, suffix: str) -> int:
    def lines() -> Iterator[bytes]:
        if suffix == "csv":
            yield b"image,prompt,seed\n"
        for number in range(count):
            prompt, image = "a slow pan " * 50, f"gs://shoes/photos/{number:06}.jpg"
            if suffix == "csv":
                yield f"{image},{prompt},{number}\n".encode()
            else:
                yield json.dumps({"image": image, "prompt": prompt, "seed": number}).encode() + b"\n"

    file = io.BytesIO(b"".join(lines()))
    tracemalloc.start()
    try:
        rows = sum(isinstance(row, DatasetRow) for row in read_manifest(file, origin=f"s.{suffix}", columns=COLUMNS))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == count
    return peak


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_beyond_the_block_that_is_read_take_no_more_memory(suffix: str) -> None:
    # In a process of its own: what is traced is the whole process, the threads of other tests included.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        alone.submit(_peak_of, 1_000, suffix).result()  # what is made once and kept
        few = alone.submit(_peak_of, 5_000, suffix).result()
        assert alone.submit(_peak_of, 20_000, suffix).result() <= 1.2 * few


def test_rows_are_read_from_a_file_as_they_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"image": "a.jpg"}\n{"image": "b.jpg"}\n', encoding="utf-8")
    with path.open("rb") as file:
        rows = read_manifest(file, origin=str(path), columns=COLUMNS)
        first = next(rows)
    assert isinstance(first, DatasetRow)
    assert first.image == str(tmp_path / "a.jpg")
    assert first.where == f"{path}, line 1"
