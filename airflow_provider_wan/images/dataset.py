# SPDX-License-Identifier: Apache-2.0
"""Rows of a dataset: of a user's manifest, and prepared rows.

A row names the source image in the column ``image``, and the images of a model's other image fields in columns named
after them. A list of addresses (in CSV: as JSON) is an array of images. A text-to-video row names no image.

Rows are yielded one at a time, as they are read; a row that cannot be used is yielded as an error with its line, and
the others are not affected. Nothing here opens a file: the caller supplies the lines, from a disk or a bucket.
"""

from __future__ import annotations

import csv
import difflib
import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.readers import ObjectFacts, shown_name

_IMAGE, _VARIATION = "image", "variation"
#: Keys of a prepared image, and the type of those that it must have.
_FACTS = ("source", "staged_uri", "width", "height", "size_bytes", "sha256", "changes", "identity")
_TYPES: dict[str, type] = {"source": str, "staged_uri": str, "width": int, "height": int, "size_bytes": int}
_TYPES |= dict.fromkeys(("inputs", "passthrough", "images"), dict)
#: Common names of the image column elsewhere.
_IMAGE_ALIASES = frozenset(
    ("img_url", "image_url", "img", "url", "uri", "file", "filename", "file_name", "path", "source")
)
#: A longer row comes from a quote that was never closed, or from another kind of file.
MAX_LINE_CHARS = 1024 * 1024
_SHOWN_CHARS = 80
_UNDECODED = re.compile("[\udc80-\udcff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

T = TypeVar("T")
U = TypeVar("U")
#: The images of further fields: one each, or a list for a field that was given a list.
ByField = Mapping[str, T | tuple[T, ...]]


def map_images(function: Callable[[T], U], images: ByField[T]) -> dict[str, U | tuple[U, ...]]:
    """Return what a function makes of each image, in the same form."""
    return {
        name: tuple(map(function, given)) if isinstance(given, tuple) else function(given)
        for name, given in images.items()
    }


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One image that was checked, fixed and published, as it can be submitted, with the other images of its video.

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
    :param passthrough: columns that are carried along and not read.
    :param input_name: None: this is the source image. Else the row names all images by their fields, they are all in
        ``images``, and this is the first one, of that field.
    :param images: the images that the row names by their fields.
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
    input_name: str | None = None
    images: ByField[PreparedRow] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values: one line of a chunk manifest."""
        optional = {
            "passthrough": dict(self.passthrough),
            "input_name": self.input_name,
            "images": map_images(PreparedRow._facts, self.images),
        }
        row = {**self._facts(), "inputs": dict(self.inputs), "variation": self.variation}
        return row | {name: value for name, value in optional.items() if value}

    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FACTS} | {"changes": list(self.changes)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PreparedRow:
        """Read what :meth:`as_dict` wrote; other columns are ignored.

        :raises WanInputError: it is not a prepared row.
        """
        plain = plain if isinstance(plain, Mapping) else {}
        given: dict[str, Any] = {name: plain.get(name) or kind() for name, kind in _TYPES.items()}
        wrong = [name for name, kind in _TYPES.items() if not isinstance(given[name], kind)]
        wrong += [name for name in ("source", "staged_uri") if not given[name]]
        if wrong:
            raise WanInputError(
                f"This is not a prepared row: {', '.join(wrong)} is missing or of the wrong type. Use a row that "
                "WanPrepareImagesOperator wrote, or the address of an image."
            )
        images = {
            name: tuple(image) if isinstance(image, list) else image
            for name, image in given.pop("images").items()
        }
        return cls(
            **given,
            sha256=str(plain.get("sha256") or ""),
            changes=tuple(plain.get("changes") or ()),
            identity=plain.get("identity"),
            variation=plain.get("variation"),
            input_name=plain.get("input_name"),
            images=map_images(cls.from_dict, images),
        )


def is_source_list(name: str, found: RowImage | tuple[RowImage, ...]) -> bool:
    """Return whether a row gives its source image as a list, for a model that takes an array of them."""
    return name == _IMAGE and isinstance(found, tuple)


def is_prepared_row(plain: Mapping[str, Any]) -> bool:
    """Return whether a row is a prepared row, not one of a user's manifest."""
    return "staged_uri" in plain


@dataclass(frozen=True, slots=True)
class RowImage:
    """One image of a row.

    :param address: ``gs://``, ``https://`` or a path; None: signed, and so not kept over a wait.
    :param known: its metadata from a listing.
    :param prepared: the prepared image, for a row of a chunk manifest.
    """

    address: str | None
    known: ObjectFacts | None = None
    prepared: PreparedRow | None = None


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One video of a dataset.

    :param image: address of the source image: ``gs://``, ``https://`` or a path; empty: it has none.
    :param inputs: the model's inputs for it: the task's defaults, overridden by the row's columns.
    :param variation: see :class:`~airflow_provider_wan.operators.wan.WanSubmitOperator`; None if not given.
    :param passthrough: columns that are carried along and not read.
    :param origin: the manifest, without the query of its address.
    :param line: the row's first line in it, counted from 1.
    :param known: the image's metadata from a listing.
    :param prepared: the prepared image, for a row of a chunk manifest.
    :param images: the images that the row names by their fields.
    """

    image: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    line: int = 0
    known: ObjectFacts | None = None
    prepared: PreparedRow | None = None
    images: ByField[RowImage] = field(default_factory=dict)

    @classmethod
    def of_prepared(cls, row: PreparedRow) -> DatasetRow:
        """Return the row that a prepared row stands for."""
        has_image = row.input_name is None
        return cls(
            row.source if has_image else "",
            row.inputs,
            row.variation,
            row.passthrough,
            prepared=row if has_image else None,
            images=map_images(lambda image: RowImage(image.source, prepared=image), row.images),
        )

    @property
    def where(self) -> str:
        """The row's place, for messages: ``gs://shoes/set.csv, line 12``."""
        return f"{self.origin}, line {self.line}" if self.line else self.origin


@dataclass(frozen=True, slots=True)
class RowError:
    """A row that cannot be used, and why."""

    origin: str
    line: int
    message: str

    @property
    def where(self) -> str:
        """The row's place."""
        return f"{self.origin}, line {self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a manifest may have, and the defaults that they override.

    :param inputs: names of the model's inputs; None where they are not known, and any column is one.
    :param defaults: the task's inputs, for cells that a row leaves empty.
    :param variation: the task's variation, for rows that give none.
    :param passthrough: further columns, carried along and not read.
    :param images: of the inputs, those that take an image. A value that begins with ``gs://`` is an image in any case:
        RunComfy cannot read it as it is.
    :param needs_image: whether every row has an image.
    """

    inputs: Collection[str] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Collection[str] = ()
    images: Collection[str] = ()
    needs_image: bool = True

    def problems(self, names: Collection[str]) -> list[str]:
        """Return a message for each unknown column, with the nearest known name."""
        return [self._unknown(name) for name in names if not self._is_known(name)]

    def problems_of_table(self, names: Sequence[str]) -> list[str]:
        """Return a message for each fault of the first line of a table."""
        problems = self.problems(names)
        problems += [
            f"column {name!r} is there twice" for name in sorted({x for x in names if names.count(x) > 1})
        ]
        if self.needs_image and not {_IMAGE, *self.images} & {*names}:
            problems.append("there is no column 'image' in the first line")
        return problems

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


#: A row's first line, with its cells or its error.
RawRow = tuple[int, Mapping[str, Any] | str]


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
    suffix = shown.rpartition(".")[2].lower()
    if suffix not in ("csv", "jsonl", "ndjson"):
        raise WanInputError(
            f"{shown} is not a manifest that can be read: use .csv, .jsonl, .ndjson or .parquet."
        )
    texts = _texts(lines, shown)
    return rows_of(
        _read_csv(texts, shown, columns) if suffix == "csv" else _read_jsonl(texts, columns), shown, columns
    )


def rows_of(raw: Iterable[RawRow], origin: str, columns: Columns) -> Iterator[DatasetRow | RowError]:
    """Yield rows whose columns were checked; a row that can't be used is yielded as an error."""
    for line, cells in raw:
        try:
            if isinstance(cells, str):
                raise ValueError(cells)
            yield row_of_cells(cells, origin=origin, line=line, columns=columns)
        except ValueError as error:
            yield RowError(origin, line, str(error))


def row_of_cells(cells: Mapping[str, Any], *, origin: str, line: int, columns: Columns) -> DatasetRow:
    """Return a row of a manifest, or of a prepared row, whose columns were checked.

    :raises ValueError: it names no image, or the image cannot be used.
    """
    if is_prepared_row(cells):
        try:
            row = DatasetRow.of_prepared(PreparedRow.from_dict(cells))
        except WanInputError as error:
            raise ValueError(str(error)) from error
        inputs, images = _split({**columns.defaults, **row.inputs}, columns, origin)
        variation = columns.variation if row.variation is None else row.variation
        images |= row.images
        return replace(row, inputs=inputs, variation=variation, images=images, origin=origin, line=line)
    given = {name: value for name, value in cells.items() if value is not None and value != ""}
    image, variation = given.pop(_IMAGE, None), given.pop(_VARIATION, columns.variation)
    passthrough = {name: given.pop(name) for name in columns.passthrough if name in given}
    inputs, images = _split({**columns.defaults, **given}, columns, origin)
    if image is not None:
        found = _row_images(image, _IMAGE, origin)
        if isinstance(found, tuple):  # the source images of a model that takes an array of them
            image, images = "", {_IMAGE: found, **images}
        else:
            image = found.address
    elif not images and columns.needs_image:
        raise ValueError("there is no image")
    return DatasetRow(
        image=image or "",
        inputs=inputs,
        variation=None if variation is None else str(variation),
        passthrough=passthrough,
        origin=origin,
        line=line,
        images=images,
    )


def _split(
    given: dict[str, Any], columns: Columns, origin: str
) -> tuple[dict[str, Any], dict[str, RowImage | tuple[RowImage, ...]]]:
    """Split the inputs of a row into those that are sent as they are, and images."""
    names = [name for name, value in given.items() if name in columns.images or _is_in_bucket(value)]
    images = {name: _row_images(given[name], name, origin) for name in names if given[name] is not None}
    return {name: value for name, value in given.items() if name not in names}, images


def _listed(value: Any) -> Any:
    """Return a list that a table holds as JSON text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if isinstance(found, list) else value
    return value


def _is_in_bucket(value: Any) -> bool:
    if isinstance(value, str) and value[:1] not in "[g":
        return False
    found = _listed(value)
    each = found if isinstance(found, list | tuple) else [found]
    return any(isinstance(address, str) and address.startswith("gs://") for address in each)


def _row_images(value: Any, name: str, origin: str) -> RowImage | tuple[RowImage, ...]:
    found = _listed(value)
    each = found if isinstance(found, list | tuple) else [found]
    if not each or not all(isinstance(address, str) for address in each):
        raise ValueError(f"the {name} must be a text (an address or a path) or a list of them")
    images = tuple(RowImage(resolve_image(address, origin=origin)) for address in each)
    return images if isinstance(found, list | tuple) else images[0]


def _texts(lines: Iterable[str | bytes], origin: str) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0 and isinstance(line, bytes) and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise WanInputError(f"{origin} is in UTF-16. Save it as UTF-8.")
        text = line if isinstance(line, str) else line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


#: Made once: each new decoder leaves a reference cycle behind, which adds up over a hundred thousand rows.
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _read_jsonl(texts: Iterator[str], columns: Columns) -> Iterator[RawRow]:
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
    return "; ".join(columns.problems(cells)) or cells


def _read_csv(texts: Iterator[str], origin: str, columns: Columns) -> Iterator[RawRow]:
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
    broken = columns.problems_of_table(header)
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
