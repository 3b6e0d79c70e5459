# SPDX-License-Identifier: Apache-2.0
"""Find every rule of a model that an image breaks, and the size it would be scaled to, before any purchase.

The rules come from the model's schema, see :class:`~airflow_provider_wan.model_api.schema.ImageRules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from airflow_provider_wan.images import codecs
from airflow_provider_wan.images.codecs import BrokenRule, UnusableImageError
from airflow_provider_wan.images.inspect import ImageFacts, check_whole, inspect
from airflow_provider_wan.images.readers import MAX_SOURCE_BYTES, ImageReader, WebReader

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.schema import ImageRules

TooSmall = Literal["upscale", "reject"]

#: An image enlarged by more is too blurred for a useful video.
MAX_UPSCALE = 8
_NO_LIMIT_PX = 1_000_000


def check(facts: ImageFacts, rules: ImageRules, *, too_small: TooSmall = "upscale") -> tuple[BrokenRule, ...]:
    """Return every rule that an image breaks; nothing if the model takes it as it is.

    Plan, preparation and submit all use this check.

    :param facts: from :func:`~airflow_provider_wan.images.inspect.inspect`. A size of the file that is not known is
        not checked.
    :param rules: the model's image rules.
    :param too_small: how a small image would be handled; affects only ``fixable``.
    """
    return tuple(_broken(facts, rules, too_small))


def _broken(facts: ImageFacts, rules: ImageRules, too_small: TooSmall) -> Iterator[BrokenRule]:
    missing = codecs.missing_decoder(facts.format)
    if rules.formats and facts.format not in rules.formats:
        taken = ", ".join(rules.formats)
        hint = f" ({missing})" if missing else ""
        message = f"it is {facts.format}, the model takes {taken}{hint}"
        yield BrokenRule("formats", facts.format, taken, message, missing is None)
    if facts.bits > codecs.MAX_BITS:
        message = (
            f"it has {facts.bits} bits a channel, and nothing says which of them is white: export it with 8"
        )
        yield BrokenRule("decodable", facts.bits, codecs.MAX_BITS, message, fixable=False)
    if facts.has_alpha and not rules.alpha:
        message = "it has transparency, the model takes none"
        yield BrokenRule("alpha", "transparency", "none", message, missing is None)
    yield from _broken_sides(facts, rules, too_small)
    yield from _broken_aspect(facts, rules)
    limit = rules.max_size_bytes_exclusive
    if limit is not None and facts.size_bytes is not None and facts.size_bytes >= limit:
        message = f"it has {facts.size_bytes:,} bytes, the model takes less than {limit:,}"
        fixable = facts.size_bytes <= MAX_SOURCE_BYTES
        yield BrokenRule("max_size_bytes_exclusive", facts.size_bytes, limit, message, fixable)


def _broken_sides(facts: ImageFacts, rules: ImageRules, too_small: TooSmall) -> Iterator[BrokenRule]:
    width, height = facts.displayed_width, facts.displayed_height
    short, long = min(width, height), max(width, height)
    reason = fit_size(width, height, rules=rules, too_small=too_small).reason
    why = f", and it cannot be scaled: {reason}" if reason else ""
    if rules.min_side_px is not None and short < rules.min_side_px:
        message = f"it is {width}x{height} px, a side must have at least {rules.min_side_px} px{why}"
        yield BrokenRule("min_side_px", short, rules.min_side_px, message, reason is None)
    if rules.max_side_px is not None and long > rules.max_side_px:
        message = f"it is {width}x{height} px, a side may have at most {rules.max_side_px} px{why}"
        yield BrokenRule("max_side_px", long, rules.max_side_px, message, reason is None)


def _broken_aspect(facts: ImageFacts, rules: ImageRules) -> Iterator[BrokenRule]:
    """Yield the broken rules about width / height: only a person can decide how to crop an image."""
    width, height = facts.displayed_width, facts.displayed_height
    aspect = round(width / height, 4)
    is_it = f"it is {width}x{height} px, and width / height ({aspect:g}) must be at"
    if rules.min_aspect is not None and width < rules.min_aspect * height:
        message = f"{is_it} least {rules.min_aspect:g}: crop it"
        yield BrokenRule("min_aspect", aspect, rules.min_aspect, message, fixable=False)
    if rules.max_aspect is not None and width > rules.max_aspect * height:
        message = f"{is_it} most {rules.max_aspect:g}: crop it"
        yield BrokenRule("max_aspect", aspect, rules.max_aspect, message, fixable=False)


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


def check_sent_as_it_is(
    reader: ImageReader, rules: ImageRules, *, too_small: TooSmall = "upscale"
) -> ImageFacts:
    """Refuse an image that is sent as it is and that the model would refuse, or that is cut off.

    It is read once: whole, or only its header if its size alone is too large.

    :raises UnusableImageError: the model would refuse it.
    """
    limit = rules.max_size_bytes_exclusive
    if limit is not None and reader.size_bytes is not None and reader.size_bytes >= limit:
        facts, data = inspect(reader), None
    else:
        data = reader.read_all()
        facts = inspect(data, name=reader.address)
    broken = check(facts, rules, too_small=too_small)
    if broken:
        hint = ' staging="gs://bucket/prefix" does it.' if all(rule.fixable for rule in broken) else ""
        raise UnusableImageError(explain(facts, broken) + hint, broken)
    if data is not None:
        check_whole(data, facts)
    return facts


def check_public_image(url: str, rules: ImageRules, *, allow_private: bool) -> None:
    """Refuse an image behind a public address that the model would refuse.

    :raises WanInputError: the model would refuse it, or it cannot be read anonymously.
    :raises WanDownloadError: it cannot be read now.
    """
    if url.startswith(("http://", "https://")):
        check_sent_as_it_is(WebReader(url, allow_private=allow_private), rules)


@dataclass(frozen=True, slots=True)
class Fit:
    """The size to scale to, or the reason why no size fits.

    :param reason: None where the size fits; else why no size does.
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
        reason = f"no size of that aspect has both sides inside {least} to {most} px, crop it"
        return Fit(width, height, reason)
    if long > most:
        return _oriented(width, height, _scaled(short, high, long), high)
    if too_small == "reject":
        return Fit(width, height, f"a side is under {least} px, and enlarging is off")
    if short * MAX_UPSCALE < low:
        reason = f"too small even to enlarge, {MAX_UPSCALE} times at most, to over {least} px a side"
        return Fit(width, height, reason)
    return _oriented(width, height, low, min(_scaled(long, low, short), high))


def _scaled(value: int, numerator: int, denominator: int) -> int:
    """Scale and round half up, in whole numbers: the same on every machine."""
    return (2 * value * numerator + denominator) // (2 * denominator)


def _oriented(width: int, height: int, short: int, long: int) -> Fit:
    return Fit(long, short) if width >= height else Fit(short, long)
