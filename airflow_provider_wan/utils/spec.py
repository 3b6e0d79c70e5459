# SPDX-License-Identifier: Apache-2.0
"""From a task's parameters to the one video that it wants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.utils.params import given_or_none, mapping_of

if TYPE_CHECKING:
    from airflow_provider_wan.durable.submission import VideoSpec
    from airflow_provider_wan.hooks.wan import WanHook

#: The inputs that have a parameter of their own: those of the default model.
INPUT_PARAMETERS = (
    "prompt",
    "img_url",
    "negative_prompt",
    "template",
    "resolution",
    "duration",
    "prompt_extend",
    "seed",
)
#: A text longer than this (an image as a data: URI) is remembered by its hash.
_REMEMBERED_CHARS = 4096


def mask_signatures(value: Any) -> None:
    """Have Airflow hide the signatures of signed addresses wherever it shows or keeps what a task was given."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            mask_signatures(item)
    elif isinstance(value, str) and "://" in value and "=" in value:
        from airflow.providers.common.compat.sdk import mask_secret

        from airflow_provider_wan.model_api.fingerprints import signatures_in

        for signature in signatures_in(value):
            mask_secret(signature)


def given_inputs(task: Any) -> dict[str, Any]:
    """Put together what a task was given: the parameters of :data:`INPUT_PARAMETERS`, and ``inputs``.

    :raises WanInputError: an input is given in both ways.
    """
    given = {name: given_or_none(getattr(task, name)) for name in INPUT_PARAMETERS}
    given = {name: value for name, value in given.items() if value is not None}
    more = mapping_of(task.inputs, name="inputs")
    twice = sorted(given.keys() & more.keys())
    if twice:
        raise WanInputError(f"{', '.join(twice)}: given as a parameter and in inputs; one of them is enough.")
    return {**given, **more}


def wanted_of(
    given: Mapping[str, Any],
    *,
    model_id: str,
    variation: str | None,
    check_image: bool,
    hook: WanHook,
    watcher: str,
) -> VideoSpec:
    """Check the inputs, and name the video that they stand for.

    :param given: as :func:`given_inputs` puts it together.
    :param check_image: whether to look at the image's header before a purchase; no earlier.
    :raises WanInputError: the model would refuse them.
    """
    from airflow_provider_wan.durable.submission import VideoSpec
    from airflow_provider_wan.model_api.calls import check_model_id
    from airflow_provider_wan.model_api.inputs import (
        canonical_url,
        fingerprint,
        load_schema,
        validate_inputs,
        without_signatures,
    )

    inputs = validate_inputs(check_model_id(model_id), given)
    schema = load_schema(model_id)
    images = [str(inputs[name]) for name in (schema.image_fields if schema else ()) if name in inputs]

    def make_inputs() -> dict[str, Any]:
        if check_image:
            for url in images:
                _check_image(url, model_id, allow_private=hook.settings.allow_private_images)
        return inputs

    return VideoSpec(
        model_id=model_id,
        make_inputs=make_inputs,
        recorded_inputs=_short(without_signatures(inputs)),
        fingerprint=fingerprint(model_id, inputs, variation=variation),
        image=canonical_url(images[0]) if images else None,
        variation=variation,
        watcher=watcher,
    )


def shown_url(url: Any) -> str | None:
    """Give the address of an image as it may be shown: without its signature."""
    from airflow_provider_wan.model_api.inputs import canonical_url

    return canonical_url(str(url)) if url else None


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _REMEMBERED_CHARS:
        digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{value[:40]}... ({len(value)} characters, sha256 {digest})"
    if isinstance(value, Mapping):
        return {name: _short(item) for name, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def _check_image(url: str, model_id: str, *, allow_private: bool) -> None:
    """Look at an image's header as RunComfy will see it.

    :raises WanInputError: the model would refuse it.
    """
    from airflow_provider_wan.images.check import check, explain
    from airflow_provider_wan.images.http_file import UrlReader
    from airflow_provider_wan.images.inspect import inspect
    from airflow_provider_wan.model_api.inputs import image_rules

    rules = image_rules(model_id)
    if rules is None or not url.startswith(("http://", "https://")):
        return
    reader = UrlReader(url, allow_private=allow_private)
    try:
        facts = inspect(reader, name=reader.name)
    finally:
        reader.close()
    broken = check(facts, rules)
    if broken:
        raise WanInputError(explain(facts, broken))
