# SPDX-License-Identifier: Apache-2.0
"""The specification of one video, and the fingerprint that identifies it.

:func:`make_video_spec` is the only place that combines model, inputs, source image and variation into a fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.model_api.fingerprints import (
    canonical_url,
    encoded_url,
    fingerprint,
    without_signatures,
)
from airflow_provider_wan.model_api.inputs import validate_inputs
from airflow_provider_wan.model_api.schema import load_schema

#: A longer text (such as an image as a ``data:`` URI) is recorded as its hash.
_RECORDED_CHARS = 4096
#: Takes the place of an address that does not exist yet while the other inputs are validated.
_PLACEHOLDER = "https://storage.googleapis.com/image"


@dataclass(frozen=True, slots=True)
class SourceImage:
    """The source image of a video.

    :param input_name: the model's input that takes its address.
    :param address: the address without signature.
    :param identity: identifies the content, such as ``md5:...``; None: the address identifies the image.
    :param make_address: returns the address to send. It may read, fix, stage and sign the image, so it is called
        only immediately before a purchase. None: the image is sent from somewhere else.
    """

    input_name: str
    address: str
    identity: str | None = None
    make_address: Callable[[], str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class VideoSpec:
    """One video to generate.

    :param inputs: the inputs, with the address of the source image without its signature.
    :param fingerprint: equal fingerprints are the same video.
    :param make_inputs: returns the inputs to send, with signed links. Called only immediately before a purchase.
    :param image: address of the source image, without signature.
    :param owner: the task instance that asks for it.
    """

    model_id: str
    inputs: Mapping[str, Any]
    fingerprint: str
    make_inputs: Callable[[], Mapping[str, Any]] = field(repr=False)
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
    image: SourceImage | None = None,
    variation: str | None = None,
    owner: str | None = None,
    validate: bool = True,
) -> VideoSpec:
    """Return the spec of one video.

    :param inputs: the inputs; with ``image``, without the image's field.
    :param image: the source image. None: its address, if any, is among the inputs.
    :param variation: a string of the user's that is never sent; another value is another video.
    :param owner: the task instance that asks for it.
    :param validate: whether to enforce the rules of the model. A batch validates once for many equal inputs.
    :raises WanInputError: an input breaks a rule of the model, or the image is given twice.
    """
    variation = variation or None
    if image is None:
        return _spec_of_inputs(model_id, inputs, variation, owner, validate=validate)
    if inputs.get(image.input_name):
        raise WanInputError(f"{image.input_name} and image are both given; one of them is enough.")
    given = {name: value for name, value in inputs.items() if name != image.input_name}
    shown_address = encoded_url(image.address)
    by_address = image.identity is None
    if validate:
        address = shown_address if by_address else _PLACEHOLDER
        given = validate_inputs(model_id, {**given, image.input_name: address})
        del given[image.input_name]
    shown = {**given, image.input_name: shown_address}
    make_address = image.make_address or (lambda: image.address)
    return VideoSpec(
        model_id=model_id,
        inputs=shown,
        fingerprint=fingerprint(
            model_id,
            shown if by_address else given,
            image.identity,
            variation,
            image_fields=(image.input_name,),
        ),
        make_inputs=lambda: {**given, image.input_name: encoded_url(make_address())},
        image=shown_address,
        variation=variation,
        owner=owner,
    )


def _spec_of_inputs(
    model_id: str, inputs: Mapping[str, Any], variation: str | None, owner: str | None, *, validate: bool
) -> VideoSpec:
    schema = load_schema(model_id)
    given = dict(inputs)
    for name in schema.image_fields if schema else ():
        if isinstance(given.get(name), str):
            given[name] = encoded_url(given[name])
    if validate:
        given = validate_inputs(model_id, given)
    addresses = [str(given[name]) for name in (schema.image_fields if schema else ()) if given.get(name)]
    return VideoSpec(
        model_id=model_id,
        inputs=given,
        fingerprint=fingerprint(model_id, given, variation=variation),
        make_inputs=lambda: given,
        image=canonical_url(addresses[0]) if addresses else None,
        variation=variation,
        owner=owner,
    )


def _shortened(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _RECORDED_CHARS:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{value[:40]}... ({len(value)} characters, sha256 {digest})"
    if isinstance(value, Mapping):
        return {name: _shortened(item) for name, item in value.items()}
    return [_shortened(item) for item in value] if isinstance(value, list) else value
