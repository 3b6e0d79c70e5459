# SPDX-License-Identifier: Apache-2.0
"""Read the rows of a dataset: of a prefix in a bucket, of addresses, of manifests, or of all of these.

Rows are yielded one at a time, as they are read; a row that cannot be used is yielded as an error with its line, and
the others are not affected. Only the page of a listing, the megabyte of a manifest or the row group of a Parquet file
that is being read is held in memory, however long the dataset is.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks.gcs import META_REQUEST, call_limits, split_gs_uri
from airflow_provider_wan.images.codecs import SUFFIXES, UNUSABLE_SUFFIXES
from airflow_provider_wan.images.readers import (
    BucketReader,
    bucket_errors,
    bucket_of,
    facts_of,
    look_up_object,
    shown_name,
)
from airflow_provider_wan.images.rows import (
    Columns,
    RawRow,
    Row,
    RowError,
    RowImage,
    is_prepared_row,
    row_of_cells,
    rows_of,
)
from airflow_provider_wan.model_api.coercion import literal_of

if TYPE_CHECKING:
    from google.cloud import storage

log = getLogger(__name__)

#: A longer row comes from a quote that was never closed, or from another kind of file.
MAX_LINE_CHARS = 1024 * 1024
#: A file with longer lines is not a manifest.
_LONGEST_LINE_CHARS = 8 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
_NAMED = 20
_UNDECODED = re.compile("[\udc80-\udcff]")

#: Objects of a prefix that are rows: images that can be used or converted, and files commonly taken for images, which
#: the report then names instead of silently leaving them out.
IMAGE_SUFFIXES = tuple(f".{suffix}" for suffix in (*SUFFIXES, *UNUSABLE_SUFFIXES))
_MANIFESTS = (".csv", ".jsonl", ".ndjson", ".parquet")
#: Tables and archives: refused by name instead of being taken for a prefix.
_TABLES = (
    ".tsv", ".tab", ".psv", ".txt", ".json", ".yaml", ".yml", ".xml", ".html", ".xls", ".xlsx", ".xlsm", ".ods",
    ".avro", ".orc", ".feather", ".arrow", ".ipc", ".pkl", ".pickle", ".npz", ".h5", ".sqlite", ".db", ".tfrecord",
    ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z",
)  # fmt: skip


@dataclass(slots=True)
class PassedOver:
    """Objects of prefixes that are not images by their name, or posters of landed videos, and so not rows.

    :param kinds: how many of each kind: a suffix, ``no suffix`` or ``macOS companion file``.
    :param names: addresses of the first ones.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)

    def add(self, uri: str) -> None:
        """Count one object."""
        name = uri.rpartition("/")[2]
        stem, dot, suffix = name.rpartition(".")
        kind = f".{suffix.lower()}" if dot and stem else "no suffix"
        self.kinds["macOS companion file" if name.startswith("._") else kind] += 1
        if len(self.names) < _NAMED:
            self.names.append(uri)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.kinds.values())

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "passed_over": self.total,
            "passed_over_by_kind": dict(sorted(self.kinds.items())),
            "passed_over_first": list(self.names),
        }

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        more = ", ..." if self.total > len(self.names) else ""
        return f"{kinds} ({', '.join(self.names)}{more})"


@dataclass(frozen=True, slots=True)
class DatasetReader:
    """Yields the rows of a dataset in any supported form.

    :param client: returns the Cloud Storage client; called only if one is needed.
    :param columns: the columns that a manifest may have, and the task's defaults for empty cells.
    :param suffixes: which objects of a prefix are images, in lower case with their dot. None (default):
        :data:`IMAGE_SUFFIXES`, and objects whose content type says so.
    :param may_be_empty: whether a prefix without any image has no rows instead of being an error.
    :param passed_over: counts the objects of prefixes that are not images.
    """

    client: Callable[[], storage.Client]
    columns: Columns = field(default_factory=Columns)
    suffixes: Sequence[str] | None = None
    may_be_empty: bool = False
    passed_over: PassedOver = field(default_factory=PassedOver)

    def rows(self, dataset: Any) -> Iterator[Row]:
        """Yield the rows in order; a row that can't be used is yielded as an error, and the others are not affected.

        :param dataset: ``gs://bucket/prefix/`` (all images under it), the address or path of a manifest (``.csv``,
            ``.jsonl``, ``.ndjson``, ``.parquet``, also one that ``WanPrepareImagesOperator`` wrote), the address of an
            image, a row as a mapping, or a list of any of these, also as JSON text.
        :raises WanInputError: it has another form, or a manifest as a whole is invalid.
        :raises WanStorageError: the bucket can't be read.
        """
        dataset = _plain(dataset)
        entries = [dataset] if isinstance(dataset, str | Mapping) else dataset
        if not isinstance(entries, Iterable):
            raise WanInputError(
                f"{str(dataset)[:80]!r} is neither the address of images or a manifest, nor a list of them."
            )
        is_many = entries is dataset
        for number, entry in enumerate(entries, 1):
            where = f"dataset[{number - 1}]" if is_many else "dataset"
            if isinstance(entry, Mapping):
                yield self._given_row(entry, where, number)
            elif isinstance(entry, str):
                yield from self._of_address(entry.strip(), where, number)
            else:
                yield RowError(where, number, f"it is of type {type(entry).__name__}, not an address or a row")

    def _of_address(self, address: str, where: str, number: int) -> Iterator[Row]:
        try:
            shown = shown_name(address).lower()
        except ValueError:  # not a URL: its row says so
            shown = address.lower()
        if shown.endswith(_MANIFESTS):
            yield from self._manifest(address)
        elif shown.endswith(_TABLES):
            raise WanInputError(
                f"{shown_name(address)} is not a manifest of a kind that is read, and not an image: use .csv, .jsonl, "
                ".ndjson or .parquet. Nothing was bought."
            )
        elif address.startswith("gs://") and not shown.endswith(tuple(self.suffixes or IMAGE_SUFFIXES)):
            yield from self._prefix(address)
        else:
            yield self._given_row({"image": address}, where, number)

    def _given_row(self, entry: Mapping[str, Any], where: str, number: int) -> Row:
        broken = [] if is_prepared_row(entry) else self.columns.problems([str(name) for name in entry])
        (row,) = rows_of([(number, "; ".join(broken) or entry)], where, self.columns)
        return row

    # -- prefixes ----------------------------------------------------------------------------------------------------

    def _prefix(self, uri: str) -> Iterator[Row]:
        """List a prefix page by page."""
        bucket, prefix = split_gs_uri(uri, name="dataset")
        client = self.client()
        with bucket_errors(f"Listing {uri}"):
            blobs = iter(
                client.list_blobs(
                    bucket_of(client, bucket),
                    prefix=prefix,
                    fields="items(name,bucket,generation,size,md5Hash,contentType,contentEncoding,metadata),"
                    "nextPageToken",
                    **call_limits(),
                )
            )
        row = row_of_cells({}, origin=uri, line=0, columns=replace(self.columns, needs_image=False))
        images = 0
        passed_over = PassedOver()
        for number in range(1, 2**63):
            with bucket_errors(f"Listing {uri}"):
                blob = next(blobs, None)
            if blob is None:
                break
            if not self._is_image(blob):
                if not blob.name.endswith("/"):  # an empty object that represents a folder
                    passed_over.add(f"gs://{bucket}/{blob.name}")
                    self.passed_over.add(f"gs://{bucket}/{blob.name}")
                continue
            images += 1
            known = facts_of(blob)
            yield replace(row, images=(RowImage(known.uri, known=known), *row.images), line=number)
        if passed_over.total:
            log.warning(
                "%d objects under %s are not source images and were passed over: %s",
                passed_over.total,
                uri,
                passed_over,
            )
        if not images and not self.may_be_empty:
            raise WanInputError(self._no_image(uri, passed_over))

    def _is_image(self, blob: storage.Blob) -> bool:
        name: str = blob.name.rpartition("/")[2].lower()
        if name.startswith("._") or not name or META_REQUEST in (blob.metadata or {}):
            return False
        if self.suffixes is not None:
            return name.endswith(tuple(self.suffixes))
        return name.endswith(IMAGE_SUFFIXES) or str(blob.content_type).startswith("image/")

    def _no_image(self, uri: str, passed_over: PassedOver) -> str:
        if not passed_over.total:
            return f"There is no image under {uri}: no object's name starts so. Nothing was bought."
        if passed_over.names == [uri]:
            return (
                f"There is no image under {uri}: it is one object, by its name neither an image nor a manifest of a "
                "kind that is read (.csv, .jsonl, .ndjson, .parquet). Nothing was bought."
            )
        suffixes = ", ".join(self.suffixes or IMAGE_SUFFIXES)
        return (
            f"There is no image under {uri}: none of its {passed_over.total} objects has a name that ends with one of "
            f"{suffixes}. Passed over: {passed_over}. Nothing was bought."
        )

    def _manifest(self, address: str) -> Iterator[Row]:
        if "://" in address and not address.startswith("gs://"):
            raise WanInputError(
                f"The manifest {shown_name(address)} must be in a bucket (gs://...) or on disk; images in it may be "
                "anywhere."
            )
        if address.startswith("gs://"):
            client = self.client()
            with BucketReader(client, look_up_object(client, address)).open() as file:
                yield from read_manifest(file, origin=address, columns=self.columns)
            return
        try:
            with open(address, "rb") as file:
                yield from read_manifest(file, origin=address, columns=self.columns)
        except OSError as error:
            raise WanInputError(f"The manifest {address} can't be read: {error.strerror or error}.") from error


def _plain(dataset: Any) -> Any:
    """Read a list that Jinja has rendered as text."""
    if not isinstance(dataset, str) or not dataset.lstrip().startswith(("[", "{")):
        return dataset
    try:
        return literal_of(dataset)
    except ValueError:
        raise WanInputError(f"dataset={dataset[:80]!r} is neither an address nor a list in JSON.") from None


# -- manifests -------------------------------------------------------------------------------------------------------


def read_manifest(file: IO[bytes], *, origin: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a manifest, in order.

    :param file: its content; CSV and JSON lines in UTF-8, with any line ends.
    :param origin: its address or path: the suffix ``.csv`` or ``.parquet`` says what it is, any other is JSON lines;
        relative addresses of images are relative to it.
    :param columns: the columns that it may have. An empty or null cell means the task's value.
    :raises WanInputError: the file as a whole is wrong: damaged, without an ``image`` column, or with an unknown
        column in a table's header. (In JSON lines an unknown column is an error of its row.)
    """
    shown = shown_name(origin)
    if shown.lower().endswith(".parquet"):
        raw = _read_parquet(file, shown, columns)
    elif shown.lower().endswith(".csv"):
        raw = _read_csv(_lines(file, shown), shown, columns)
    else:
        raw = _read_jsonl(_lines(file, shown), columns)
    return rows_of(raw, shown, columns)


class _Blocks(io.BufferedReader):
    """Reads a file in whole blocks, although ``io.TextIOWrapper`` asks for 8 KiB: each read may be a call."""

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    r"""Yield the lines of a file, whether they end with ``\n``, ``\r\n`` or ``\r``.

    :raises WanInputError: a line is too long for a manifest.
    """
    blocks = _Blocks(cast(io.RawIOBase, file), _BLOCK_BYTES)
    text = io.TextIOWrapper(blocks, "utf-8-sig", "surrogateescape", newline="")
    for number, line in enumerate(iter(lambda: text.readline(_LONGEST_LINE_CHARS + 1), "")):
        if not number and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise WanInputError(f"{name} is in UTF-16. Save it as UTF-8.")
        if len(line) > _LONGEST_LINE_CHARS:
            raise WanInputError(
                f"{name} has a line of more than {_LONGEST_LINE_CHARS:,} characters: it is not a manifest."
            )
        yield line


def _read_parquet(file: IO[bytes], origin: str, columns: Columns) -> Iterator[RawRow]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise WanInputError(
            f"{origin} is a Parquet table, and reading it needs pyarrow: pip install pyarrow. Or use .csv or "
            ".jsonl. Nothing was bought."
        ) from error
    try:
        table = parquet.ParquetFile(file)
        names = table.schema_arrow.names
        broken = [] if is_prepared_row(dict.fromkeys(names)) else columns.problems_of_table(names)
        if broken:
            raise WanInputError(f"{origin}: {'; '.join(broken)}.")
        batches = table.iter_batches(batch_size=1000)
        yield from enumerate((cells for batch in batches for cells in batch.to_pylist()), 1)
    except ArrowException as error:
        raise WanInputError(f"{origin} is not a Parquet table that can be read: {error}.") from error


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
