# SPDX-License-Identifier: Apache-2.0
"""Find every rule of a model that an image breaks, and make the image acceptable with the least loss.

The rules come from the model's schema, see :class:`~airflow_provider_wan.model_api.schema.ImageRules`.

In order of loss: pass it through byte for byte; leave private metadata out of the file; decode, fix and encode once.
The same input bytes always give the same output bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image, ImageCms, ImageColor

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images import codecs
from airflow_provider_wan.images.codecs import BrokenRule, UnusableImageError
from airflow_provider_wan.images.inspect import ImageFacts, check_whole, inspect
from airflow_provider_wan.images.readers import MAX_SOURCE_BYTES
from airflow_provider_wan.images.strip import strip_metadata

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.schema import ImageRules

TooSmall = Literal["upscale", "reject"]

#: An image enlarged by more is too blurred for a useful video.
MAX_UPSCALE = 8
_NO_LIMIT_PX = 1_000_000
#: Goes into the names of staged copies: raised when the same source comes out differently.
RECIPE_VERSION = 1

_JPEG_QUALITIES = (95, 90, 85, 80, 70, 60, 50)
_FULL_CHROMA_FROM = 90
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MODE_OF_SPACE = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
_SIXTEEN_BIT = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I"))
_WORDS = {
    "1": "black and white", "L": "grey", "LA": "grey", "P": "palette", "PA": "palette", "LAB": "Lab",
}  # fmt: skip
#: A profile that moves no channel of any probe by more than this is sRGB under another name.
_SAME_COLOUR = 2


# -- the rules of a model ---------------------------------------------------------------------------------------------


def check(facts: ImageFacts, rules: ImageRules, *, too_small: TooSmall = "upscale") -> tuple[BrokenRule, ...]:
    """Return every rule that an image breaks; nothing if the model takes it as it is.

    Plan, preparation and submit all use this check.

    :param facts: a size of the file that is not known is not checked.
    :param too_small: how a small image would be handled; affects only ``fixable``.
    """
    return tuple(_broken(facts, rules, too_small))


def _broken(facts: ImageFacts, rules: ImageRules, too_small: TooSmall) -> Iterator[BrokenRule]:
    missing = codecs.missing_decoder(facts.format)
    if rules.formats and facts.format not in rules.formats:
        taken = ", ".join(rules.formats)
        message = f"it is {facts.format}, the model takes {taken}{f' ({missing})' if missing else ''}"
        yield BrokenRule("formats", facts.format, taken, message, missing is None)
    if facts.bits > codecs.MAX_BITS:
        message = f"it has {facts.bits} bits a channel, and nothing says which of them is white: export it with 8"
        yield BrokenRule("decodable", facts.bits, codecs.MAX_BITS, message, fixable=False)
    if facts.has_alpha and not rules.alpha:
        message = "it has transparency, the model takes none"
        yield BrokenRule("alpha", "transparency", "none", message, missing is None)
    width, height = facts.displayed_width, facts.displayed_height
    least, most = rules.min_side_px, rules.max_side_px
    fit = fit_size(width, height, rules=rules, too_small=too_small)
    can_be_scaled = not isinstance(fit, str)
    why = "" if can_be_scaled else f", and it cannot be scaled: {fit}"
    if least is not None and (short := min(width, height)) < least:
        message = f"it is {width}x{height} px, a side must have at least {least} px{why}"
        yield BrokenRule("min_side_px", short, least, message, can_be_scaled)
    if most is not None and (long := max(width, height)) > most:
        message = f"it is {width}x{height} px, a side may have at most {most} px{why}"
        yield BrokenRule("max_side_px", long, most, message, can_be_scaled)
    aspect = round(width / height, 4)  # only a person can decide how to crop an image
    is_it = f"it is {width}x{height} px, and width / height ({aspect:g}) must be at"
    if rules.min_aspect is not None and width < rules.min_aspect * height:
        message = f"{is_it} least {rules.min_aspect:g}: crop it"
        yield BrokenRule("min_aspect", aspect, rules.min_aspect, message, fixable=False)
    if rules.max_aspect is not None and width > rules.max_aspect * height:
        message = f"{is_it} most {rules.max_aspect:g}: crop it"
        yield BrokenRule("max_aspect", aspect, rules.max_aspect, message, fixable=False)
    limit = rules.max_size_bytes_exclusive
    if limit is not None and facts.size_bytes is not None and facts.size_bytes >= limit:
        message = f"it has {facts.size_bytes:,} bytes, the model takes less than {limit:,}"
        fixable = facts.size_bytes <= MAX_SOURCE_BYTES
        yield BrokenRule("max_size_bytes_exclusive", facts.size_bytes, limit, message, fixable)


def explain(facts: ImageFacts, broken: Iterable[BrokenRule]) -> str:
    """Return one message about an image and all rules that it breaks, ending with what to do."""
    rules = tuple(broken)
    all_fixable = all(rule.fixable for rule in rules)
    what_now = (
        "Nothing was bought. It can be fixed automatically: prepare it first."
        if all_fixable
        else "Nothing was bought. Use another image, or fix this one by hand."
    )
    return f"{facts.name} would be refused: {'; '.join(rule.message for rule in rules)}. {what_now}"


def fit_size(width: int, height: int, *, rules: ImageRules, too_small: TooSmall = "upscale") -> tuple[int, int] | str:
    """Return the size that an image of this size is scaled to, or why no size fits, in words.

    A size within the rules stays as it is, the limits included. Where scaling is needed the result stays strictly
    inside them, because the model's page states the limits as exclusive and its messages as inclusive.

    :param width: as displayed, in px; so is ``height``.
    :param too_small: ``"upscale"`` (default) enlarges up to 8 times, ``"reject"`` never enlarges.
    """
    short, long = sorted((width, height))
    least, most = rules.min_side_px or 1, rules.max_side_px or _NO_LIMIT_PX
    if least <= short and long <= most:
        return width, height
    low, high = least + 1, most - 1
    if _scaled(short, high, long) < low:
        return f"no size of that aspect has both sides inside {least} to {most} px, crop it"
    if long > most:
        short, long = _scaled(short, high, long), high
    elif too_small == "reject":
        return f"a side is under {least} px, and enlarging is off"
    elif short * MAX_UPSCALE < low:
        return f"too small even to enlarge, {MAX_UPSCALE} times at most, to over {least} px a side"
    else:
        short, long = low, min(_scaled(long, low, short), high)
    return (long, short) if width >= height else (short, long)


def _scaled(value: int, numerator: int, denominator: int) -> int:
    """Scale and round half up, in whole numbers: the same on every machine."""
    return (2 * value * numerator + denominator) // (2 * denominator)


# -- preparation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """An image file that the model takes.

    :param data: the file.
    :param width: displayed width in px.
    :param changes: the changes made, in words; empty if the bytes are those of the source.
    :param notes: remarks about the source, such as a suffix that did not agree with its content.
    """

    data: bytes
    format: str
    width: int
    height: int
    changes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def content_type(self) -> str:
        """The content type of its format."""
        return codecs.CONTENT_TYPES[self.format]


def prepare(
    data: bytes,
    *,
    rules: ImageRules,
    name: str | None = None,
    background: str = "white",
    too_small: TooSmall = "upscale",
) -> PreparedFile:
    """Return an image file that keeps the model's rules, changed as little as possible.

    :param name: how messages call the image; default ``"image"``.
    :param background: the colour behind transparent parts, a name or ``#rrggbb``; default white.
    :param too_small: ``"upscale"`` (default) enlarges an image that is too small, up to 8 times; ``"reject"``
        refuses it.
    :raises UnusableImageError: it breaks a rule that cannot be fixed, or is cut off.
    :raises WanInputError: not an image, or too large to decode.
    """
    colour = parse_background(background)
    facts = inspect(data, name=name)
    broken = check(facts, rules, too_small=too_small)
    if hopeless := tuple(rule for rule in broken if not rule.fixable):
        raise UnusableImageError(explain(facts, hopeless), hopeless)
    # A file that is only too large in bytes may fit without its metadata.
    if _is_plain(facts, rules) and not {rule.rule for rule in broken} - {"max_size_bytes_exclusive"}:
        kept = _keep(data, facts, rules)
        if kept is not None:
            return kept
    fit = fit_size(facts.displayed_width, facts.displayed_height, rules=rules, too_small=too_small)
    assert not isinstance(fit, str)  # then a rule was hopeless
    return _render(data, facts, rules, target=fit, background=colour)


def fits_as_it_is(facts: ImageFacts, rules: ImageRules) -> bool:
    """Return whether, by its header, :func:`prepare` would pass an image through byte for byte.

    An image can be acceptable and still not fit: turned by its EXIF orientation, or with private metadata.
    """
    return _is_plain(facts, rules) and not facts.private and not check(facts, rules)


def _is_plain(facts: ImageFacts, rules: ImageRules) -> bool:
    """Whether nothing but the rules of the model can be a reason to encode the pixels again."""
    return (
        facts.format in codecs.CONTENT_TYPES
        and facts.orientation == 1
        and not facts.is_animated
        and facts.bits == 8
        and facts.mode in (("RGB", "RGBA") if rules.alpha else ("RGB",))
    )


def _keep(data: bytes, facts: ImageFacts, rules: ImageRules) -> PreparedFile | None:
    """Pass the file through, without its private metadata; None if it is too large in bytes, or incomplete."""
    kept = strip_metadata(data, fmt=facts.format)
    if kept is None:
        return None
    stripped, removed = kept
    if not _is_small_enough(stripped, rules):
        return None
    check_whole(stripped, facts)
    changes = (f"removed {', '.join(removed)}",) if removed else ()
    return PreparedFile(stripped, facts.format, facts.width, facts.height, changes, facts.notes)


def _render(
    data: bytes,
    facts: ImageFacts,
    rules: ImageRules,
    *,
    target: tuple[int, int],
    background: tuple[int, int, int],
) -> PreparedFile:
    """Decode, fix and encode once."""
    changes: list[str] = []
    with codecs.decoding(facts.name, facts.format):
        image, icc = _decode_scaled(data, facts, target, changes)
        if facts.orientation != 1:
            changes.append(f"turned upright (orientation {facts.orientation})")
            image = image.transpose(_UPRIGHT[facts.orientation]) if _is_turned_here(facts) else image
        shown = facts.displayed_width, facts.displayed_height
        if shown != target:
            changes.append(f"scaled from {shown[0]}x{shown[1]} to {target[0]}x{target[1]}")
        image, said = to_srgb(image, icc=icc, background=background)
    output, fmt, encoded = _encode_to_fit(image, facts, rules)
    if facts.private:
        said.append(f"removed {', '.join(facts.private)}")
    return PreparedFile(output, fmt, *image.size, (*changes, *said, encoded), facts.notes)


def _decode_scaled(
    data: bytes, facts: ImageFacts, target: tuple[int, int], changes: list[str]
) -> tuple[Image.Image, bytes | None]:
    """Return the first frame at its final size, not yet turned upright, and its ICC profile.

    Scaled before anything else: all later steps then work on a few megapixels, whatever the source has.
    """
    turned = _is_turned_here(facts) and facts.orientation >= 5
    stored_target = (target[1], target[0]) if turned else target
    with codecs.open_image(io.BytesIO(data), facts.format, facts.name) as opened:
        frames = int(getattr(opened, "n_frames", 1))
        if frames > 1:
            changes.append(f"first of {frames} frames")
        if facts.format == "JPEG":
            opened.draft(opened.mode, stored_target)
        opened.load()
        icc = opened.info.get("icc_profile")
        if words := described(opened.mode, facts.bits):
            changes.append(words)
        image = workable(opened)
        if image.size != stored_target:
            image = _at_size(image, stored_target)
        image.info = {}  # or profile, comment and text would be written again
        return image, icc


def _at_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale; or if the decoder came within a pixel of the size (2000 of 4000 px, for 1999), cut that pixel off.

    Resampling every pixel to remove one blurs them all, and takes half of the whole time.
    """
    if all(0 <= has - target <= 1 for has, target in zip(image.size, size, strict=True)):
        return image.crop((0, 0, *size))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _is_turned_here(facts: ImageFacts) -> bool:
    return facts.format not in codecs.DECODED_UPRIGHT


def _encode_to_fit(image: Image.Image, facts: ImageFacts, rules: ImageRules) -> tuple[bytes, str, str]:
    """Encode losslessly if the source was lossless, else as JPEG, in lower quality until it is small enough."""
    for fmt, options, words in _encodings(facts, rules):
        data = codecs.encode(image, fmt, **options)
        if _is_small_enough(data, rules):
            return data, fmt, words
    raise WanInputError(
        f"{facts.name} cannot be written in a format that the model takes ({', '.join(rules.formats)}) with less "
        f"than {rules.max_size_bytes_exclusive} bytes."
    )


def _is_small_enough(data: bytes, rules: ImageRules) -> bool:
    limit = rules.max_size_bytes_exclusive
    return limit is None or len(data) < limit


def _encodings(facts: ImageFacts, rules: ImageRules) -> Iterator[tuple[str, dict[str, Any], str]]:
    formats = rules.formats or tuple(codecs.CONTENT_TYPES)
    if facts.lossless and "PNG" in formats:
        yield "PNG", {}, "encoded as PNG"
    for fmt in ("JPEG", "WEBP"):
        for quality in _JPEG_QUALITIES if fmt in formats else ():
            chroma = {"subsampling": "4:4:4" if quality >= _FULL_CHROMA_FROM else "4:2:0"}
            yield (
                fmt,
                {"quality": quality, **(chroma if fmt == "JPEG" else {})},
                f"encoded as {fmt}, quality {quality}",
            )
    if "PNG" in formats:
        yield "PNG", {}, "encoded as PNG"


# -- colour: any pixels to 8-bit sRGB without alpha, by the ICC profile ----------------------------------------------


def parse_background(background: str) -> tuple[int, int, int]:
    """Read a colour: a name, ``#rrggbb`` or ``rgb(...)``.

    :raises WanInputError: it is not a colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
        if max(red, green, blue) > 255:
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise WanInputError(
            f"background: {background!r} is no colour; use a name such as 'white', or '#rrggbb'."
        ) from None
    return red, green, blue


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
    """Return how pixels of another kind become 8-bit RGB, None if they are that already."""
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
    """Return an image as 8-bit sRGB without alpha, and the changes made, in words.

    :param icc: its ICC profile. An unreadable profile, or one for other kinds of pixels, is ignored,
        and the changes say so.
    :param background: the colour behind transparent parts.
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
