# SPDX-License-Identifier: Apache-2.0
"""The clip that a request asks for: its size, length, sound and frame rate, whatever the model calls them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Length of a clip whose model has no length, and of the base price, in seconds.
BASE_SECONDS = 5.0
_NAMED_LINES = {"2k": 1440, "4k": 2160, "standard": 720, "pro": 1080}
_RESOLUTION = re.compile(r"(\d{3,4})p|\b(2k|4k|standard|pro)\b", re.IGNORECASE)
_AUDIO_INPUTS = ("audio", "audio_url", "enable_audio", "generate_audio", "sound")
_ASPECT = re.compile(r"(\d+):(\d+)\Z")


@dataclass(frozen=True, slots=True)
class Clip:
    """The clip that a request asks for.

    :param lines: 480, 720, 1080, ...: the class of its size.
    :param seconds: its length.
    :param has_audio: whether it has a sound track.
    :param aspect: width to height; None for that of the image.
    :param frames_per_second: its frame rate.
    """

    lines: int = 480
    seconds: float = BASE_SECONDS
    has_audio: bool = False
    aspect: float | None = None
    frames_per_second: int = 30


def clip_of(model_id: str, inputs: Mapping[str, Any], schema: Mapping[str, Any] | None) -> Clip:
    """Read the clip from the inputs, then the defaults of the schema, then the model's id.

    :param schema: the model's input schema, or None if it takes any input.
    """
    fields = (schema or {}).get("properties", {})
    asked = {name: rules["default"] for name, rules in fields.items() if "default" in rules}
    asked |= {name: value for name, value in inputs.items() if value is not None}
    aspect = _ASPECT.match(str(asked.get("aspect_ratio")))
    return Clip(
        lines=_lines(str(asked.get("resolution") or model_id)),
        seconds=_number(asked.get("duration"), BASE_SECONDS),
        has_audio=any(asked.get(name) for name in _AUDIO_INPUTS),
        aspect=int(aspect[1]) / int(aspect[2]) if aspect else None,
        frames_per_second=round(_number(asked.get("fps"), 30)),
    )


def _lines(text: str) -> int:
    """Return the lines of a resolution, or of a model id that has the resolution or a tier in its name."""
    found = _RESOLUTION.search(text)
    if found is None:
        return 480
    return _NAMED_LINES[found[2].lower()] if found[2] else int(found[1])


def _number(value: Any, default: float) -> float:
    """Return a number that some models take as text; the default for none, and for words such as ``auto``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return default
    return number if 0 < number < 1000 else default
