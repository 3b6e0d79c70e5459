# SPDX-License-Identifier: Apache-2.0
"""Rows of a dataset: of a user's manifest, and prepared rows.

Rows are yielded one at a time, as they are read; a row that cannot be used is yielded as an error with its line, and
the others are not affected. Nothing here opens a file: the caller supplies the lines, from a disk or a bucket.
"""

from __future__ import annotations

import csv
import difflib
import json
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.readers import ObjectFacts, shown_name

_IMAGE, _VARIATION = "image", "variation"
_TEXTS = ("source", "staged_uri")
_NUMBERS = ("width", "height", "size_bytes")
#: Common names of the image column elsewhere.
_IMAGE_ALIASES = frozenset(
    ("img_url", "image_url", "img", "url", "uri", "file", "filename", "file_name", "path", "source")
)
#: A longer row comes from a quote that was never closed, or from another kind of file.
MAX_LINE_CHARS = 1024 * 1024
_SHOWN_CHARS = 80
_UNDECODED = re.compile("[\udc80-\udcff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One image that was checked, fixed and published, as it can be submitted.

    :param source: address of the image that it came from, without signature.
    :param staged_uri: address of the submitted image: a staged copy (``gs://``), or the source if it fits unchanged.
    :param width: in px.
    :param size_bytes: size of the file.
    :param sha256: of the file, in hex.
    :param changes: the changes made to the source, in words; empty if there are none.
    :param identity: what identifies the image in a fingerprint (``md5:...`` of the source's content); None: its
        address.
    :param inputs: the row's own inputs of the model.
    :param variation: as in :class:`~airflow_provider_wan.operators.wan.WanSubmitOperator`.
    """

    source: str
    staged_uri: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    changes: tuple[str, ...] = ()
    identity: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values: one line of a chunk manifest."""
        plain = {
            "source": self.source,
            "staged_uri": self.staged_uri,
            "width": self.width,
            "height": self.height,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "changes": list(self.changes),
            "identity": self.identity,
            "inputs": dict(self.inputs),
            "variation": self.variation,
        }
        return plain | ({"passthrough": dict(self.passthrough)} if self.passthrough else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PreparedRow:
        """Read what :meth:`as_dict` wrote; other columns are ignored.

        :raises WanInputError: it is not a prepared row.
        """
        row = cls(
            source=plain.get("source", ""),
            staged_uri=plain.get("staged_uri", ""),
            width=plain.get("width", 0),
            height=plain.get("height", 0),
            size_bytes=plain.get("size_bytes", 0),
            sha256=str(plain.get("sha256") or ""),
            changes=tuple(plain.get("changes") or ()),
            identity=plain.get("identity"),
            inputs=plain.get("inputs") or {},
            variation=plain.get("variation"),
            passthrough=plain.get("passthrough") or {},
        )
        wrong = [name for name in _TEXTS if not isinstance(getattr(row, name), str) or not getattr(row, name)]
        wrong += [name for name in _NUMBERS if not isinstance(getattr(row, name), int)]
        wrong += [name for name in ("inputs", "passthrough") if not isinstance(getattr(row, name), Mapping)]
        if wrong:
            raise WanInputError(
                f"This is not a prepared row: {', '.join(wrong)} is missing or of the wrong type. Use a row that "
                "WanPrepareImagesOperator wrote, or the address of an image."
            )
        return row


def is_prepared_row(plain: Mapping[str, Any]) -> bool:
    """Return whether a row is a prepared row, not one of a user's manifest."""
    return "staged_uri" in plain


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One video of a dataset.

    :param image: address of the image: ``gs://``, ``https://`` or a path.
    :param inputs: the model's inputs for it: the task's defaults, overridden by the row's columns.
    :param variation: see :class:`~airflow_provider_wan.operators.wan.WanSubmitOperator`; None if not given.
    :param passthrough: columns that are carried along and not read.
    :param origin: the manifest, without the query of its address.
    :param line: the row's first line in it, counted from 1.
    :param known: the image's metadata from a listing.
    :param prepared: the prepared image, for a row of a chunk manifest.
    """

    image: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    line: int = 0
    known: ObjectFacts | None = None
    prepared: PreparedRow | None = None

    @property
    def where(self) -> str:
        """The row's place, for messages: ``gs://shoes/set.csv, line 12``."""
        return f"{self.origin}, line {self.line}"


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be used, and why."""

    origin: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.origin}, line {self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a manifest may have, and the defaults that they override.

    :param inputs: names of the model's inputs; None where they are not known, and any column is one.
    :param defaults: the task's inputs, for cells that a row leaves empty.
    :param variation: the task's variation, for rows that give none.
    :param passthrough: further columns, carried along and not read.
    """

    inputs: Collection[str] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Collection[str] = ()

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return a message for each unknown column, with the nearest known one."""
        return [self._unknown(name) for name in names if not self._is_known(name)]

    def _is_known(self, name: str) -> bool:
        if name in (_IMAGE, _VARIATION) or name in self.passthrough:
            return True
        return bool(name) and (self.inputs is None or name in self.inputs)

    def _unknown(self, name: str) -> str:
        known = [_IMAGE, *(self.inputs or ()), _VARIATION, *self.passthrough]
        near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.6)
        if name.strip().lower() in _IMAGE_ALIASES:
            near = [_IMAGE]
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown column {name[:_SHOWN_CHARS]!r}; {hint}"


def read_manifest(
    lines: Iterable[str | bytes], *, origin: str, columns: Columns
) -> Iterator[DatasetRow | RowError]:
    """Yield the rows of a manifest, in order.

    :param lines: its lines, as a text file gives them, or as bytes in UTF-8.
    :param origin: its address or path: the suffix ``.csv``, ``.jsonl`` or ``.ndjson`` says what it is, and relative
        addresses of images are relative to it.
    :param columns: the columns that it may have. An empty or null cell means the task's value.
    :raises WanInputError: the file as a whole is wrong: of another kind, without an ``image`` column, or with an
        unknown column in a CSV file's first line. (In JSONL an unknown column is an error of its row.)
    """
    shown = shown_name(origin)
    readers = {"csv": _read_csv, "jsonl": _read_jsonl, "ndjson": _read_jsonl}
    reader = readers.get(shown.rpartition(".")[2].lower())
    if reader is None:
        raise WanInputError(
            f"{shown} is not a manifest that can be read: use .csv, .jsonl, .ndjson or .parquet."
        )
    return _rows(reader(_texts(lines, shown), shown, columns), shown, columns)


#: A row's first line, with its cells or its error.
_RawRow = tuple[int, Mapping[str, Any] | str]


def _texts(lines: Iterable[str | bytes], origin: str) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0 and isinstance(line, bytes) and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise WanInputError(f"{origin} is in UTF-16. Save it as UTF-8.")
        text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _rows(raw: Iterable[_RawRow], origin: str, columns: Columns) -> Iterator[DatasetRow | RowError]:
    for line, cells in raw:
        if isinstance(cells, str):
            yield RowError(origin, line, cells)
            continue
        try:
            yield row_of_cells(cells, origin=origin, line=line, columns=columns)
        except ValueError as error:
            yield RowError(origin, line, str(error))


def row_of_cells(cells: Mapping[str, Any], *, origin: str, line: int, columns: Columns) -> DatasetRow:
    """Return a row of a manifest, or of a prepared row, whose columns were checked.

    :raises ValueError: it names no image, or the image cannot be used.
    """
    if is_prepared_row(cells):
        return _prepared_row(cells, origin, line, columns)
    given = {name: value for name, value in cells.items() if value is not None and value != ""}
    image = given.pop(_IMAGE, None)
    variation = given.pop(_VARIATION, columns.variation)
    if not isinstance(image, str):
        raise ValueError(
            "there is no image" if image is None else "the image must be a text: an address or a path"
        )
    passthrough = {name: given.pop(name) for name in columns.passthrough if name in given}
    return DatasetRow(
        image=resolve_image(image, origin=origin),
        inputs={**columns.defaults, **given},
        variation=None if variation is None else str(variation),
        passthrough=passthrough,
        origin=origin,
        line=line,
    )


def _prepared_row(cells: Mapping[str, Any], origin: str, line: int, columns: Columns) -> DatasetRow:
    try:
        row = PreparedRow.from_dict(cells)
    except WanInputError as error:
        raise ValueError(str(error)) from error
    return DatasetRow(
        image=row.source,
        inputs={**columns.defaults, **row.inputs},
        variation=columns.variation if row.variation is None else row.variation,
        passthrough=row.passthrough,
        origin=origin,
        line=line,
        prepared=row,
    )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


#: Made once: each new decoder leaves a reference cycle behind, which adds up over a hundred thousand rows.
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _read_jsonl(texts: Iterator[str], origin: str, columns: Columns) -> Iterator[_RawRow]:
    for line, text in enumerate(texts, 1):
        if text.strip():
            yield line, _json_cells(text, columns)


def _json_cells(text: str, columns: Columns) -> Mapping[str, Any] | str:
    if len(text) > MAX_LINE_CHARS:
        return f"the line is longer than {MAX_LINE_CHARS:,} characters"
    if _UNDECODED.search(text):
        return "the line is not UTF-8"
    try:
        cells = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON ({error})"
    if not isinstance(cells, dict):
        return 'the line is not an object such as {"image": "gs://...", "prompt": "..."}'
    if is_prepared_row(cells):
        return cells
    return "; ".join(columns.unknown(cells)) or cells


def _read_csv(texts: Iterator[str], origin: str, columns: Columns) -> Iterator[_RawRow]:
    reader = csv.reader(texts, strict=True)
    header = [name.strip() for name in next(_csv_rows(reader), (1, []))[1]]
    _check_header(header, origin, columns)
    for line, cells in _csv_rows(reader):
        if isinstance(cells, str):
            yield line, cells
        elif len(cells) != len(header):
            yield (
                line,
                f"it has {len(cells)} cells and the first line {len(header)}; put a text with a comma in quotes",
            )
        elif any(not cell.isascii() and _UNDECODED.search(cell) for cell in cells):
            yield line, "the line is not UTF-8"
        else:
            yield line, dict(zip(header, map(str.strip, cells), strict=True))


def _csv_rows(reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each row that is not blank with its first line; a message for a row that breaks the rules of CSV."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"it is not CSV ({error}); is a quote not closed?"
            continue
        if any(cells):
            yield line, cells


def _check_header(header: list[str], origin: str, columns: Columns) -> None:
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise WanInputError(f"{origin}: its columns are not separated by commas. Save it as CSV with commas.")
    broken = columns.unknown(header)
    broken += [
        f"column {name!r} is there twice" for name in sorted({x for x in header if header.count(x) > 1})
    ]
    if _IMAGE not in header:
        broken.append("there is no column 'image' in the first line")
    if broken:
        raise WanInputError(f"{origin}, line 1: {'; '.join(broken)}.")


def resolve_image(image: str, *, origin: str) -> str:
    """Return an image's full address: a relative one is relative to the manifest.

    :param image: ``gs://bucket/object``, ``https://...``, a path, or any of them relative to the manifest.
    :param origin: the manifest's address or path.
    :raises ValueError: another scheme, no object in a ``gs://`` address, or no URL at all.
    """
    image = image.strip()
    scheme = _SCHEME.match(image)
    if scheme:
        kind = scheme.group().lower()
        if kind not in ("gs:", "http:", "https:"):
            raise ValueError(f"the image {image[:_SHOWN_CHARS]!r} is at {kind}//; use gs:// or https://")
        bucket, _, name = image.partition("://")[2].partition("/")
        if not bucket or not name:
            raise ValueError(f"the image {image[:_SHOWN_CHARS]!r} names no file")
        if kind != "gs:":
            _check_url(image)
        return image
    if not image:
        raise ValueError("there is no image")
    if origin.startswith(("http://", "https://")):
        return urljoin(origin, quote(image))
    if origin.startswith("gs://"):
        bucket, _, name = origin.removeprefix("gs://").partition("/")
        return f"gs://{bucket}/{posixpath.normpath(posixpath.join('/', posixpath.dirname(name), image)).lstrip('/')}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), image))


def _check_url(url: str) -> None:
    try:
        _ = urlsplit(url).port
    except ValueError:  # an unfinished bracket, a port out of range; its own words may hold credentials
        raise ValueError("the image's address is not a URL that can be read") from None
