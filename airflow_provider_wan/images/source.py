# SPDX-License-Identifier: Apache-2.0
"""The one way from a source image to what RunComfy can fetch.

``ImageSources.open(image)`` takes whatever a user gives: a ``gs://`` or ``https://`` address, a path, or a prepared
row. What comes back knows what the image counts as (for the fingerprint), and makes the address that is sent only
when a purchase is about to be made: :meth:`ImageSource.wanted` puts both together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.check import check, explain
from airflow_provider_wan.images.codecs import check_decodes
from airflow_provider_wan.images.dataset import DatasetRow, ObjectFacts
from airflow_provider_wan.images.facts import ImageFacts
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.limits import Limits
from airflow_provider_wan.images.origins import (
    WEB_TOTAL_S,
    BucketOrigin,
    FileOrigin,
    Origin,
    WebOrigin,
    look_up_object,
    md5_identity,
)
from airflow_provider_wan.images.prepare import fits_as_it_is, prepare
from airflow_provider_wan.images.rows import PreparedRow, is_prepared_row
from airflow_provider_wan.images.signed_urls import DEFAULT_LIFETIME_S, ObjectLinks
from airflow_provider_wan.images.sizes import TooSmall
from airflow_provider_wan.images.staging import Recipe, Staged, Staging
from airflow_provider_wan.model_api.inputs import canonical_url, image_rules
from airflow_provider_wan.model_api.video_spec import SourceImage, VideoSpec, make_video_spec

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.model_api.inputs import ImageRules


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How images become acceptable and visible.

    :param staging: ``gs://bucket/prefix`` of prepared copies; None: nothing is fixed, and what does not fit is
        refused.
    :param background: what transparent parts are put on.
    :param too_small: ``"upscale"`` or ``"reject"``.
    :param check: whether an image is looked at before it is bought for.
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
    """A source image, as submissions take it.

    :param shown: its address as it may be shown and remembered.
    :param identity: what it counts as in a fingerprint; None: its address.
    :param input_name: the model's input that takes its address.
    :param make_address: checks, fixes, stages and signs; gives what is sent. Call it only when a purchase is about to
        be made, and keep the answer nowhere.
    :param inputs: the row's own inputs of the model.
    :param variation: the row's own.
    """

    shown: str
    identity: str | None
    input_name: str
    make_address: Callable[[], str] = field(repr=False)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None

    def wanted(
        self,
        model_id: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        variation: str | None = None,
        owner: str | None = None,
    ) -> VideoSpec:
        """Say which video is wanted of this image.

        :param inputs: the task's inputs; the row's own override them.
        :param variation: the task's; the row's own overrides it.
        :raises WanInputError: an input breaks a rule of the model.
        """
        return make_video_spec(
            model_id,
            {**(inputs or {}), **self.inputs},
            image=SourceImage(self.input_name, self.shown, self.identity, self.make_address),
            variation=self.variation or variation,
            owner=owner,
        )


class ImageSources:
    """Opens source images; safe to use from several threads.

    :param model_id: the model: its rules decide what fits, its schema which input takes the image.
    :param make_client: gives a Cloud Storage client; called once, and only where one is needed.
    :param image_field: the input that takes the image, for a model whose schema is not known here.
    """

    def __init__(
        self,
        model_id: str,
        make_client: Callable[[], storage.Client],
        log: Logger,
        *,
        options: ImageOptions | None = None,
        image_field: str | None = None,
    ) -> None:
        self.options = options or ImageOptions()
        self.rules: ImageRules | None = image_rules(model_id)
        chosen = image_field or (self.rules.field if self.rules else None)
        if chosen is None:
            raise WanInputError(
                f"Which input of model {model_id} takes the image is not known here. Give the address of a public "
                "image in inputs={...}. Nothing was bought."
            )
        self.input_name = chosen
        self._log = log
        self._make_client = make_client
        self._lock = threading.Lock()
        self._limits = Limits()
        self._client: storage.Client | None = None
        self._recipe: Recipe | None = None
        if self.rules is not None:
            self._recipe = Recipe(self.rules, self.options.background, self.options.too_small)

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

    @property
    def recipe(self) -> Recipe:
        """What is done to images.

        :raises WanInputError: the model's rules are not known.
        """
        if self._recipe is None:
            raise WanInputError(
                "What this model asks of images is not known here, so they can't be prepared."
            )
        return self._recipe

    def open(self, image: str | Mapping[str, Any] | DatasetRow | PreparedRow) -> ImageSource:
        """Open one image.

        :param image: ``gs://``, ``https://`` or a path; a row of a dataset, or a prepared row (also as a dict).
        :raises WanInputError: it is none of these, or there is no such object or file.
        :raises WanStorageError: the bucket can't be asked.
        """
        if isinstance(image, Mapping):
            image = _row_of(image)
        if isinstance(image, PreparedRow):
            return self._open_prepared(image)
        if isinstance(image, DatasetRow):
            if image.prepared is not None:
                return self._open_prepared(image.prepared, image)
            origin = self.origin_of(image.image, image.known)
            return self._source(origin, inputs=image.inputs, variation=image.variation)
        return self._source(self.origin_of(str(image).strip()))

    def origin_of(self, address: str, known: ObjectFacts | None = None) -> Origin:
        """Find where an image lies.

        :param known: what a listing has told of it already.
        """
        if address.startswith("gs://"):
            return BucketOrigin(self.client, known or look_up_object(self.client, address))
        if address.startswith(("http://", "https://")):
            options = self.options
            return WebOrigin(address, allow_private=options.allow_private, total_s=options.web_total_s)
        if not address or "://" in address or address[:5].lower() == "data:":
            raise WanInputError(
                f"image={address[:80]!r} is not an address that can be used: give gs://bucket/object, https://... or "
                "a path. Nothing was bought."
            )
        return FileOrigin(address)

    def prepare(self, origin: Origin) -> tuple[Staged, bool]:
        """Make an image acceptable, and keep the copy in the staging prefix.

        :return: what is known of it, and whether it was there already.
        :raises WanInputError: it can't be made acceptable.
        """
        staging, recipe = self.staging, self.recipe
        assert staging is not None
        identity = origin.identity
        copy = needs_copy(origin)
        found = staging.find(recipe.key(identity), copy=copy) if identity is not None else None
        if found is not None:
            return found, True
        with self._limits.holding(origin.size_bytes):
            data = origin.read_all()
            key = recipe.key(identity or md5_identity(data))
            if identity is None:  # on the web: only now can be told whether it was prepared before
                found = staging.find(key, copy=copy)
                if found is not None:
                    return found, True
            with self._limits.decoding:
                prepared = prepare(
                    data,
                    rules=recipe.rules,
                    name=origin.address,
                    background=recipe.background,
                    too_small=recipe.too_small,
                )
            del data
            return staging.put(key, prepared, copy=copy), False

    def address_of(self, origin: Origin, staged: Staged) -> str:
        """Give the address of what is submitted, as it may be remembered."""
        if staged.object_name is None:
            return origin.address
        assert self.options.staging is not None
        return f"gs://{Staging(self.client, self.options.staging).bucket}/{staged.object_name}"

    def link_to(self, uri: str) -> str:
        """Sign a link to an object of a bucket."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        return ObjectLinks(self.client, lifetime_s=self.options.link_lifetime_s).link_to(bucket, name)

    # -- one image -----------------------------------------------------------------------------------------

    def _source(
        self, origin: Origin, *, inputs: Mapping[str, Any] | None = None, variation: str | None = None
    ) -> ImageSource:
        return ImageSource(
            shown=origin.address,
            identity=origin.identity,
            input_name=self.input_name,
            make_address=lambda: self._make_address(origin),
            inputs=inputs or {},
            variation=variation,
        )

    def _open_prepared(self, row: PreparedRow, of: DatasetRow | None = None) -> ImageSource:
        return ImageSource(
            shown=canonical_url(row.source),
            identity=row.identity,
            input_name=self.input_name,
            make_address=lambda: self._url_of_prepared(row),
            inputs=of.inputs if of else row.inputs,
            variation=of.variation if of else row.variation,
        )

    def _make_address(self, origin: Origin) -> str:
        if self.rules is None or not (self.options.check or self.options.staging):
            return self._url_as_it_is(origin)
        if self.options.staging is None:
            self._check_as_it_is(origin, self.rules)
            return self._url_as_it_is(origin)
        if isinstance(origin, WebOrigin) and fits_as_it_is(look(origin), self.rules):
            return origin.url
        staged, was_there = self.prepare(origin)
        if staged.changes and not was_there:
            self._log.info("Prepared %s: %s.", origin.address, "; ".join(staged.changes))
        address = self.address_of(origin, staged)
        return self.link_to(address) if address.startswith("gs://") else self._url_as_it_is(origin)

    def _url_as_it_is(self, origin: Origin) -> str:
        if isinstance(origin, WebOrigin):
            return origin.url
        if isinstance(origin, BucketOrigin):
            return self.link_to(origin.address)
        raise WanInputError(
            f"{origin.address} is a file of this machine, and RunComfy can't read it. Nothing was bought. Give "
            'staging="gs://bucket/prefix", and a copy is put there.'
        )

    def _check_as_it_is(self, origin: Origin, rules: ImageRules) -> None:
        """Refuse what the model would refuse; without staging nothing can be fixed.

        :raises WanInputError: it would.
        """
        facts = look(origin)
        broken = check(facts, rules, too_small=self.options.too_small)
        if broken:
            hint = ' staging="gs://bucket/prefix" does it.' if all(rule.fixable for rule in broken) else ""
            raise WanInputError(explain(facts, broken) + hint)
        if isinstance(origin, BucketOrigin):
            check_decodes(origin.read_all(), facts)  # cut off inside the pixels: the header does not tell
        if facts.orientation != 1 or facts.has_private_metadata:
            about = (
                [f"it is stored turned (orientation {facts.orientation})"] if facts.orientation != 1 else []
            )
            about += [f"it holds {', '.join(facts.private)}"] if facts.private else []
            self._log.warning(
                "%s goes to RunComfy as it is, though %s. staging= would give it a copy without.",
                origin.address,
                " and ".join(about),
            )

    def _url_of_prepared(self, row: PreparedRow) -> str:
        """Give the address of a prepared image, if it is still what was prepared."""
        if not row.staged_uri.startswith("gs://"):
            return row.staged_uri
        facts = look_up_object(self.client, row.staged_uri)
        is_source = row.staged_uri == row.source
        changed = facts.size_bytes != row.size_bytes or (
            is_source and facts.md5 is not None and row.identity not in (None, f"md5:{facts.md5}")
        )
        if changed:
            raise WanInputError(
                f"{row.staged_uri} is not what was prepared any more. Nothing was bought. Prepare the images again."
            )
        return self.link_to(row.staged_uri)


def needs_copy(origin: Origin) -> bool:
    """Tell whether an image needs a copy in a bucket although it fits: a file, or a link that may not be kept."""
    return isinstance(origin, FileOrigin) or (isinstance(origin, WebOrigin) and origin.is_signed)


def look(origin: Origin) -> ImageFacts:
    """Look at an image's header.

    :raises WanInputError: it is no image, or no longer there.
    :raises WanDownloadError: it can't be read just now, or may not be.
    """
    reader = origin.reader()
    try:
        return inspect(reader, name=origin.address)
    finally:
        close = getattr(reader, "close", None)
        if close is not None:
            close()


def _row_of(plain: Mapping[str, Any]) -> PreparedRow | DatasetRow:
    if is_prepared_row(plain):
        return PreparedRow.from_dict(plain)
    given = {name: value for name, value in plain.items() if value not in (None, "")}
    image, variation = given.pop("image", None), given.pop("variation", None)
    if not isinstance(image, str):
        raise WanInputError('This row names no image. Give {"image": "gs://...", ...} or a prepared row.')
    return DatasetRow(image=image, inputs=given, variation=None if variation is None else str(variation))
