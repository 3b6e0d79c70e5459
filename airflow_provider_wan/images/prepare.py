# SPDX-License-Identifier: Apache-2.0
"""Make an image acceptable to a model with the least harm to it.

In order of harm: pass it through byte for byte; leave private metadata out of the file; decode, mend and encode once.
The same bytes in give the same bytes out.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from PIL import Image

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images import codecs
from airflow_provider_wan.images.check import MAX_SOURCE_BYTES
from airflow_provider_wan.images.colour import described, parse_background, to_srgb, workable
from airflow_provider_wan.images.facts import ImageFacts
from airflow_provider_wan.images.inspect import inspect
from airflow_provider_wan.images.sizes import TooSmall, fit_size
from airflow_provider_wan.images.strip import strip_metadata

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.inputs import ImageRules

PathOrBytes = bytes | str | os.PathLike[str]

#: Goes into the names of staged copies: raised when the same source comes out differently.
RECIPE_VERSION = 1

_JPEG_QUALITIES = (95, 90, 85, 80, 70, 60, 50)
_FULL_CHROMA_FROM = 90
_MOST_BITS = 16
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that the model takes.

    :param data: the file.
    :param sha256: of ``data``, in hex; names the staged copy.
    :param width: displayed width in px.
    :param changes: what was done, in words; empty where the bytes are those of the source.
    :param notes: remarks about the source, such as a suffix that did not agree with its content.
    """

    name: str
    data: bytes
    sha256: str
    width: int
    height: int
    size_bytes: int
    format: str
    content_type: str
    changes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_unchanged(self) -> bool:
        """Whether the bytes are those of the source."""
        return not self.changes


def prepare(
    source: PathOrBytes,
    *,
    rules: ImageRules,
    name: str | None = None,
    background: str | tuple[int, int, int] = "white",
    too_small: TooSmall = "upscale",
) -> PreparedImage:
    """Return an image that keeps the model's rules, changed as little as possible.

    :param source: the file's bytes, or a path.
    :param rules: the model's image rules.
    :param name: how messages call the image; default the path, else ``"image"``.
    :param background: what transparent parts are put on; a colour name or ``#rrggbb``, default white.
    :param too_small: ``"upscale"`` (default) enlarges an image that is too small, up to 8 times; ``"reject"``
        refuses it.
    :raises WanInputError: not an image, cut off, too large to decode, of an aspect that fits no size, too small,
        or HEIC without the extra ``[heif]``.
    """
    colour = parse_background(background)
    facts = inspect(source, name=name)
    if facts.size_bytes is not None and facts.size_bytes > MAX_SOURCE_BYTES:
        raise WanInputError(
            f"{facts.name} has {facts.size_bytes:,} bytes; more than {MAX_SOURCE_BYTES:,} are not loaded."
        )
    fit = fit_size(facts.displayed_width, facts.displayed_height, rules=rules, too_small=too_small)
    if fit.reason:
        raise WanInputError(f"{facts.name} {fit.reason}.")
    target = fit.width, fit.height
    if _pixels_fit(facts, rules) and target == (facts.width, facts.height):
        kept = _keep(source, facts, rules)
        if kept is not None:
            return kept
    return _render(source, facts, rules, target=target, background=colour)


def fits_as_it_is(facts: ImageFacts, rules: ImageRules) -> bool:
    """Tell from the header whether :func:`prepare` would pass an image through byte for byte.

    An image can be acceptable and still not fit: turned by its EXIF orientation, or with private metadata.
    """
    fit = fit_size(facts.displayed_width, facts.displayed_height, rules=rules)
    limit = rules.max_size_bytes_exclusive
    return (
        _pixels_fit(facts, rules)
        and not facts.has_private_metadata
        and fit.reason is None
        and (fit.width, fit.height) == (facts.width, facts.height)
        and (limit is None or facts.size_bytes is None or facts.size_bytes < limit)
    )


def _pixels_fit(facts: ImageFacts, rules: ImageRules) -> bool:
    """Whether the pixels can stay as they are stored."""
    return (
        (not rules.formats or facts.format in rules.formats)
        and facts.format in codecs.CONTENT_TYPES
        and facts.orientation == 1
        and not facts.is_animated
        and facts.bits == 8
        and facts.mode in (("RGB", "RGBA") if rules.alpha else ("RGB",))
        and (rules.alpha or not facts.has_alpha)
    )


def _keep(source: PathOrBytes, facts: ImageFacts, rules: ImageRules) -> PreparedImage | None:
    """Pass the file through, without its private metadata; None where it is too large in bytes."""
    data = _all_bytes(source)
    stripped, removed = strip_metadata(data, fmt=facts.format, name=facts.name)
    if not _is_small_enough(stripped, rules):
        return None
    codecs.check_decodes(stripped, facts)
    changes = (f"removed {', '.join(removed)}",) if removed else ()
    return _prepared(facts, stripped, facts.format, (facts.width, facts.height), changes)


def _render(
    source: PathOrBytes,
    facts: ImageFacts,
    rules: ImageRules,
    *,
    target: tuple[int, int],
    background: tuple[int, int, int],
) -> PreparedImage:
    """Decode, mend and encode once."""
    changes: list[str] = []
    with codecs.decoding(facts.name):
        image, icc = _decode_scaled(source, facts, target, changes)
        if facts.orientation != 1:
            changes.append(f"turned upright (orientation {facts.orientation})")
            image = image.transpose(_UPRIGHT[facts.orientation]) if _is_turned_here(facts) else image
        shown = facts.displayed_width, facts.displayed_height
        if shown != target:
            changes.append(f"scaled from {shown[0]}x{shown[1]} to {target[0]}x{target[1]}")
        image, said = to_srgb(image, icc=icc, background=background)
    data, fmt, encoded = _encode_to_fit(image, facts, rules)
    if facts.private:
        said.append(f"removed {', '.join(facts.private)}")
    return _prepared(facts, data, fmt, image.size, (*changes, *said, encoded))


def _decode_scaled(
    source: PathOrBytes, facts: ImageFacts, target: tuple[int, int], changes: list[str]
) -> tuple[Image.Image, bytes | None]:
    """Return the first frame at its final size, not yet turned upright, and its ICC profile.

    Scaled before anything else: all later steps then work on a few megapixels, whatever the source has.
    """
    if facts.bits > _MOST_BITS:
        raise WanInputError(
            f"{facts.name} has {facts.bits} bits a channel, and nothing says which of them is white. Export it with 8."
        )
    turned = _is_turned_here(facts) and facts.orientation >= 5
    stored_target = (target[1], target[0]) if turned else target
    with _file(source) as file, codecs.open_image(file, facts) as opened:
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
    """Scale; or where the decoder came within a pixel of the size (2000 of 4000 px, for 1999), cut that pixel off.

    Resampling every pixel to get rid of one blurs them all, and takes half the time of everything.
    """
    if all(0 <= has - wanted <= 1 for has, wanted in zip(image.size, size, strict=True)):
        return image.crop((0, 0, *size))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _is_turned_here(facts: ImageFacts) -> bool:
    return facts.format not in codecs.DECODED_UPRIGHT


def _encode_to_fit(image: Image.Image, facts: ImageFacts, rules: ImageRules) -> tuple[bytes, str, str]:
    """Encode without loss what came without loss, else as JPEG; in lower quality until it is small enough."""
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


def _encodings(
    facts: ImageFacts, rules: ImageRules
) -> Iterator[tuple[str, dict[str, int | str | bool], str]]:
    formats = rules.formats or tuple(codecs.CONTENT_TYPES)
    if facts.lossless and "PNG" in formats:
        yield "PNG", {}, "encoded as PNG"
    for fmt in ("JPEG", "WEBP"):
        if fmt in formats:
            for quality in _JPEG_QUALITIES:
                chroma = "4:4:4" if quality >= _FULL_CHROMA_FROM else "4:2:0"
                options: dict[str, int | str | bool] = {"quality": quality}
                if fmt == "JPEG":
                    options["subsampling"] = chroma
                yield fmt, options, f"encoded as {fmt}, quality {quality}"
    if "PNG" in formats:
        yield "PNG", {}, "encoded as PNG"


def _prepared(
    facts: ImageFacts, data: bytes, fmt: str, size: tuple[int, int], changes: tuple[str, ...]
) -> PreparedImage:
    return PreparedImage(
        name=facts.name,
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        width=size[0],
        height=size[1],
        size_bytes=len(data),
        format=fmt,
        content_type=codecs.CONTENT_TYPES[fmt],
        changes=changes,
        notes=facts.notes,
    )


def _file(source: PathOrBytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _all_bytes(source: PathOrBytes) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()
