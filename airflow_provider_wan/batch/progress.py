# SPDX-License-Identifier: Apache-2.0
"""How far a batch is, as a line for the log and as figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is.

    :param done: videos in the bucket; ``before`` of them were there when this try began.
    :param failed: images that ended without a video.
    :param running: requests that are believed to run; ``queued``: to wait at RunComfy.
    :param ready: requests that are over and about to be landed.
    :param to_submit: images that nothing was bought for yet.
    :param elapsed_s: since the batch began.
    """

    total: int
    done: int
    before: int
    failed: int
    running: int
    queued: int
    ready: int
    to_submit: int
    cost_usd: float
    cost_is_exact: bool
    elapsed_s: float

    @property
    def videos_a_minute(self) -> float:
        """New videos a minute since it began."""
        return 60.0 * (self.done - self.before) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at this pace; None as long as there is none."""
        rest = self.running + self.queued + self.ready + self.to_submit
        if not rest:
            return 0.0
        return 60.0 * rest / self.videos_a_minute if self.videos_a_minute > 0 else None

    def line(self) -> str:
        """Write it for the log."""
        parts = [f"{self.done:,} of {self.total:,} done"]
        if self.before:
            parts[0] += f" ({self.before:,} were there)"
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        parts.append(f"{self.running:,} running, {self.queued:,} queued, {self.to_submit:,} to submit")
        if self.ready:
            parts.append(f"{self.ready:,} to land")
        parts.append(f"{self.videos_a_minute:.1f} videos/min")
        if self.cost_usd:
            parts.append(f"{'' if self.cost_is_exact else 'about '}{self.cost_usd:.2f} USD")
        if self.left_s:
            parts.append(f"about {_duration(self.left_s)} left")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Give the same figures as plain JSON values."""
        left_s = self.left_s
        plain = asdict(self) | {"elapsed_s": round(self.elapsed_s, 1), "cost_usd": round(self.cost_usd, 6)}
        return plain | {
            "videos_a_minute": round(self.videos_a_minute, 2),
            "left_s": None if left_s is None else round(left_s),
        }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
