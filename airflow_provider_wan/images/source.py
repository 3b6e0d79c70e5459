# SPDX-License-Identifier: Apache-2.0
"""From a source image to an address that RunComfy can fetch.

``ImageSources.open(image)`` takes any form of image: a ``gs://`` or ``https://`` address, a path, or a prepared
row. The :class:`ImageSource` that it returns identifies the image, for the fingerprint, and makes the address that is
sent only immediately before a purchase.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.codecs import UnusableImageError
from airflow_provider_wan.images.inspect import ImageFacts, check_whole, inspect
from airflow_provider_wan.images.prepare import (
    TooSmall,
    check,
    explain,
    fits_as_it_is,
    parse_background,
    prepare,
)
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
from airflow_provider_wan.images.rows import Columns, DatasetRow, PreparedImage, RowImage, row_of_cells
from airflow_provider_wan.images.staging import DEFAULT_LIFETIME_S, ObjectLinks, Staging, copy_key
from airflow_provider_wan.model_api.fingerprints import canonical_url
from airflow_provider_wan.model_api.schema import ImageRules, LazyModel, load_schema
from airflow_provider_wan.model_api.video_spec import (
    SourceImage,
    VideoSpec,
    address_to_send,
    by_field,
    make_video_spec,
)

if TYPE_CHECKING:
    from google.cloud import storage


#: Bytes of files that are read and prepared at the same time; a larger file goes alone.
MOST_BYTES = 256 * 1024 * 1024

#: Of each identified image, what a saved plan keeps besides the image itself.
_SAVED = ("input_name", "is_source", "is_listed", "shown", "identity")


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images are made acceptable and readable.

    :param staging: ``gs://bucket/prefix`` of prepared copies; None: nothing is fixed, and an image that does not fit is
        refused.
    :param background: the colour behind transparent parts, a colour name or ``#rrggbb``.
    :param too_small: ``"upscale"`` or ``"reject"``.
    :param check: whether an image is checked before the purchase.
    :param allow_private: whether images are read from private addresses too.
    :param link_lifetime_s: how long a signed link works, in seconds.
    :raises WanInputError: ``background`` is no colour, or ``too_small`` another word.
    """

    staging: str | None = None
    background: str = "white"
    too_small: TooSmall = "upscale"
    check: bool = True
    allow_private: bool = False
    link_lifetime_s: float = DEFAULT_LIFETIME_S

    def __post_init__(self) -> None:
        parse_background(self.background)
        if self.too_small not in ("upscale", "reject"):
            raise WanInputError('too_small must be "upscale" or "reject".')


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The images of one video: identified, and not read before a purchase.

    :param row: the row that names them.
    :param images: the images, the source image first.
    """

    row: DatasetRow = field(repr=False)
    images: tuple[RowImage, ...]
    sources: ImageSources = field(repr=False)

    @property
    def to_send(self) -> tuple[SourceImage, ...]:
        """The images as a :class:`VideoSpec` takes them."""
        make = self.sources.make_address
        return tuple(
            SourceImage(
                each.input_name or "",
                each.shown,
                each.identity,
                partial(make, each),
                each.is_listed,
                each.is_source,
            )
            for each in self.images
        )

    def spec(self, *, owner: str | None = None, validates: bool = False) -> VideoSpec:
        """Return the video that the row asks for.

        :param owner: the task instance that asks for it.
        :param validates: whether the model's rules are enforced before a purchase, also on images whose addresses are
            among the row's inputs; default False: that is done elsewhere.
        :raises WanInputError: the inputs are not JSON, or an image is given twice.
        """
        row, model = self.row, self.sources.model
        spec = make_video_spec(
            model.model_id,
            row.inputs,
            images=self.to_send,
            variation=row.variation,
            owner=owner,
            model=model if validates else None,
        )
        if not validates:
            return spec

        def make_inputs() -> Mapping[str, Any]:
            self.sources.check_addresses(spec.validate(), of=row.inputs)
            return spec.make_inputs()

        return replace(spec, make_inputs=make_inputs)

    @property
    def shown(self) -> str:
        """The address of the first image as it may be shown and recorded; without an image, the row's place."""
        return self.images[0].shown if self.images else self.row.where

    @property
    def fields(self) -> dict[str, bool]:
        """The inputs that take the images, and whether each takes a list."""
        return {each.input_name or "": each.is_listed for each in self.images}

    def without_row(self) -> ImageSource:
        """Return it without its row: a plan of 100,000 videos has what it needs of each row."""
        return replace(self, row=_NO_ROW if self.images else DatasetRow(origin=self.row.where))

    def addresses(self) -> dict[str, Any]:
        """Check, fix, stage and sign the images; return the address of each by its input, or a list of them.

        Call it only immediately before a purchase, and keep the result nowhere.
        """
        return by_field(self.to_send, address_to_send)

    def saved(self) -> list[dict[str, Any]]:
        """Return the images as plain JSON values, for :meth:`ImageSources.restored`."""
        return [
            {name: getattr(each, name) for name in _SAVED}
            | {
                "image": {
                    "address": each.address,
                    "known": each.known and asdict(each.known),
                    "prepared": each.prepared and each.prepared.as_dict(),
                }
            }
            for each in self.images
        ]


_NO_ROW = DatasetRow()


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

    # -- which image it is ---------------------------------------------------------------------------------

    def open(self, given: str | Mapping[str, Any] | DatasetRow) -> ImageSource:
        """Identify the images of one video, without reading them where their identity is known.

        :param given: ``gs://``, ``https://`` or a path; a row of a dataset, or a row or a prepared row as a mapping.
        :raises WanInputError: it has another form, or there is no such object or file; or the input that takes the
            source image is not known.
        :raises WanStorageError: the bucket cannot be reached.
        """
        row = row_of(given)
        others = frozenset(each.input_name for each in row.images if each.input_name)
        has_image = row.image is not None
        images = []
        for each in row.images:
            name = each.input_name or self._image_field(others)
            # By its name or as the image of the row, the source image of a bundled model is the same video.
            is_source = not each.is_listed and (not each.input_name or (not has_image and name == self._bundled_field))
            images.append(self._identified(replace(each, input_name=name, is_source=is_source)))
        return ImageSource(row, tuple(sorted(images, key=lambda each: not each.is_source)), self)

    def _identified(self, image: RowImage) -> RowImage:
        if image.prepared is not None:
            shown = canonical_url(image.prepared.source)
            return replace(image, shown=shown, identity=image.prepared.identity)
        reader = self.reader_of(image)
        identity = reader.identity
        known = reader.facts if isinstance(reader, BucketReader) else None  # a purchase reads that generation
        return replace(image, known=known, shown=reader.address, identity=identity)

    def restored(self, saved: Iterable[Mapping[str, Any]], row: str) -> ImageSource:
        """Return a source that was saved: nothing is looked up.

        :param saved: see :meth:`ImageSource.saved`; an address of None is one that may not be saved.
        :param row: the row's place.
        """
        images = []
        for line in saved:
            address, known, prepared = (line["image"][name] for name in ("address", "known", "prepared"))
            images.append(
                RowImage(
                    address,
                    known=known and ObjectFacts(**known),
                    prepared=prepared and PreparedImage.from_dict(prepared),
                    **{name: line[name] for name in _SAVED},
                )
            )
        return ImageSource(DatasetRow(origin=row), tuple(images), self)

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

    def reader_of(self, image: RowImage) -> ImageReader:
        """Return a reader of an image.

        :raises WanInputError: its address has another form, or there is no such object.
        """
        address = image.address or ""
        if address.startswith("gs://"):
            return BucketReader(self.client, image.known or look_up_object(self.client, address))
        if address.startswith(("http://", "https://")):
            return WebReader(address, allow_private=self.options.allow_private)
        if not address or "://" in address or address[:5].lower() == "data:":
            raise WanInputError(
                f"image={address[:80]!r} is not an address that can be used: give gs://bucket/object, https://... or "
                "a path. Nothing was bought."
            )
        return FileReader(address)

    # -- prepared copies -----------------------------------------------------------------------------------

    @cached_property
    def _staging(self) -> Staging | None:
        return Staging(self.client, self.options.staging) if self.options.staging else None

    def _copy_key(self, identity: str, rules: ImageRules) -> str:
        return copy_key(identity, rules, background=self.options.background, too_small=self.options.too_small)

    def find_prepared(self, reader: ImageReader, rules: ImageRules) -> PreparedImage | None:
        """Return the result of an earlier preparation of an image whose content is known without reading it."""
        if self._staging is None or reader.identity is None:
            return None
        return self._staging.find(self._copy_key(reader.identity, rules), reader)

    def prepare(self, reader: ImageReader, rules: ImageRules) -> PreparedImage:
        """Make an image acceptable, and keep the copy in the staging prefix, unless an earlier run has done it.

        :raises WanInputError: it can't be made acceptable.
        """
        found = self.find_prepared(reader, rules)
        if found is not None:
            return found
        with self._limits.holding(reader.size_bytes):
            return self._prepare_data(reader, reader.read_all(), rules)

    def _prepare_data(self, reader: ImageReader, data: bytes, rules: ImageRules) -> PreparedImage:
        staging, options = self._staging, self.options
        assert staging is not None
        key = self._copy_key(reader.identity or md5_identity(data), rules)
        if reader.identity is None:  # from the web: only the content shows whether it was prepared before
            found = staging.find(key, reader)
            if found is not None:
                return found
        with self._limits.decoding:
            prepared = prepare(
                data,
                rules=rules,
                name=reader.address,
                background=options.background,
                too_small=options.too_small,
            )
        return staging.put(key, reader, prepared)

    # -- the address that is sent --------------------------------------------------------------------------

    def make_address(self, image: RowImage) -> str:
        """Check, fix, stage and sign an image, and return the address to send.

        :raises WanInputError: the model would refuse it, or it is not there any more.
        """
        if image.address is None:
            raise WanInputError(
                f"{image.shown} is not in the dataset any more. Its address was signed, so it was not saved. Nothing "
                "was bought for it."
            )
        if image.prepared is not None:
            return self._url_of_prepared(image.prepared)
        reader, rules = self.reader_of(image), self.model.known.rules_of(image.input_name or "")
        if not (self.options.check or self.options.staging) or rules is None:
            return self._url_as_it_is(reader)
        if self.options.staging is None:
            self._check_as_it_is(reader, rules)
            return self._url_as_it_is(reader)
        if not isinstance(reader, WebReader):
            return self._url_of_staged(reader, self.prepare(reader, rules))
        with self._limits.holding(None):  # read once, to check and to prepare
            data = reader.read_all()
            facts = inspect(data, name=reader.address)
            if fits_as_it_is(facts, rules):
                check_whole(data, facts)
                return reader.url
            prepared = self._prepare_data(reader, data, rules)
        return self._url_of_staged(reader, prepared)

    def check_addresses(self, inputs: Mapping[str, Any], *, of: Collection[str]) -> None:
        """Refuse images behind public addresses that the model would refuse.

        :param inputs: validated inputs.
        :param of: the inputs to look at.
        :raises WanInputError: the model would refuse one, or it cannot be read anonymously.
        :raises WanDownloadError: one cannot be read now.
        """
        for rules in self.model.known.images if self.options.check else ():
            found = inputs.get(rules.field) if rules.field in of else None
            for url in found if isinstance(found, list) else [found]:
                if isinstance(url, str) and url.startswith(("http://", "https://")):
                    self._check_as_it_is(WebReader(url, allow_private=self.options.allow_private), rules)

    def _check_as_it_is(self, reader: ImageReader, rules: ImageRules) -> None:
        """Refuse an image that is sent as it is and that the model would refuse, or that is cut off.

        It is read once: whole, or only its header if its size alone is too large.

        :raises UnusableImageError: the model would refuse it.
        """
        limit, data = rules.max_size_bytes_exclusive, None
        with self._limits.holding(reader.size_bytes):
            if limit is not None and reader.size_bytes is not None and reader.size_bytes >= limit:
                facts = inspect(reader)
            else:
                data = reader.read_all()
                facts = inspect(data, name=reader.address)
            broken = check(facts, rules, too_small=self.options.too_small)
            if broken:
                hint = ' staging="gs://bucket/prefix" does it.' if all(rule.fixable for rule in broken) else ""
                raise UnusableImageError(explain(facts, broken) + hint, broken)
            if data is not None:
                check_whole(data, facts)
        self._warn_of(facts)

    def _url_of_staged(self, reader: ImageReader, prepared: PreparedImage) -> str:
        if prepared.changes and prepared.is_new:
            self._log.info("Prepared %s: %s.", reader.address, "; ".join(prepared.changes))
        for note in prepared.notes:
            self._log.warning("%s: %s.", reader.address, note)
        address = prepared.staged_uri
        return self.link_to(address) if address.startswith("gs://") else self._url_as_it_is(reader)

    @cached_property
    def _links(self) -> ObjectLinks:  # kept: it holds the token with which IAM is asked to sign
        return ObjectLinks(self.client, lifetime_s=self.options.link_lifetime_s)

    def link_to(self, uri: str) -> str:
        """Sign a link to an object of a bucket."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        return self._links.link_to(bucket, name)

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

    def _url_of_prepared(self, image: PreparedImage) -> str:
        """Return the address of a prepared image, if the object has not changed since."""
        if not image.staged_uri.startswith("gs://"):
            return image.staged_uri
        facts = look_up_object(self.client, image.staged_uri)
        is_source = image.staged_uri == image.source
        changed = (facts.size_bytes != image.size_bytes and not facts.is_gzip) or (
            is_source and facts.md5 is not None and image.identity not in (None, f"md5:{facts.md5}")
        )
        if changed:
            raise WanInputError(
                f"{image.staged_uri} has changed since it was prepared. Nothing was bought. Prepare the images again."
            )
        return self.link_to(image.staged_uri)


def row_of(given: str | Mapping[str, Any] | DatasetRow) -> DatasetRow:
    """Return the row that an address or a mapping stands for.

    :raises WanInputError: the mapping names no image.
    """
    if isinstance(given, DatasetRow):
        return given
    if isinstance(given, str):
        if not given.strip():
            raise WanInputError("The address of the image is empty. Nothing was bought.")
        return DatasetRow((RowImage(given.strip()),))
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
