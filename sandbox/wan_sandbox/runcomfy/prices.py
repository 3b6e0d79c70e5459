# SPDX-License-Identifier: Apache-2.0
"""The cost of a request: the base price of the page, or a price for each resolution, duration and audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wan_sandbox.runcomfy.catalog import Model
from wan_sandbox.runcomfy.clip import BASE_SECONDS, Clip

#: Factors on the base price, by number of lines. None of them is 1: at RunComfy the base is never the actual price.
_BY_LINES = {480: 1.5, 720: 2.5, 768: 2.5, 1080: 5.0, 1440: 8.0, 2160: 12.0}
_AUDIO_FACTOR = 1.33


@dataclass(slots=True)
class Prices:
    """The prices of one sandbox, in millionths of a USD.

    :param base_micro: base price of a clip of Wan 2.2, from which those of the other models follow.
    :param by_inputs: whether to charge by resolution, duration and audio instead of the base price; None:
        as each model does.
    :param charged_micro: charge this for every clip, whatever the page says.
    :param unit: of models that have no price unit of their own: ``output`` or ``second``.
    """

    base_micro: int
    by_inputs: bool | None = None
    charged_micro: int | None = None
    unit: str = "output"

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change prices of later purchases; keys as in :meth:`to_json`.

        :raises KeyError: none of the keys is there.
        :raises ValueError: a value is not a number, is negative, or is not true, false or null.
        """
        if not {"price_usd", "by_inputs", "charged_usd"} & set(changes):
            raise KeyError("price_usd")
        base, charged = changes.get("price_usd", self.base_micro / 1e6), changes.get("charged_usd")
        by_inputs = changes.get("by_inputs", self.by_inputs)
        if by_inputs is not None and not isinstance(by_inputs, bool):
            raise ValueError("by_inputs must be true, false or null")
        base_micro = _micro("price_usd", base)
        if "charged_usd" in changes:
            self.charged_micro = None if charged is None else _micro("charged_usd", charged)
        self.base_micro, self.by_inputs = base_micro, by_inputs

    def base_usd(self, model: Model) -> float:
        """Return the base price of a clip of five seconds of a model, in USD."""
        return self.base_micro * model.price_factor / 1e6

    def is_by_inputs(self, model: Model) -> bool:
        """Return whether the inputs of a request for this model decide what is charged."""
        return model.price_by_inputs if self.by_inputs is None else self.by_inputs

    def of(self, model: Model, clip: Clip) -> int:
        """Return what a clip costs, in millionths of a USD."""
        if self.charged_micro is not None:
            return self.charged_micro
        base_micro = self.base_micro * model.price_factor
        length = clip.seconds / BASE_SECONDS
        if not self.is_by_inputs(model):
            return round(base_micro * (length if (model.price_unit or self.unit) == "second" else 1))
        factor = next((known for lines, known in _BY_LINES.items() if clip.lines <= lines), _BY_LINES[2160])
        return round(base_micro * factor * length * (_AUDIO_FACTOR if clip.has_audio else 1))

    def to_json(self) -> dict[str, Any]:
        """Return the prices as the control shows them."""
        charged = None if self.charged_micro is None else self.charged_micro / 1e6
        return {"price_usd": self.base_micro / 1e6, "by_inputs": self.by_inputs, "charged_usd": charged}


def _micro(name: str, value: Any) -> int:
    usd = float(value)
    if not 0 <= usd < 1e9:
        raise ValueError(f"{name} must be 0 or more")
    return round(usd * 1e6)
