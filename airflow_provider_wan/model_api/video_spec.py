# SPDX-License-Identifier: Apache-2.0
"""What is asked for: one video, and the fingerprint that identifies it.

:func:`make_video_spec` is the only place that combines model, inputs, source images and variation into a fingerprint.

The fingerprint is made of what the user gave, and for Wan 2.2 of the bundled defaults and conversions. A model's page
at RunComfy has no part in it: it can change or be down between two tries of a task, and the second try must find the
request that the first one bought. The page only validates and converts what is sent, immediately before a purchase.
So a retry also finds a paid request whose inputs the page has come to refuse.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api.coercion import coerce_fields, plain_number
from airflow_provider_wan.model_api.fingerprints import (
    canonical_url,
    encoded_url,
    fingerprint,
    without_signatures,
)
from airflow_provider_wan.model_api.inputs import PLACEHOLDER, check_form, validate_inputs
from airflow_provider_wan.model_api.schema import LazyModel, load_schema
from airflow_provider_wan.model_api.values import check_model_id

#: A longer text (such as an image as a ``data:`` URI) is recorded as its hash.
_RECORDED_CHARS = 4096


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A source image of a video.

    :param input_name: the model's input that takes its address.
    :param address: the address without signature.
    :param identity: identifies the content, such as ``md5:...``; None: the address identifies the image.
    :param make_address: returns the address to send. It may read, fix, stage and sign the image, so it is called
        only immediately before a purchase. None: the image is sent from somewhere else.
    :param is_listed: whether it is one of a list of images for its input.
    :param is_source: whether it is the source image of the video: its identity takes the place of its input in the
        fingerprint, whereas other images are identified together with their input.
    """

    input_name: str
    address: str
    identity: str | None = None
    make_address: Callable[[], str] | None = field(default=None, repr=False)
    is_listed: bool = False
    is_source: bool = False


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """One video to generate.

    :param inputs: the inputs, with the address of each source image without its signature.
    :param fingerprint: equal fingerprints are the same video.
    :param make_inputs: returns the inputs to send, validated, with signed links. Called only immediately before a
        purchase.
    :param validate: returns the inputs to send, validated, with placeholders for images that have no address yet.
    :param image: address of the source image, without signature.
    :param owner: the task instance that asks for it.
    """

    model_id: str
    inputs: Mapping[str, Any]
    fingerprint: str
    make_inputs: Callable[[], Mapping[str, Any]] = field(repr=False)
    validate: Callable[[], Mapping[str, Any]] = field(repr=False)
    image: str | None = None
    variation: str | None = None
    owner: str | None = None

    @property
    def recorded_inputs(self) -> dict[str, Any]:
        """The inputs as records keep them: without signatures, and long texts as their hash."""
        recorded: dict[str, Any] = _shortened(without_signatures(self.inputs))
        return recorded


def make_video_spec(
    model_id: str,
    inputs: Mapping[str, Any],
    *,
    images: Sequence[SourceImage] = (),
    variation: str | None = None,
    owner: str | None = None,
    model: LazyModel | None = None,
) -> VideoSpec:
    """Return the spec of one video.

    :param inputs: the inputs, without those of the images.
    :param images: the images; an image in a bucket is identified by its content. The address of the source image may be
        among the inputs instead.
    :param variation: a string of the user's that is never sent; another one is another video.
    :param owner: the task instance that asks for it.
    :param model: its rules are enforced before a purchase, and read only then. None: the inputs are validated
        elsewhere.
    :raises WanInputError: the inputs are not JSON, or an image is given twice.
    """
    variation = variation or None
    image = next((each for each in images if each.is_source), None)
    names = {each.input_name for each in images}
    if twice := sorted(name for name in names if inputs.get(name)):
        raise WanInputError(f"{', '.join(twice)}: given as an image and among the inputs; one of them is enough.")
    if image is not None and sum(each.input_name == image.input_name for each in images) > 1:
        raise WanInputError(f"{image.input_name} is given by image and by images; one of them is enough.")
    given = _plain(check_model_id(model_id), {n: value for n, value in inputs.items() if n not in names})
    shown = given | by_field(images, lambda each: encoded_url(each.address))
    identities = by_field(images, lambda each: each.identity or encoded_url(each.address))
    if image is not None and image.identity is not None:
        del identities[image.input_name]

    def validate() -> dict[str, Any]:
        found = given | by_field(images, lambda each: PLACEHOLDER if each.identity else encoded_url(each.address))
        return validate_inputs(model.known, found) if model is not None else found

    def make_inputs() -> dict[str, Any]:
        sent = validate()
        for name, address in by_field(images, address_to_send).items():
            sent[name] = [address] if isinstance(sent[name], list) and isinstance(address, str) else address
        return sent

    return VideoSpec(
        model_id=model_id,
        inputs=shown,
        fingerprint=fingerprint(
            model_id, given | identities, image.identity if image else None, variation, image_fields=()
        ),
        make_inputs=make_inputs,
        validate=validate,
        image=_shown_image(model_id, images, shown),
        variation=variation,
        owner=owner,
    )


def _plain(model_id: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs as a fingerprint takes them: converted by the bundled schema alone, and valid JSON.

    For other models, what means "left out" in every model is dropped: None, and NaN as in an empty cell of a table.

    :raises WanInputError: they are not JSON.
    """
    schema = load_schema(model_id)
    given = dict(inputs)
    if schema is not None:
        for name in schema.image_fields:
            if isinstance(given.get(name), str):
                given[name] = encoded_url(given[name])
        given = coerce_fields(schema, given)
    else:
        given = {name: plain_number(value) for name, value in given.items() if value is not None}
        given = {name: value for name, value in given.items() if not _is_nan(value)}
    check_form(model_id, given)
    return given


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def by_field(images: Sequence[SourceImage], value_of: Callable[[SourceImage], str]) -> dict[str, Any]:
    """Return a value of each image by its field; a list for a field that was given a list."""
    found: dict[str, Any] = {}
    for each in images:
        if each.is_listed:
            found.setdefault(each.input_name, []).append(value_of(each))
        else:
            found[each.input_name] = value_of(each)
    return found


def address_to_send(image: SourceImage) -> str:
    """Make the address of an image as it is sent."""
    return encoded_url(image.make_address() if image.make_address else image.address)


def _shown_image(model_id: str, images: Sequence[SourceImage], shown: Mapping[str, Any]) -> str | None:
    if images:
        return encoded_url(images[0].address)
    schema = load_schema(model_id)
    addresses = [str(shown[name]) for name in (schema.image_fields if schema else ()) if shown.get(name)]
    return canonical_url(addresses[0]) if addresses else None


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _RECORDED_CHARS:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{value[:40]}... ({len(value)} characters, sha256 {digest})"
    if isinstance(value, Mapping):
        return {name: _shortened(item) for name, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value
