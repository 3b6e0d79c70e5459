# SPDX-License-Identifier: Apache-2.0
"""From a source image to an address that RunComfy can fetch.

``ImageSources.open(image)`` takes any form of image: a ``gs://`` or ``https://`` address, a path, or a prepared
row. The :class:`ImageSource` that it returns identifies the image (for the fingerprint), and makes the address that is
sent only immediately before a purchase.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError, WanRefusedError
from airflow_provider_wan.images.check import TooSmall, check_sent_as_it_is
from airflow_provider_wan.images.dataset import (
    Columns,
    DatasetRow,
    PreparedRow,
    RowImage,
    is_source_list,
    row_of_cells,
)
from airflow_provider_wan.images.inspect import ImageFacts, check_whole, inspect
from airflow_provider_wan.images.prepare import fits_as_it_is, prepare
from airflow_provider_wan.images.readers import (
    WEB_MOST_BYTES,
    BucketReader,
    FileReader,
    ImageReader,
    ObjectFacts,
    WebReader,
    look_up_object,
    md5_identity,
)
from airflow_provider_wan.images.signed_urls import DEFAULT_LIFETIME_S, ObjectLinks
from airflow_provider_wan.images.staging import Recipe, Staged, Staging
from airflow_provider_wan.model_api.fingerprints import canonical_url
from airflow_provider_wan.model_api.inputs import validate_inputs
from airflow_provider_wan.model_api.schema import ImageRules, LazyModel, load_schema
from airflow_provider_wan.model_api.video_spec import SourceImage, address_to_send, by_field

if TYPE_CHECKING:
    from google.cloud import storage


#: Bytes of files that are read and prepared at the same time; a larger file goes alone.
MOST_BYTES = 256 * 1024 * 1024


#: Takes the place of an address that does not exist yet while the other inputs are validated.
_PLACEHOLDER = "https://storage.googleapis.com/image"


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images are made acceptable and readable.

    :param staging: ``gs://bucket/prefix`` of prepared copies; None: nothing is fixed, and an image that does not fit is
        refused.
    :param background: the colour behind transparent parts.
    :param too_small: ``"upscale"`` or ``"reject"``.
    :param check: whether an image is checked before the purchase.
    :param allow_private: whether images are read from private addresses too.
    :param link_lifetime_s: how long a signed link works, in seconds.
    """

    staging: str | None = None
    background: str = "white"
    too_small: TooSmall = "upscale"
    check: bool = True
    allow_private: bool = False
    link_lifetime_s: float = DEFAULT_LIFETIME_S


_NO_ROW = DatasetRow()


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image of a row, and the input that takes it.

    :param is_source: whether the row gives it as the source image, not by the name of its input.
    :param is_listed: whether it is one of a list.
    :param shown: its address as it may be shown and recorded, once it is identified.
    :param identity: the identity of its content, once it is identified; None: its address identifies it.
    """

    input_name: str
    image: RowImage = field(repr=False)
    is_source: bool = False
    is_listed: bool = False
    shown: str = ""
    identity: str | None = None


_PLACED = ("input_name", "is_source", "is_listed", "shown", "identity")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The images of one video: identified, and not read before a purchase.

    :param row: the row that names them.
    :param placed: the images, the source image first.
    """

    row: DatasetRow = field(repr=False)
    placed: tuple[PlacedImage, ...]
    sources: ImageSources = field(repr=False)

    @property
    def images(self) -> tuple[SourceImage, ...]:
        """The images as they are sent, the source image first."""
        make = self.sources.make_address
        return tuple(
            SourceImage(
                placed.input_name, placed.shown, placed.identity, partial(make, placed), placed.is_listed
            )
            for placed in self.placed
        )

    @property
    def image(self) -> SourceImage | None:
        """The source image; None: the row gives none, or gives it by the name of its input."""
        return self.images[0] if self.placed and self.placed[0].is_source else None

    @property
    def more_images(self) -> tuple[SourceImage, ...]:
        """The images that the row gives by the name of their input."""
        return self.images[self.image is not None :]

    @property
    def shown(self) -> str:
        """The address of the first image as it may be shown and recorded; without an image, the row's place."""
        return self.placed[0].shown if self.placed else self.row.where

    @property
    def fields(self) -> dict[str, bool]:
        """The inputs that take the images, and whether each takes a list."""
        return {placed.input_name: placed.is_listed for placed in self.placed}

    def without_row(self) -> ImageSource:
        """Return it without its row: a plan of 100,000 videos has what it needs of each row."""
        return replace(self, row=_NO_ROW if self.placed else DatasetRow(origin=self.row.where))

    def addresses(self) -> dict[str, Any]:
        """Check, fix, stage and sign the images; return the address of each by its input, or a list of them.

        Call it only immediately before a purchase, and keep the result nowhere.
        """
        return by_field(self.images, address_to_send)

    def saved(self) -> list[dict[str, Any]]:
        """Return the images as plain JSON values, for :meth:`ImageSources.restored`."""
        saved = []
        for placed in self.placed:
            address, known, prepared = placed.image.address, placed.image.known, placed.image.prepared
            image = {
                "address": address,
                "known": known and asdict(known),
                "prepared": prepared and prepared.as_dict(),
            }
            saved.append({name: getattr(placed, name) for name in _PLACED} | {"image": image})
        return saved


class ImageSources:
    """Opens source images; safe to use from several threads.

    :param model: its rules decide what fits; they are read when the first image is checked.
    :param make_client: returns a Cloud Storage client; called once, and only if one is needed.
    """

    def __init__(
        self,
        model: LazyModel,
        make_client: Callable[[], storage.Client],
        log: Logger,
        *,
        options: ImageOptions | None = None,
    ) -> None:
        self.options = options or ImageOptions()
        Recipe(
            ImageRules(""), self.options.background, self.options.too_small
        )  # refuses options that are not valid
        self.model = model
        self._log = log
        self._make_client = make_client
        self._lock = threading.Lock()
        self._limits = Limits()
        self._client: storage.Client | None = None
        self._fields: dict[frozenset[str], str] = {}

    @cached_property
    def _bundled_field(self) -> str | None:
        return self.model.image_field() if load_schema(self.model.model_id) else None

    def _image_field(self, others: frozenset[str]) -> str:
        if others not in self._fields:
            self._fields[others] = self.model.image_field(others)
        return self._fields[others]

    @property
    def client(self) -> storage.Client:
        """The Cloud Storage client."""
        with self._lock:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    @property
    def staging(self) -> Staging | None:
        """The place of prepared copies."""
        return Staging(self.client, self.options.staging) if self.options.staging else None

    def recipe(self, field: str) -> Recipe:
        """Return how the images of an input are prepared: by the model's rules and the user's options.

        :raises WanInputError: the model's rules are not known.
        """
        rules = self.model.known.rules_of(field)
        if rules is None:
            raise WanInputError(
                f"The rules of model {self.model.model_id} for images are not known, so none can be prepared for it."
            )
        return Recipe(rules, self.options.background, self.options.too_small)

    def open(self, given: str | Mapping[str, Any] | DatasetRow) -> ImageSource:
        """Identify the images of one video, without reading them where their identity is known.

        :param given: ``gs://``, ``https://`` or a path; a row of a dataset, or a row or a prepared row as a mapping.
        :raises WanInputError: it has another form, or there is no such object or file.
        :raises WanStorageError: the bucket cannot be reached.
        """
        row = row_of(given)
        return ImageSource(row, tuple(map(self._identified, self.placed(row))), self)

    def restored(self, saved: Iterable[Mapping[str, Any]], row: str) -> ImageSource:
        """Return a source that was saved: nothing is looked up.

        :param saved: see :meth:`ImageSource.saved`; an address of None is one that may not be saved.
        :param row: the row's place.
        """
        placed = []
        for line in saved:
            known, prepared = line["image"]["known"], line["image"]["prepared"]
            image = RowImage(
                line["image"]["address"],
                known and ObjectFacts(**known),
                prepared and PreparedRow.from_dict(prepared),
            )
            placed.append(PlacedImage(**{**line, "image": image}))
        return ImageSource(DatasetRow(origin=row), tuple(placed), self)

    def columns(
        self,
        *,
        defaults: Mapping[str, Any],
        variation: str | None,
        passthrough: Sequence[str] = (),
        needs_image: bool = False,
    ) -> Columns:
        """Return the columns that a manifest of this model may have.

        :param needs_image: whether rows without an image are refused, even where the model does not require one.
        """
        model = self.model.known
        images = tuple(rules.field for rules in model.images)
        schema, bundled = model.schema, load_schema(model.model_id)
        required = model.chosen_field or (schema is not None and schema.required & {*images})
        # Not the page's fields alone: a row that was bought is found again after the page has changed. Unknown inputs
        # are refused before a purchase.
        inputs = None if bundled is None else {*bundled.fields, *(schema.fields if schema else ())}
        return Columns(inputs, defaults, variation, tuple(passthrough), images, needs_image or bool(required))

    def placed(self, row: DatasetRow) -> list[PlacedImage]:
        """Return the images of a row with the inputs that take them, the source image first.

        :raises WanInputError: the input that takes the source image is not known.
        """
        others = frozenset(name for name, found in row.images.items() if not is_source_list(name, found))
        placed = []
        if row.image:
            image = RowImage(row.image, row.known, row.prepared)
            placed.append(PlacedImage(self._image_field(others), image, is_source=True))
        for name, found in row.images.items():
            if isinstance(found, RowImage):
                # By its name or as the image of the row, the source image of a bundled model is the same video.
                is_source = not row.image and name == self._bundled_field
                placed.append(PlacedImage(name, found, is_source))
            else:
                name = self._image_field(others) if is_source_list(name, found) else name
                placed += [PlacedImage(name, image, is_listed=True) for image in found]
        return sorted(placed, key=lambda each: not each.is_source)

    def _identified(self, placed: PlacedImage) -> PlacedImage:
        image = placed.image
        if image.prepared is not None:  # its own inputs are in the row
            lean = replace(image.prepared, inputs={}, passthrough={}, images={})
            shown, identity = canonical_url(lean.source), lean.identity
            return replace(placed, image=replace(image, prepared=lean), shown=shown, identity=identity)
        assert image.address is not None
        reader = self.reader_of(image.address, image.known)
        identity = reader.identity
        if isinstance(reader, BucketReader):  # the purchase reads the object that was identified
            image = replace(image, known=reader.facts)
        return replace(placed, image=image, shown=reader.address, identity=identity)

    def reader_of(self, address: str, known: ObjectFacts | None = None) -> ImageReader:
        """Return a reader of an image.

        :param known: its metadata from a listing, if any.
        """
        if address.startswith("gs://"):
            return BucketReader(self.client, known or look_up_object(self.client, address))
        if address.startswith(("http://", "https://")):
            return WebReader(address, allow_private=self.options.allow_private)
        if not address or "://" in address or address[:5].lower() == "data:":
            raise WanInputError(
                f"image={address[:80]!r} is not an address that can be used: give gs://bucket/object, https://... or "
                "a path. Nothing was bought."
            )
        return FileReader(address)

    def prepare(self, reader: ImageReader, recipe: Recipe) -> tuple[Staged, bool]:
        """Make an image acceptable, and keep the copy in the staging prefix.

        :return: the prepared image, and whether an earlier run had prepared it.
        :raises WanInputError: it can't be made acceptable.
        """
        identity = reader.identity
        if identity is not None and (found := self._find(identity, recipe, needs_copy(reader))) is not None:
            return found, True
        with self._limits.holding(reader.size_bytes):
            data = reader.read_all()
            if identity is None:  # from the web: only the content shows whether it was prepared before
                found = self._find(md5_identity(data), recipe, needs_copy(reader))
                if found is not None:
                    return found, True
            return self._prepare_data(reader, data, recipe), False

    def find_prepared(self, reader: ImageReader, recipe: Recipe) -> Staged | None:
        """Return the result of an earlier preparation of an image whose content is known without reading it."""
        if self.staging is None or reader.identity is None:
            return None
        return self._find(reader.identity, recipe, needs_copy(reader))

    def address_of(self, reader: ImageReader, staged: Staged) -> str:
        """Return the address of the submitted image, as it may be recorded."""
        if staged.object_name is None:
            return reader.address
        assert self.options.staging is not None
        return f"gs://{Staging(self.client, self.options.staging).bucket}/{staged.object_name}"

    def link_to(self, uri: str) -> str:
        """Sign a link to an object of a bucket."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        return ObjectLinks(self.client, lifetime_s=self.options.link_lifetime_s).link_to(bucket, name)

    def _find(self, identity: str, recipe: Recipe, copy: bool) -> Staged | None:
        staging = self.staging
        assert staging is not None
        return staging.find(recipe.key(identity), copy=copy)

    def _prepare_data(self, reader: ImageReader, data: bytes, recipe: Recipe) -> Staged:
        staging = self.staging
        assert staging is not None
        with self._limits.decoding:
            prepared = prepare(
                data,
                rules=recipe.rules,
                name=reader.address,
                background=recipe.background,
                too_small=recipe.too_small,
            )
        key = recipe.key(reader.identity or md5_identity(data))
        return staging.put(key, prepared, copy=needs_copy(reader))

    # -- one image -----------------------------------------------------------------------------------------

    def make_address(self, placed: PlacedImage) -> str:
        """Check, fix, stage and sign an image, and return the address to send.

        :raises WanInputError: the model would refuse it, or it is not there any more.
        """
        field, image = placed.input_name, placed.image
        if image.address is None:
            raise WanInputError(
                f"{placed.shown} is not in the dataset any more. Its address was signed, so it was not saved. Nothing "
                "was bought for it."
            )
        if image.prepared is not None:
            return self._url_of_prepared(image.prepared)
        reader = self.reader_of(image.address, image.known)
        if not (self.options.check or self.options.staging) or self.model.known.rules_of(field) is None:
            return self._url_as_it_is(reader)
        recipe = self.recipe(field)
        if self.options.staging is None:
            with self._limits.holding(reader.size_bytes):
                facts = check_sent_as_it_is(reader, recipe.rules, too_small=self.options.too_small)
            self._warn_of(facts)
            return self._url_as_it_is(reader)
        if isinstance(reader, WebReader):
            return self._web_address(reader, recipe)
        return self._address_of_prepared(reader, *self.prepare(reader, recipe))

    def _web_address(self, reader: WebReader, recipe: Recipe) -> str:
        """Return the address itself if the image fits, else that of its copy; it is read once for both."""
        with self._limits.holding(None):
            data = reader.read_all()
            facts = inspect(data, name=reader.address)
            if fits_as_it_is(facts, recipe.rules):
                check_whole(data, facts)
                return reader.url
            found = self._find(md5_identity(data), recipe, needs_copy(reader))
            if found is not None:
                return self._address_of_prepared(reader, found, True)
            return self._address_of_prepared(reader, self._prepare_data(reader, data, recipe), False)

    def _address_of_prepared(self, reader: ImageReader, staged: Staged, was_prepared: bool) -> str:
        if staged.changes and not was_prepared:
            self._log.info("Prepared %s: %s.", reader.address, "; ".join(staged.changes))
        for note in staged.notes:
            self._log.warning("%s: %s.", reader.address, note)
        address = self.address_of(reader, staged)
        return self.link_to(address) if address.startswith("gs://") else self._url_as_it_is(reader)

    def _url_as_it_is(self, reader: ImageReader) -> str:
        if isinstance(reader, WebReader):
            return reader.url
        if isinstance(reader, BucketReader):
            return self.link_to(reader.address)
        raise WanInputError(
            f"{reader.address} is a file of this machine, and RunComfy can't read it. Nothing was bought. Set "
            'staging="gs://bucket/prefix", and a copy is uploaded there.'
        )

    def _warn_of(self, facts: ImageFacts) -> None:
        about = [f"it is stored turned (orientation {facts.orientation})"] if facts.orientation != 1 else []
        about += [f"it holds {', '.join(facts.private)}"] if facts.private else []
        if about:
            self._log.warning(
                "%s goes to RunComfy as it is, though %s. With staging= a copy without that is sent.",
                facts.name,
                " and ".join(about),
            )
        for note in facts.notes:
            self._log.warning("%s: %s.", facts.name, note)

    def _url_of_prepared(self, row: PreparedRow) -> str:
        """Return the address of a prepared image, if the object has not changed since."""
        if not row.staged_uri.startswith("gs://"):
            return row.staged_uri
        facts = look_up_object(self.client, row.staged_uri)
        is_source = row.staged_uri == row.source
        changed = (facts.size_bytes != row.size_bytes and not facts.is_gzip) or (
            is_source and facts.md5 is not None and row.identity not in (None, f"md5:{facts.md5}")
        )
        if changed:
            raise WanInputError(
                f"{row.staged_uri} has changed since it was prepared. Nothing was bought. Prepare the images again."
            )
        return self.link_to(row.staged_uri)


class InputCheck:
    """Validates the inputs of rows, once for each different set of them: most rows differ only in the image.

    :param is_partial: whether required inputs may be missing, because another task supplies them.
    """

    def __init__(self, model: LazyModel, *, is_partial: bool = False) -> None:
        self._model = model
        self._is_partial = is_partial
        self._checked: dict[bytes, WanRefusedError | None] = {}

    def problem(self, inputs: Mapping[str, Any], fields: Mapping[str, bool]) -> WanRefusedError | None:
        """Return the problem with the inputs of a row, apart from its images; None if they are valid.

        :param fields: the inputs that take its images, and whether each takes a list.
        """
        key = hashlib.sha256(json.dumps([inputs, fields], sort_keys=True, default=str).encode()).digest()
        if key not in self._checked:
            _ = self._model.known  # its errors are not about the inputs
            images = {name: [_PLACEHOLDER] if is_list else _PLACEHOLDER for name, is_list in fields.items()}
            try:
                self.validated(inputs, images)
                self._checked[key] = None
            except WanRefusedError as error:
                self._checked[key] = error
        return self._checked[key]

    def validated(self, inputs: Mapping[str, Any], addresses: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs to send.

        :param addresses: of the images, by input.
        :raises WanInputError: an input breaks a rule.
        """
        return validate_inputs(self._model.known, {**inputs, **addresses}, is_partial=self._is_partial)


def needs_copy(reader: ImageReader) -> bool:
    """Return whether an image needs a copy in a bucket although it fits: a file, or a link that may not be kept."""
    return isinstance(reader, FileReader) or (isinstance(reader, WebReader) and reader.is_signed)


def row_of(given: str | Mapping[str, Any] | DatasetRow) -> DatasetRow:
    """Return the row that an address or a mapping stands for.

    :raises WanInputError: the mapping names no image.
    """
    if isinstance(given, DatasetRow):
        return given
    if isinstance(given, str):
        if not given.strip():
            raise WanInputError("The address of the image is empty. Nothing was bought.")
        return DatasetRow(given.strip())
    try:
        return row_of_cells(given, origin="", line=0, columns=Columns())
    except ValueError as error:
        raise WanInputError(
            f'This row can\'t be used: {error}. Give {{"image": "gs://...", ...}} or a prepared row.'
        ) from error


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Limits:
    """Bounds for the threads that prepare images: more of them wait for the network than there are cores.

    :param most_bytes: of source files in memory together.
    :param cores: how many images are decoded at once.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES, cores: int | None = None) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._changed = threading.Condition()
        self.decoding = threading.BoundedSemaphore(cores or usable_cores())

    @contextmanager
    def holding(self, size_bytes: int | None) -> Iterator[None]:
        """Wait until a file of this size may be in memory too."""
        size = min(WEB_MOST_BYTES if size_bytes is None else size_bytes, self._most_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._bytes + size <= self._most_bytes)
            self._bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()
