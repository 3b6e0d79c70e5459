# SPDX-License-Identifier: Apache-2.0
"""A row of a dataset: one video, with its images, its inputs and its variation.

A row names the source image in the column ``image``, and the images of a model's other image fields in columns named
after them. A list of addresses (in CSV: as JSON) is an array of images. A text-to-video row names no image. A row of a
chunk manifest is prepared: its images were checked, fixed and published.
"""

from __future__ import annotations

import difflib
import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.readers import ObjectFacts

_IMAGE, _VARIATION = "image", "variation"
#: Keys of a prepared image, and the type of those that it must have.
_FACTS = ("source", "staged_uri", "width", "height", "size_bytes", "sha256", "changes", "identity")
_TYPES: dict[str, type] = {"source": str, "staged_uri": str, "width": int, "height": int, "size_bytes": int}
_ROW_TYPES: dict[str, type] = dict.fromkeys(("inputs", "passthrough", "images"), dict)
#: Common names of the image column elsewhere.
_IMAGE_ALIASES = frozenset(
    ("img_url", "image_url", "img", "url", "uri", "file", "filename", "file_name", "path", "source")
)
_SHOWN_CHARS = 80
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


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
    """Return the images that a row gives for one input: one, or a list of them.

    :param name: the input, or ``image`` for a list of source images.
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
        problems += [f"column {name!r} is there twice" for name in sorted({x for x in names if names.count(x) > 1})]
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
