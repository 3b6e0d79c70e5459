# SPDX-License-Identifier: Apache-2.0
"""Facts about an image before it is decoded, and the reasons why an image cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_provider_wan.exceptions import WanInputError


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as its header describes it.

    :param name: how messages call it; an address without its query.
    :param format: Pillow's name of the format, by content and not by suffix: ``JPEG``, ``PNG``, ``HEIF``...
    :param width: stored width in px; see ``displayed_width`` for the width that a viewer shows.
    :param mode: Pillow's word for how pixels are stored (``RGB``, ``RGBA``, ``P``, ``L``, ``CMYK``, ``I;16``).
    :param bits: bits a channel.
    :param orientation: EXIF orientation, 1 (upright) to 8.
    :param is_animated: whether the header announces more than one frame.
    :param size_bytes: size of the file, None if unknown.
    :param private: names of metadata that :func:`~airflow_provider_wan.images.prepare.prepare` removes, as far as it
        precedes the pixels, such as ``"GPS position"``.
    :param lossless: whether the pixels were stored without loss.
    :param scales_down: whether the decoder can return a smaller picture without holding the whole one.
    :param notes: remarks that need no action, such as a suffix that does not agree with the content.
    """

    name: str
    format: str
    width: int
    height: int
    mode: str
    bits: int
    has_alpha: bool
    orientation: int
    is_animated: bool
    size_bytes: int | None
    private: tuple[str, ...]
    has_icc: bool
    lossless: bool
    scales_down: bool = False
    notes: tuple[str, ...] = ()

    @property
    def displayed_width(self) -> int:
        """Width in px after the EXIF orientation is applied."""
        return self.height if self.orientation >= 5 else self.width

    @property
    def displayed_height(self) -> int:
        """Height in px after the EXIF orientation is applied."""
        return self.width if self.orientation >= 5 else self.height

    @property
    def has_private_metadata(self) -> bool:
        """Whether the header holds anything that should not be published."""
        return bool(self.private)


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One rule that an image breaks.

    :param rule: the rule's name in the model's schema file (``formats``, ``alpha``, ``min_side_px``, ``max_side_px``,
        ``max_size_bytes_exclusive``), or ``decodable``.
    :param value: what the image has.
    :param limit: what the rule allows.
    :param message: value and limit in a sentence, without the image's name.
    :param fixable: whether :func:`~airflow_provider_wan.images.prepare.prepare` can fix it.
    """

    rule: str
    value: str | int | None
    limit: str | int | None
    message: str
    fixable: bool


class UnusableImageError(WanInputError):
    """An image that a model would refuse, or that cannot be decoded.

    :param broken: every rule that it breaks.
    """

    def __init__(self, message: str, broken: tuple[BrokenRule, ...]) -> None:
        super().__init__(message)
        self.broken = broken
