# SPDX-License-Identifier: Apache-2.0
"""From a task's parameters to the one video that it wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.utils.params import given_or_none, mapping_of

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.model_api.video_spec import VideoSpec

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


def video_spec_of(
    given: Mapping[str, Any],
    *,
    model_id: str,
    variation: str | None,
    check_image: bool,
    hook: WanHook,
    owner: str,
) -> VideoSpec:
    """Return the video that a task's inputs ask for.

    :param given: as :func:`given_inputs` puts it together.
    :param check_image: whether to check the image's header, immediately before a purchase.
    :raises WanInputError: the model would refuse them.
    """
    from dataclasses import replace

    from airflow_provider_wan.model_api.calls import check_model_id
    from airflow_provider_wan.model_api.inputs import load_schema
    from airflow_provider_wan.model_api.video_spec import make_video_spec

    spec = make_video_spec(check_model_id(model_id), given, variation=variation, owner=owner)
    schema = load_schema(model_id)
    if not check_image or schema is None:
        return spec

    def make_inputs() -> Mapping[str, Any]:
        for name in schema.image_fields:
            if name in spec.inputs:
                _check_image(
                    str(spec.inputs[name]), model_id, allow_private=hook.settings.allow_private_images
                )
        return spec.inputs

    return replace(spec, make_inputs=make_inputs)


def shown_url(url: Any) -> str | None:
    """Give the address of an image as it may be shown: without its signature."""
    from airflow_provider_wan.model_api.inputs import canonical_url

    return canonical_url(str(url)) if url else None


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
