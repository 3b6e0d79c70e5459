# SPDX-License-Identifier: Apache-2.0
"""Find every rule of a model that an image breaks, before anything is paid.

The rules themselves stand in the model's schema file, see
:func:`~airflow_provider_wan.model_api.inputs.image_rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_wan.images import codecs
from airflow_provider_wan.images.facts import ImageFacts
from airflow_provider_wan.images.sizes import TooSmall, fit_size

if TYPE_CHECKING:
    from airflow_provider_wan.model_api.inputs import ImageRules

#: A source larger than this is not loaded to be prepared.
MAX_SOURCE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One rule that an image breaks.

    :param rule: the rule's name in the model's schema file: ``formats``, ``alpha``, ``min_side_px``,
        ``max_side_px`` or ``max_size_bytes_exclusive``.
    :param value: what the image has.
    :param limit: what the rule allows.
    :param message: both in a sentence, without the image's name.
    :param fixable: whether :func:`~airflow_provider_wan.images.prepare.prepare` can mend it.
    """

    rule: str
    value: str | int
    limit: str | int
    message: str
    fixable: bool


def check(facts: ImageFacts, rules: ImageRules, *, too_small: TooSmall = "upscale") -> tuple[BrokenRule, ...]:
    """Return every rule that an image breaks; nothing where the model takes it as it is.

    :param facts: from :func:`~airflow_provider_wan.images.inspect.inspect`. Where the size of the file is not
        known, its rule is not checked.
    :param rules: the model's image rules.
    :param too_small: what would be done with a small image; decides only ``fixable``.
    """
    return tuple(_broken(facts, rules, too_small))


def _broken(facts: ImageFacts, rules: ImageRules, too_small: TooSmall) -> Iterator[BrokenRule]:
    missing = codecs.missing_decoder(facts.format)
    if rules.formats and facts.format not in rules.formats:
        taken = ", ".join(rules.formats)
        hint = f" ({missing})" if missing else ""
        message = f"it is {facts.format}, the model takes {taken}{hint}"
        yield BrokenRule("formats", facts.format, taken, message, missing is None)
    if facts.has_alpha and not rules.alpha:
        message = "it has transparency, the model takes none"
        yield BrokenRule("alpha", "transparency", "none", message, missing is None)
    yield from _broken_sides(facts, rules, too_small)
    limit = rules.max_size_bytes_exclusive
    if limit is not None and facts.size_bytes is not None and facts.size_bytes >= limit:
        message = f"it has {facts.size_bytes:,} bytes, the model takes less than {limit:,}"
        fixable = facts.size_bytes <= MAX_SOURCE_BYTES
        yield BrokenRule("max_size_bytes_exclusive", facts.size_bytes, limit, message, fixable)


def _broken_sides(facts: ImageFacts, rules: ImageRules, too_small: TooSmall) -> Iterator[BrokenRule]:
    width, height = facts.displayed_width, facts.displayed_height
    short, long = min(width, height), max(width, height)
    reason = fit_size(width, height, rules=rules, too_small=too_small).reason
    why = f", and cannot be scaled: it {reason}" if reason else ""
    if rules.min_side_px is not None and short < rules.min_side_px:
        message = f"it is {width}x{height} px, a side must have at least {rules.min_side_px} px{why}"
        yield BrokenRule("min_side_px", short, rules.min_side_px, message, reason is None)
    if rules.max_side_px is not None and long > rules.max_side_px:
        message = f"it is {width}x{height} px, a side may have at most {rules.max_side_px} px{why}"
        yield BrokenRule("max_side_px", long, rules.max_side_px, message, reason is None)


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
