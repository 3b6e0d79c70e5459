# SPDX-License-Identifier: Apache-2.0
"""Which size an image gets: the nearest one of the same aspect that the model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.inputs import ImageRules

TooSmall = Literal["upscale", "reject"]

#: Beyond this an enlarged image is a blur nobody wants to pay a video of; one pixel is not a picture.
MAX_UPSCALE = 8
_NO_LIMIT_PX = 1_000_000


@dataclass(frozen=True, slots=True)
class Fit:
    """The size to scale to, or why there is none.

    :param reason: None where the size fits; else why no size does, in words that follow the image's name.
    """

    width: int
    height: int
    reason: str | None = None


def fit_size(width: int, height: int, *, rules: ImageRules, too_small: TooSmall = "upscale") -> Fit:
    """Return the size that an image of this size is scaled to.

    A size within the rules stays as it is, the limits included. Where scaling is needed the result stays strictly
    inside them, because the model's page states the limits as exclusive and its messages as inclusive.

    :param width: displayed width in px.
    :param height: displayed height in px.
    :param too_small: ``"upscale"`` (default) enlarges up to 8 times, ``"reject"`` never enlarges.
    """
    short, long = sorted((width, height))
    least, most = rules.min_side_px or 1, rules.max_side_px or _NO_LIMIT_PX
    if least <= short and long <= most:
        return Fit(width, height)
    low, high = least + 1, most - 1
    if _scaled(short, high, long) < low:
        return Fit(
            width,
            height,
            f"is {width}x{height} px, and no size of that aspect has both sides inside {least} to "
            f"{most} px: crop it",
        )
    if long > most:
        return _oriented(width, height, _scaled(short, high, long), high)
    if too_small == "reject":
        return Fit(
            width,
            height,
            f"is {width}x{height} px, a side is under {least} px, and enlarging is off",
        )
    if short * MAX_UPSCALE < low:
        return Fit(
            width,
            height,
            f"is {width}x{height} px, too small even to enlarge: {MAX_UPSCALE} times at most, to over "
            f"{least} px a side",
        )
    return _oriented(width, height, low, min(_scaled(long, low, short), high))


def _scaled(value: int, numerator: int, denominator: int) -> int:
    """Scale and round half up, in whole numbers: the same on every machine."""
    return (2 * value * numerator + denominator) // (2 * denominator)


def _oriented(width: int, height: int, short: int, long: int) -> Fit:
    return Fit(long, short) if width >= height else Fit(short, long)
