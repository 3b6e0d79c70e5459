# SPDX-License-Identifier: Apache-2.0
"""The rows of a dataset: of a prefix in a bucket, of addresses, of manifests, or of all of these.

A row names the source image in the column ``image``, and the images of a model's other image fields in columns named
after them. A list of addresses (in CSV: as JSON) is an array of images. A text-to-video row names no image. A chunk
manifest has prepared rows: their images were checked, fixed and published.

Rows are yielded one at a time, as they are read; a row that cannot be used is yielded as an error with its line, and
the others are not affected. Only the page of a listing, the megabyte of a manifest or the row group of a Parquet file
that is being read is held in memory, however long the dataset is.
"""

from __future__ import annotations

import ast
import csv
import difflib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import IO, TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks.gcs import META_REQUEST, TIMEOUT_S, retry_policy, split_gs_uri
from airflow_provider_wan.images.codecs import SUFFIXES, UNUSABLE_SUFFIXES
from airflow_provider_wan.images.readers import (
    BucketReader,
    ObjectFacts,
    bucket_errors,
    bucket_of,
    facts_of,
    look_up_object,
    shown_name,
)

if TYPE_CHECKING:
    from google.cloud import storage

log = getLogger(__name__)

_IMAGE, _VARIATION = "image", "variation"
#: Keys of a prepared image, and the type of those that it must have.
_FACTS = ("source", "staged_uri", "width", "height", "size_bytes", "sha256", "changes", "identity")
_TYPES: dict[str, type] = {"source": str, "staged_uri": str, "width": int, "height": int, "size_bytes": int}
_ROW_TYPES: dict[str, type] = dict.fromkeys(("inputs", "passthrough", "images"), dict)
#: Common names of the image column elsewhere.
_IMAGE_ALIASES = frozenset(
    ("img_url", "image_url", "img", "url", "uri", "file", "filename", "file_name", "path", "source")
)
#: A longer row comes from a quote that was never closed, or from another kind of file.
MAX_LINE_CHARS = 1024 * 1024
#: A file with longer lines is not a manifest.
_LONGEST_LINE_BYTES = 8 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024
_SHOWN_CHARS = 80
_NAMED = 20
_UNDECODED = re.compile("[\udc80-\udcff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_LINE_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")

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


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that was checked, fixed and published, as it can be submitted.

    :param source: address of the image that it came from, without signature.
    :param staged_uri: address of the submitted image: a staged copy (``gs://``), or the source if it fits unchanged.
    :param width: in px.
    :param size_bytes: size of the file.
    :param sha256: of the file, in hex.
    :param changes: the changes made to the source, in words; empty if there are none.
    :param identity: what identifies the image in a fingerprint (``md5:...`` of the source's content); None: its
        address.
    :param notes: remarks about the source; known only where it was prepared just now.
    :param is_new: whether it was prepared just now, and not by an earlier run.
    """

    source: str
    staged_uri: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    changes: tuple[str, ...] = ()
    identity: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)
    is_new: bool = field(default=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {name: getattr(self, name) for name in _FACTS} | {"changes": list(self.changes)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PreparedImage:
        """Read what :meth:`as_dict` wrote; other columns are ignored.

        :raises WanInputError: it is not a prepared image.
        """
        return cls(
            **_typed(plain, _TYPES),
            sha256=str(plain.get("sha256") or ""),
            changes=tuple(plain.get("changes") or ()),
            identity=plain.get("identity"),
        )


def _typed(plain: Any, types: Mapping[str, type]) -> dict[str, Any]:
    plain = plain if isinstance(plain, Mapping) else {}
    given: dict[str, Any] = {name: plain.get(name) or kind() for name, kind in types.items()}
    wrong = [name for name, kind in types.items() if not isinstance(given[name], kind)]
    wrong += [name for name in ("source", "staged_uri") if name in given and not given[name]]
    if wrong:
        raise WanInputError(
            f"This is not a prepared row: {', '.join(wrong)} is missing or of the wrong type. Use a row that "
            "WanPrepareImagesOperator wrote, or the address of an image."
        )
    return given


@dataclass(frozen=True, slots=True)
class RowImage:
    """One image of a row.

    :param address: ``gs://``, ``https://`` or a path; None: signed, and so not kept over a wait.
    :param input_name: the input that takes it; None: the one that takes source images, not found yet.
    :param is_listed: whether it is one of a list.
    :param known: its metadata from a listing.
    :param prepared: the prepared image, for a row of a chunk manifest.
    :param is_source: whether it is the source image of the video; known once it is identified.
    :param shown: its address as it may be shown and recorded; known once it is identified.
    :param identity: identifies its content; None: its address does, or it is not identified yet.
    """

    address: str | None = field(repr=False)
    input_name: str | None = None
    is_listed: bool = False
    known: ObjectFacts | None = None
    prepared: PreparedImage | None = None
    is_source: bool = False
    shown: str = ""
    identity: str | None = None


def images_of_input(name: str, given: Any, make: Callable[[Any], RowImage]) -> tuple[RowImage, ...]:
    """Return the images that a row gives for one input.

    :param name: the input, or ``image`` for a list of source images.
    :param given: one image, or a list of them.
    :param make: returns the image of an entry.
    """
    if not isinstance(given, list | tuple):
        return (replace(make(given), input_name=name),)
    input_name = None if name == _IMAGE else name
    return tuple(replace(make(each), input_name=input_name, is_listed=True) for each in given)


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One video of a dataset.

    :param images: its images.
    :param inputs: the model's inputs for it: the task's defaults, overridden by the row's columns.
    :param variation: see :class:`~airflow_provider_wan.operators.wan.WanSubmitOperator`; None if not given.
    :param passthrough: columns that are carried along and not read.
    :param origin: the manifest, without the query of its address.
    :param line: the row's first line in it, counted from 1.
    """

    images: tuple[RowImage, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """The row's place, for messages: ``gs://shoes/set.csv, line 12``."""
        return f"{self.origin}, line {self.line}" if self.line else self.origin

    @property
    def image(self) -> str | None:
        """The address of the image that the row gives as its source image."""
        return next((each.address for each in self.images if not (each.input_name or each.is_listed)), None)

    def as_prepared(self) -> dict[str, Any]:
        """Return a row whose images were identified and prepared as plain JSON values: a line of a chunk manifest.

        Videos and sounds, which need no preparation, are among its inputs.
        """
        first = next(each for each in self.images if each.prepared)
        assert first.prepared is not None
        inputs, images = dict(self.inputs), dict[str, Any]()
        for each in self.images:
            values, value = (images, each.prepared.as_dict()) if each.prepared else (inputs, each.address)
            assert each.input_name is not None
            if each.is_listed:
                values.setdefault(each.input_name, []).append(value)
            elif not (each.is_source and each.prepared):
                values[each.input_name] = value
        row = {**first.prepared.as_dict(), "inputs": inputs, "variation": self.variation}
        input_name = None if first.is_source else first.input_name
        optional = {"passthrough": dict(self.passthrough), "input_name": input_name, "images": images}
        return row | {name: value for name, value in optional.items() if value}

    @classmethod
    def of_prepared(cls, plain: Mapping[str, Any]) -> DatasetRow:
        """Read what :meth:`as_prepared` wrote; other columns are ignored.

        :raises WanInputError: it is not a prepared row.
        """

        def prepared_image(plain: Mapping[str, Any]) -> RowImage:
            prepared = PreparedImage.from_dict(plain)
            return RowImage(prepared.source, prepared=prepared)

        first = prepared_image(plain)
        given = _typed(plain, _ROW_TYPES)
        more = [images_of_input(name, found, prepared_image) for name, found in given["images"].items()]
        images = () if plain.get("input_name") else (first,)
        return cls(sum(more, images), given["inputs"], plain.get("variation"), given["passthrough"])


def is_prepared_row(plain: Mapping[str, Any]) -> bool:
    """Return whether a row is a prepared row, not one of a user's manifest."""
    return "staged_uri" in plain


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


Row = DatasetRow | RowError
#: A row's first line, with its cells or its error.
RawRow = tuple[int, Mapping[str, Any] | str]


def rows_of(raw: Iterable[RawRow], origin: str, columns: Columns) -> Iterator[Row]:
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
            row = DatasetRow.of_prepared(cells)
        except WanInputError as error:
            raise ValueError(str(error)) from error
        given = dict(row.inputs)
    else:
        given = {name: value for name, value in cells.items() if value is not None and value != ""}
        image, variation = given.pop(_IMAGE, None), given.pop(_VARIATION, None)
        row = DatasetRow(
            () if image is None else _row_images(image, _IMAGE, origin),
            variation=None if variation is None else str(variation),
            passthrough={name: given.pop(name) for name in columns.passthrough if name in given},
        )
    inputs = {**columns.defaults, **given}
    images = row.images
    own = {each.input_name for each in images}
    for name in [name for name, value in inputs.items() if name in columns.images or _is_in_bucket(value)]:
        value = inputs.pop(name)
        if value is not None and name not in own:
            images += _row_images(value, name, origin)
    if not images and columns.needs_image:
        raise ValueError("there is no image")
    variation = columns.variation if row.variation is None else row.variation
    return replace(row, images=images, inputs=inputs, variation=variation, origin=origin, line=line)


def _row_images(value: Any, name: str, origin: str) -> tuple[RowImage, ...]:
    found = _listed(value)
    each = found if isinstance(found, list | tuple) else [found]
    if not each or not all(isinstance(address, str) for address in each):
        raise ValueError(f"the {name} must be a text (an address or a path) or a list of them")
    images = images_of_input(name, found, lambda address: RowImage(resolve_image(address, origin=origin)))
    return tuple(replace(image, input_name=None) for image in images) if name == _IMAGE else images


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


# -- datasets ---------------------------------------------------------------------------------------------------------


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
                yield RowError(
                    where, number, f"it is of type {type(entry).__name__}, not an address or a row"
                )

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
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
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
            raise WanInputError(
                f"The manifest {address} can't be read: {error.strerror or error}."
            ) from error


def _plain(dataset: Any) -> Any:
    """Read a list that Jinja has rendered as text."""
    if not isinstance(dataset, str) or not dataset.lstrip().startswith(("[", "{")):
        return dataset
    with suppress(ValueError):
        return json.loads(dataset)
    try:
        return ast.literal_eval(dataset)
    except (ValueError, SyntaxError):
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


def _lines(file: IO[bytes], name: str) -> Iterator[str]:
    r"""Yield the lines of a file, whether they end with ``\n``, ``\r\n`` or ``\r``.

    :raises WanInputError: a line is too long for a manifest.
    """
    rest = file.read(_BLOCK_BYTES)
    if rest[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise WanInputError(f"{name} is in UTF-16. Save it as UTF-8.")
    block = rest = rest.removeprefix(b"\xef\xbb\xbf")
    while block:
        start = 0
        for match in _LINE_END.finditer(rest):
            yield rest[start : match.end()].decode("utf-8", "surrogateescape")
            start = match.end()
        rest = rest[start:]
        if len(rest) > _LONGEST_LINE_BYTES:
            raise WanInputError(
                f"{name} has a line of more than {_LONGEST_LINE_BYTES:,} bytes: it is not a manifest."
            )
        block = file.read(_BLOCK_BYTES)
        rest += block
    if rest:
        yield rest.decode("utf-8", "surrogateescape")


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
