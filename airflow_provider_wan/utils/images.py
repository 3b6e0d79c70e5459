# SPDX-License-Identifier: Apache-2.0
"""Build the image sources of a task from its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from logging import Logger
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.utils.params import given_or_none, mapping_of, seconds_of

if TYPE_CHECKING:
    from airflow_provider_wan.hooks.wan import WanHook
    from airflow_provider_wan.images.source import ImageSource, ImageSources
    from airflow_provider_wan.model_api.schema import LazyModel

TooSmall = Literal["upscale", "reject"]


def given_image(image: Any) -> str | Mapping[str, Any] | None:
    """Read ``image=``: an address, or a row as a mapping or as JSON text, or nothing."""
    image = given_or_none(image)
    if image is None or isinstance(image, Mapping):
        return image or None
    if not isinstance(image, str):
        raise WanInputError(
            f"image must be an address or a prepared row, not {type(image).__name__}. Nothing was bought."
        )
    text = image.strip()
    return (mapping_of(text, name="image") if text.startswith("{") else text) or None


def given_images(images: Any) -> dict[str, str | list[str]]:
    """Read ``images=``: addresses by input, as a mapping or as JSON text; an input that takes several has a list.

    :raises WanInputError: it has another form.
    """
    given = {}
    for field, value in mapping_of(images, name="images").items():
        items = value if isinstance(value, list | tuple) else [value]
        addresses = [item.strip() if isinstance(item, str) else item for item in items if given_or_none(item)]
        if not all(isinstance(address, str) for address in addresses):
            raise WanInputError(f"images[{str(field)!r}] must be an address or a list of them. Nothing was bought.")
        if addresses:
            given[str(field)] = addresses if isinstance(value, list | tuple) else addresses[0]
    return given


def open_images(
    sources: ImageSources,
    image: str | Mapping[str, Any] | None,
    images: Mapping[str, str | list[str]],
    *,
    inputs: Mapping[str, Any],
    variation: str | None,
) -> ImageSource:
    """Return the images of one video, identified and not read yet.

    :param image: as :func:`given_image` returns it.
    :param images: as :func:`given_images` returns it.
    :param inputs: the other inputs of the task; those of a row as ``image`` override them.
    :param variation: of the task; that of a row overrides it.
    :raises WanInputError: the input that takes ``image`` is not known; or an address can't be used.
    """
    from airflow_provider_wan.images.rows import DatasetRow, RowImage, images_of_input
    from airflow_provider_wan.images.source import row_of

    row = row_of(image) if image is not None else DatasetRow()
    found = [each for each in row.images if each.input_name not in images]
    for field, given in images.items():
        found += images_of_input(field, given, RowImage)
    inputs, variation = {**inputs, **row.inputs}, row.variation or variation
    return sources.open(replace(row, images=tuple(found), inputs=inputs, variation=variation))


def shown_image(image: Any) -> str | None:
    """Return the address of ``image=`` as it may be shown."""
    from airflow_provider_wan.model_api.fingerprints import canonical_url

    given = given_image(image)
    if isinstance(given, Mapping):
        given = given.get("source") or given.get("image")
    return canonical_url(str(given)) if given else None


class ImagesTask(Protocol):
    """An operator that reads source images, with its parameters for that."""

    gcp_conn_id: str | None
    impersonation_chain: str | Sequence[str] | None
    staging: str | None
    background: str
    too_small: TooSmall

    @property
    def log(self) -> Logger:
        """The task's log."""


def image_sources(
    task: ImagesTask,
    hook: WanHook | None,
    model: LazyModel,
    *,
    check_image: bool = True,
    link_lifetime: timedelta | float | None = None,
    waits_for_s: float = 0.0,
    workers: int = 10,
) -> ImageSources:
    """Return the image sources of a task; a connection is opened only when it is needed.

    :param hook: its connection says whether private addresses are read; None: they are not.
    :param check_image: whether an image is checked before the purchase.
    :param link_lifetime: how long a signed link works; None: 12 hours, or as long as the task waits.
    :param waits_for_s: the most that the task waits for a result, in seconds.
    :param workers: threads that use it.
    :raises WanInputError: the link would not work for as long as the task waits.
    """
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.images.source import ImageOptions, ImageSources
    from airflow_provider_wan.images.staging import DEFAULT_LIFETIME_S

    lifetime_s = max(DEFAULT_LIFETIME_S, waits_for_s) if link_lifetime is None else seconds_of(link_lifetime)
    if lifetime_s < waits_for_s:
        raise WanInputError(
            f"The task waits for up to {waits_for_s / 3600:.4g} hours, and the image's link would work for "
            f"{lifetime_s / 3600:.4g}: a request that is queued for longer would be paid for and find no image. "
            "Nothing was bought. Make link_lifetime at least as long as timeout."
        )
    options = ImageOptions(
        staging=given_or_none(task.staging),
        background=task.background,
        too_small=task.too_small,
        check=check_image,
        allow_private=hook is not None and hook.settings.allow_private_images,
        link_lifetime_s=lifetime_s,
    )
    return ImageSources(
        model,
        lambda: storage_client(task.gcp_conn_id, task.impersonation_chain, pool_size=workers),
        task.log,
        options=options,
    )
