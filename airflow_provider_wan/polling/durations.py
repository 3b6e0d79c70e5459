# SPDX-License-Identifier: Apache-2.0
"""How long a model takes, learned from the requests that are done. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: How many generations back the estimate remembers: a model that gets slower is noticed.
_MEMORY = 200
_PRIOR_SPREAD = 0.35
_PRIOR_WEIGHT = 4.0
#: Below this spread nearly all end at the same age: one look just after it finds them.
_NARROW = 0.06


@dataclass(slots=True)
class DurationEstimate:
    """Running mean and spread of the logarithm of generation times.

    :param count: how many were seen.
    :param mean: of the logarithm of seconds.
    :param variance: of the same.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def saw(self, duration_s: float) -> None:
        """Take in one more."""
        value = math.log(max(duration_s, 0.01))
        self.count += 1
        weight = 1.0 / min(self.count, _MEMORY)
        delta = value - self.mean
        self.mean += weight * delta
        self.variance = (1 - weight) * (self.variance + weight * delta * delta)

    @property
    def is_known(self) -> bool:
        """Whether there is any experience."""
        return self.count > 0

    @property
    def usual_s(self) -> float:
        """The median, in seconds; call only when known."""
        return math.exp(self.mean)

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm, with a little doubt as long as few were seen."""
        prior = _PRIOR_WEIGHT * _PRIOR_SPREAD**2
        return max(0.01, math.sqrt((self.count * self.variance + prior) / (self.count + _PRIOR_WEIGHT)))

    def first_look_s(self) -> float:
        """Give the age at which a running request is looked at first."""
        sigmas = 1.0 if self.spread < _NARROW else -1.0
        return self.usual_s * math.exp(sigmas * self.spread)

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain JSON values."""
        return {"count": self.count, "mean": round(self.mean, 4), "variance": round(self.variance, 5)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any] | None) -> DurationEstimate:
        """Read what :meth:`as_dict` wrote; nonsense is no experience."""
        try:
            given = plain or {}
            return cls(int(given["count"]), float(given["mean"]), float(given["variance"]))
        except (KeyError, TypeError, ValueError):
            return cls()
