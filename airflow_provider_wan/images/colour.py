# SPDX-License-Identifier: Apache-2.0
"""Turning any pixels into 8-bit sRGB without alpha, with the ICC profile honoured."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, ImageCms, ImageColor

from airflow_provider_wan.exceptions import WanInputError

_MODE_OF_SPACE = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_SIXTEEN_BIT = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I"))
_WORDS = {
    "1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "LAB": "Lab",
}  # fmt: skip
#: A profile that moves no channel of any probe by more than this is sRGB under another name.
_SAME_COLOUR = 2


def parse_background(background: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Read a colour: a name, ``#rrggbb``, ``rgb(...)`` or three numbers.

    :raises WanInputError: it is none.
    """
    try:
        colour = ImageColor.getrgb(background) if isinstance(background, str) else background
        red, green, blue = colour[:3]
        if not all(0 <= part <= 255 for part in (red, green, blue)):
            raise ValueError
    except (ValueError, TypeError):
        raise WanInputError(
            f"background: {background!r} is no colour; use a name such as 'white', or '#rrggbb'."
        ) from None
    return int(red), int(green), int(blue)


def workable(image: Image.Image) -> Image.Image:
    """Return an image whose pixels can be scaled: no palette, no 16 bits, no transparent colour set aside."""
    if image.has_transparency_data and image.mode in ("1", "L", "P", "RGB"):
        return image.convert("RGBA")
    if image.mode in _SIXTEEN_BIT:
        return _eight_bit(image)
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGB" if image.mode == "P" else "RGBA")
    if image.mode in ("RGBX", "YCbCr", "HSV"):
        return image.convert("RGB")
    return image


def described(mode: str, bits: int) -> str | None:
    """Say how pixels of another kind become 8-bit RGB, None where they are that already."""
    if mode in ("RGB", "RGBA"):
        return f"{bits}-bit colour to 8-bit" if bits > 8 else None
    if mode in _SIXTEEN_BIT:
        return "16-bit grey to RGB"
    return f"{_WORDS.get(mode, mode)} to RGB"


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8: Pillow's own conversion clips at 255 instead of scaling."""
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")


def to_srgb(
    image: Image.Image, *, icc: bytes | None, background: tuple[int, int, int]
) -> tuple[Image.Image, list[str]]:
    """Return an image as 8-bit sRGB without alpha, and what was done, in words.

    :param icc: its ICC profile. An unreadable profile, or one for other kinds of pixels, is left out of account
        and said so.
    :param background: what shows through where the image is transparent.
    """
    changes: list[str] = []
    alpha: Image.Image | None = None
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))
        alpha = image.getchannel("A")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image, said = _by_profile(image, icc)
    changes += said
    if alpha is not None:
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(image, mask=alpha)
        image = canvas
        changes.append("transparency flattened on " + "#{:02x}{:02x}{:02x}".format(*background))
    return image, changes


def _by_profile(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, list[str]]:
    if icc is None and image.mode != "LAB":
        return (image if image.mode == "RGB" else image.convert("RGB")), []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc) if icc else ImageCms.createProfile("LAB"))
        mode = _MODE_OF_SPACE.get(profile.profile.xcolor_space)
        if mode == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if mode != image.mode:
            return image.convert("RGB"), ["ICC profile for other pixels ignored"]
        transform = ImageCms.buildTransform(
            profile,
            _srgb(),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "RGB" and _changes_nothing(transform):
            return image, []
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), ["unreadable ICC profile ignored"]
    if converted is None:  # only where asked to work in place
        return image.convert("RGB"), []
    return converted, ["colours converted to sRGB by the ICC profile"]


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _probe() -> Image.Image:
    """125 colours across the cube."""
    steps = (0, 64, 128, 192, 255)
    image = Image.new("RGB", (125, 1))
    image.putdata([(red, green, blue) for red in steps for green in steps for blue in steps])
    return image


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    after = ImageCms.applyTransform(_probe(), transform)
    if after is None:
        return False
    before_bytes, after_bytes = _probe().tobytes(), after.tobytes()
    return max(abs(a - b) for a, b in zip(before_bytes, after_bytes, strict=True)) <= _SAME_COLOUR
