# SPDX-License-Identifier: Apache-2.0
"""What a request costs: one price for all, or a price for each resolution, duration and audio."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The page's base price is for a clip of this length, in seconds.
BASE_SECONDS = 5.0
#: Factors on the base price, by number of lines. None is 1: RunComfy's base is no price that anyone pays.
_BY_LINES = {480: 1.5, 720: 2.5, 768: 2.5, 1080: 5.0, 1440: 8.0, 2160: 12.0}
_NAMED_LINES = {"2K": 1440, "4K": 2160}
_AUDIO_FACTOR = 1.33
_AUDIO_INPUTS = ("audio", "audio_url", "enable_audio", "generate_audio", "sound")
_RESOLUTION = re.compile(r"(\d{3,4})P|([24]K)", re.IGNORECASE)


@dataclass(slots=True)
class Prices:
    """The prices of one sandbox, in millionths of a USD.

    :param base_micro: price of a clip as the model's page states it.
    :param by_inputs: charge by resolution, duration and audio instead of the base price.
    :param charged_micro: charge this for every clip, whatever the page says.
    """

    base_micro: int
    by_inputs: bool = False
    charged_micro: int | None = None

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change prices of later purchases; keys as in :meth:`to_json`.

        :raises KeyError: none of the keys is there.
        :raises ValueError: a value is not a number, is negative, or is not true or false.
        """
        if not {"price_usd", "by_inputs", "charged_usd"} & set(changes):
            raise KeyError("price_usd")
        base, charged = changes.get("price_usd", self.base_micro / 1e6), changes.get("charged_usd")
        by_inputs = changes.get("by_inputs", self.by_inputs)
        if not isinstance(by_inputs, bool):
            raise ValueError("by_inputs must be true or false")
        base_micro = _micro("price_usd", base)
        if "charged_usd" in changes:
            self.charged_micro = None if charged is None else _micro("charged_usd", charged)
        self.base_micro, self.by_inputs = base_micro, by_inputs

    def of(self, model_id: str, inputs: Mapping[str, Any], schema: Mapping[str, Any] | None) -> int:
        """Return what a request costs, in millionths of a USD.

        :param schema: input schema of the model, whose defaults stand in for inputs that are missing.
        """
        if self.charged_micro is not None:
            return self.charged_micro
        if not self.by_inputs:
            return self.base_micro
        properties = (schema or {}).get("properties", {})
        defaults = {name: rules["default"] for name, rules in properties.items() if "default" in rules}
        asked = {**defaults, **{name: value for name, value in inputs.items() if value is not None}}
        factor = _resolution_factor(str(asked.get("resolution") or model_id))
        factor *= _seconds(asked.get("duration")) / BASE_SECONDS
        if any(asked.get(name) for name in _AUDIO_INPUTS):
            factor *= _AUDIO_FACTOR
        return round(self.base_micro * factor)

    def to_json(self) -> dict[str, Any]:
        """Return the prices as the control shows them."""
        charged = None if self.charged_micro is None else self.charged_micro / 1e6
        return {"price_usd": self.base_micro / 1e6, "by_inputs": self.by_inputs, "charged_usd": charged}


def _micro(name: str, value: Any) -> int:
    usd = float(value)
    if not 0 <= usd < 1e9:
        raise ValueError(f"{name} must be 0 or more")
    return round(usd * 1e6)


def _resolution_factor(text: str) -> float:
    """Return the factor of a resolution, or of a model id that has the resolution in its name."""
    found = _RESOLUTION.search(text)
    if found is None:
        return _BY_LINES[480]
    lines = _NAMED_LINES[found[2].upper()] if found[2] else int(found[1])
    return next((factor for known, factor in _BY_LINES.items() if lines <= known), _BY_LINES[2160])


def _seconds(value: Any) -> float:
    """Return a duration, which some models take as text, or the base where none is given (``auto``)."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        return BASE_SECONDS
