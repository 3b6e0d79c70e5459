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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError, WanRefusedError
from airflow_provider_wan.images.check import TooSmall, check, explain
from airflow_provider_wan.images.codecs import UnusableImageError, check_whole
from airflow_provider_wan.images.dataset import DatasetRow, PreparedRow, is_prepared_row
from airflow_provider_wan.images.inspect import ImageFacts, inspect
from airflow_provider_wan.images.prepare import fits_as_it_is, prepare
from airflow_provider_wan.images.readers import (
    WEB_MOST_BYTES,
    WEB_TOTAL_S,
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
from airflow_provider_wan.model_api.inputs import ImageRules, LazyModel, canonical_url, validate_inputs
from airflow_provider_wan.model_api.video_spec import SourceImage

if TYPE_CHECKING:
    from google.cloud import storage


#: Bytes of files that are read and prepared at the same time; a larger file goes alone.
MOST_BYTES = 256 * 1024 * 1024


_NO_RULES = ImageRules("")


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
    :param web_total_s: what all reads of one image from the web may take together, in seconds.
    """

    staging: str | None = None
    background: str = "white"
    too_small: TooSmall = "upscale"
    check: bool = True
    allow_private: bool = False
    link_lifetime_s: float = DEFAULT_LIFETIME_S
    web_total_s: float = WEB_TOTAL_S


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The image of one video: identified, and not read before a purchase.

    :param row: the row that names it.
    :param image: the image, which makes the address to send.
    """

    row: DatasetRow = field(repr=False)
    image: SourceImage

    @property
    def shown(self) -> str:
        """Its address as it may be shown and recorded."""
        return self.image.address

    @property
    def identity(self) -> str | None:
        """The identity of its content in a fingerprint; None: its address identifies it."""
        return self.image.identity

    def make_address(self) -> str:
        """Check, fix, stage and sign the image, and return the address to send.

        Call it only immediately before a purchase, and keep the result nowhere.
        """
        assert self.image.make_address is not None
        return self.image.make_address()


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
            _NO_RULES, self.options.background, self.options.too_small
        )  # refuses options that are not valid
        self.model = model
        self._log = log
        self._make_client = make_client
        self._lock = threading.Lock()
        self._limits = Limits()
        self._client: storage.Client | None = None

    @property
    def input_name(self) -> str:
        """The input that takes the source image.

        :raises WanInputError: neither the user nor the model's schema names it.
        """
        return self.model.image_field()

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

    def recipe(self, field: str | None = None) -> Recipe:
        """Return how the images of an input are prepared: by the model's rules and the user's options.

        :param field: the input; None: the one that takes the source image.
        :raises WanInputError: the model's rules are not known.
        """
        rules = self.model.known.rules_of(field or self.input_name)
        if rules is None:
            raise WanInputError(
                f"The rules of model {self.model.model_id} for images are not known, so none can be prepared for it."
            )
        return Recipe(rules, self.options.background, self.options.too_small)

    def open(self, image: str | Mapping[str, Any] | DatasetRow, field: str | None = None) -> ImageSource:
        """Identify one image, without reading it where its identity is known.

        :param image: ``gs://``, ``https://`` or a path; a row of a dataset, or a row or a prepared row as a mapping.
        :param field: the input that takes it; None: the one that takes the source image.
        :raises WanInputError: it has another form, or there is no such object or file.
        :raises WanStorageError: the bucket cannot be reached.
        """
        row = _row_of(image) if isinstance(image, Mapping) else image
        if isinstance(row, str):
            row = DatasetRow(row.strip())
        if row.prepared is not None:
            return self.source_of(row, canonical_url(row.prepared.source), row.prepared.identity, field)
        reader = self.reader_of(row.image, row.known)
        identity = reader.identity
        if isinstance(reader, BucketReader):
            row = replace(row, known=reader.facts)  # the purchase reads the object that was identified
        return self.source_of(row, reader.address, identity, field)

    def source_of(
        self, row: DatasetRow, shown: str, identity: str | None, field: str | None = None
    ) -> ImageSource:
        """Return the source of a row that was identified before."""
        name = field or self.input_name
        return ImageSource(row, SourceImage(name, shown, identity, partial(self._address_to_send, row, name)))

    def reader_of(self, address: str, known: ObjectFacts | None = None) -> ImageReader:
        """Return a reader of an image.

        :param known: its metadata from a listing, if any.
        """
        if address.startswith("gs://"):
            return BucketReader(self.client, known or look_up_object(self.client, address))
        if address.startswith(("http://", "https://")):
            options = self.options
            return WebReader(address, allow_private=options.allow_private, total_s=options.web_total_s)
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

    def _address_to_send(self, row: DatasetRow, field: str) -> str:
        if row.prepared is not None:
            return self._url_of_prepared(row.prepared)
        reader = self.reader_of(row.image, row.known)
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

    def __init__(self, model: LazyModel, image_field: str, *, is_partial: bool = False) -> None:
        self._model = model
        self._image_field = image_field
        self._is_partial = is_partial
        self._checked: dict[bytes, WanRefusedError | None] = {}

    def problem(self, inputs: Mapping[str, Any]) -> WanRefusedError | None:
        """Return the problem with the inputs of a row, apart from its image; None if they are valid."""
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).digest()
        if key not in self._checked:
            _ = self._model.known  # its errors are not about the inputs
            try:
                self.validated(inputs, "https://storage.googleapis.com/image")
                self._checked[key] = None
            except WanRefusedError as error:
                self._checked[key] = error
        return self._checked[key]

    def validated(self, inputs: Mapping[str, Any], address: str) -> dict[str, Any]:
        """Return the inputs to send.

        :raises WanInputError: an input breaks a rule.
        """
        given = {**inputs, self._image_field: address}
        return validate_inputs(self._model.known, given, is_partial=self._is_partial)


def check_sent_as_it_is(
    reader: ImageReader, rules: ImageRules, *, too_small: TooSmall = "upscale"
) -> ImageFacts:
    """Refuse an image that is sent as it is and that the model would refuse, or that is cut off.

    It is read once: whole, or only its header if its size alone is too large.

    :raises UnusableImageError: the model would refuse it.
    """
    limit = rules.max_size_bytes_exclusive
    if limit is not None and reader.size_bytes is not None and reader.size_bytes >= limit:
        facts, data = inspect_header(reader), None
    else:
        data = reader.read_all()
        facts = inspect(data, name=reader.address)
    broken = check(facts, rules, too_small=too_small)
    if broken:
        hint = ' staging="gs://bucket/prefix" does it.' if all(rule.fixable for rule in broken) else ""
        raise UnusableImageError(explain(facts, broken) + hint, broken)
    if data is not None:
        check_whole(data, facts)
    return facts


def check_public_image(url: str, rules: ImageRules, *, allow_private: bool) -> None:
    """Refuse an image behind a public address that the model would refuse.

    :raises WanInputError: the model would refuse it, or it cannot be read anonymously.
    :raises WanDownloadError: it cannot be read now.
    """
    if url.startswith(("http://", "https://")):
        check_sent_as_it_is(WebReader(url, allow_private=allow_private), rules)


def needs_copy(reader: ImageReader) -> bool:
    """Return whether an image needs a copy in a bucket although it fits: a file, or a link that may not be kept."""
    return isinstance(reader, FileReader) or (isinstance(reader, WebReader) and reader.is_signed)


def inspect_header(reader: ImageReader) -> ImageFacts:
    """Inspect an image by ranges.

    :raises WanInputError: it is not an image, or no longer exists.
    :raises WanDownloadError: it cannot be read now, or may not be.
    """
    with reader.open() as file:
        return inspect(file, name=reader.address, size_bytes=reader.size_bytes)


def _row_of(plain: Mapping[str, Any]) -> DatasetRow:
    if is_prepared_row(plain):
        row = PreparedRow.from_dict(plain)
        return DatasetRow(row.source, row.inputs, row.variation, prepared=row)
    given = {name: value for name, value in plain.items() if value not in (None, "")}
    image, variation = given.pop("image", None), given.pop("variation", None)
    if not isinstance(image, str):
        raise WanInputError('This row names no image. Give {"image": "gs://...", ...} or a prepared row.')
    return DatasetRow(image=image, inputs=given, variation=None if variation is None else str(variation))


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
