# SPDX-License-Identifier: Apache-2.0
"""How each image of a batch ended, and the sums of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How one image ended."""

    #: Its video is in the bucket.
    LANDED = "landed"
    #: It was there before; nothing was bought.
    REUSED = "reused"
    #: RunComfy failed to make it, as often as it was tried.
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: It breaks a rule, here or at RunComfy: nothing was bought.
    REFUSED = "refused"
    #: A submit whose answer nobody got: a person has to settle it.
    UNKNOWN = "unknown"
    #: It is bought, and its video could not be put into the bucket; a rerun tries again.
    NOT_LANDED = "not_landed"
    #: Bought or not, it was not finished: a limit, a deadline or an empty wallet came first. A rerun goes on.
    LEFT = "left"

    @property
    def is_there(self) -> bool:
        """Whether the video is in the bucket."""
        return self in (Outcome.LANDED, Outcome.REUSED)

    @property
    def is_failure(self) -> bool:
        """Whether it counts against ``max_failures``."""
        return not self.is_there and self is not Outcome.LEFT


@dataclass(frozen=True, slots=True)
class ImageResult:
    """How one image ended, as a line of the manifest.

    :param image: its address, without signature.
    :param row: where it stands in the source manifest.
    :param uri: of its first video.
    :param size_bytes: of all its videos, where it is known.
    """

    image: str
    outcome: Outcome
    fingerprint: str | None = None
    request_id: str | None = None
    uri: str | None = None
    size_bytes: int | None = None
    cost_usd: float | None = None
    error: str | None = None
    row: str | None = None

    def to_json(self) -> str:
        """Write it as one line of JSON."""
        plain = {**asdict(self), "outcome": str(self.outcome)}
        return json.dumps(plain, ensure_ascii=True, separators=(",", ":"))

    def as_dict(self) -> dict[str, Any]:
        """Give what is set as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ImageResult:
        """Read what :meth:`as_dict` wrote."""
        known: dict[str, Any] = {field.name: plain.get(field.name) for field in fields(cls)}
        known["outcome"] = Outcome(plain["outcome"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many images may fail before the task does.

    :param count: so many; or
    :param share: that share of all images, 0 to 1.
    """

    count: int | None = None
    share: float | None = None

    @classmethod
    def of(cls, given: int | float | str) -> MaxFailures:
        """Read ``5``, ``0.05``, ``"5"`` or ``"5%"``.

        :raises ValueError: it is none of them.
        """
        text = str(given).strip()
        if text.endswith("%"):
            share = float(text[:-1]) / 100
        elif "." in text or "e" in text.lower():
            share = float(text)
        elif int(text) >= 0:
            return cls(count=int(text))
        else:
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError(f"max_failures={given!r} must be a count, or a share between 0 and 1")
        return cls(share=share)

    def allows(self, failures: int, total: int) -> bool:
        """Tell whether so many failures are acceptable."""
        if self.count is not None:
            return failures <= self.count
        return failures <= (self.share or 0.0) * total


def count_outcomes(outcomes: Counter[Outcome]) -> dict[str, int]:
    """Give a count for every outcome, zeros included."""
    return {str(outcome): outcomes[outcome] for outcome in Outcome}
