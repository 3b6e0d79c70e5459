# SPDX-License-Identifier: Apache-2.0
"""What is known of an image before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What a format's own header says; the parsers in :mod:`.headers` return this.

    :param mode: Pillow's word for how pixels are stored (``RGB``, ``RGBA``, ``P``, ``L``, ``CMYK``, ``I;16``).
    :param bits: bits a channel.
    :param private: names of what must not leave the house with the pixels, such as ``"GPS position"``.
    :param lossless: whether the pixels were stored without loss.
    :param scales_down: whether the decoder can give a smaller picture without holding the whole one.
    """

    width: int
    height: int
    mode: str
    bits: int = 8
    has_alpha: bool = False
    orientation: int = 1
    is_animated: bool = False
    private: tuple[str, ...] = ()
    has_icc: bool = False
    lossless: bool = False
    scales_down: bool = False


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image as its header describes it.

    :param name: how messages call it; an address without its query.
    :param format: Pillow's name of the format, by content and not by suffix: ``JPEG``, ``PNG``, ``HEIF``...
    :param width: stored width in px; see ``displayed_width`` for the one that a viewer shows.
    :param mode: Pillow's word for how pixels are stored.
    :param orientation: EXIF orientation, 1 (upright) to 8.
    :param is_animated: whether the header announces more than one frame.
    :param size_bytes: size of the file, None where nobody said.
    :param private: names of metadata that :func:`~airflow_provider_wan.images.prepare.prepare` removes, as far
        as they stand before the pixels.
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
