# SPDX-License-Identifier: Apache-2.0
"""How each image of a batch ends, and the figures while it runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from airflow_provider_wan.durable.record import Record


class Outcome(StrEnum):
    """How one image ended."""

    #: Its video is in the bucket.
    LANDED = "landed"
    #: The video was there before; nothing was bought.
    REUSED = "reused"
    #: RunComfy failed to generate it, on every try.
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: It breaks a rule, here or at RunComfy: nothing was bought.
    REFUSED = "refused"
    #: The answer to its submit was lost: a person has to settle it.
    UNKNOWN = "unknown"
    #: It was paid for, and its video could not be written to the bucket; a rerun tries again.
    NOT_LANDED = "not_landed"
    #: It was paid for and succeeded without a video, as after content moderation; never bought again automatically.
    NO_OUTPUT = "no_output"
    #: A check found something wrong with its video, which is in quarantine.
    REJECTED = "rejected"
    #: Not finished, bought or not: a limit, a deadline or an empty account came first. A rerun continues.
    LEFT = "left"

    @property
    def is_there(self) -> bool:
        """Whether the video is in the bucket."""
        return self in (Outcome.LANDED, Outcome.REUSED)

    @property
    def is_failure(self) -> bool:
        """Whether it counts against ``max_failures``."""
        return not self.is_there and self not in (Outcome.LEFT, Outcome.REJECTED)


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of one image: a line of the manifest.

    :param image: the image's address, without its signature.
    :param row: the position in the source manifest.
    :param uri: of the first video.
    :param size_bytes: of all videos of the request, where known.
    :param created_at: when RunComfy took the request, by its clock; known of what this batch landed.
    :param finished_at: when it finished, by the same clock.
    :param takes: the results of the rejected takes before this one, oldest first, as JSON values.
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
    verdict: str | None = None
    reasons: tuple[str, ...] | None = None
    created_at: str | None = None
    finished_at: str | None = None
    takes: tuple[Mapping[str, Any], ...] | None = None

    @property
    def cost_may_follow(self) -> bool:
        """Whether its request succeeded, so that its cost is known, or appears late."""
        return self.outcome.is_there or self.outcome is Outcome.REJECTED

    @property
    def is_usable(self) -> bool:
        """Whether its video is in the bucket, and no check found something wrong with it."""
        return self.outcome.is_there and self.verdict != "bad"

    def to_json(self) -> str:
        """Return the result as one line of JSON."""
        plain = {**asdict(self), "outcome": str(self.outcome)}
        return json.dumps(plain, ensure_ascii=True, separators=(",", ":"))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are set as plain JSON values."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ImageResult:
        """Read what :meth:`as_dict` returned."""
        known: dict[str, Any] = {field.name: plain.get(field.name) for field in fields(cls)}
        known["outcome"] = Outcome(plain["outcome"])
        for name in ("reasons", "takes"):
            known[name] = None if known[name] is None else tuple(known[name])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many images may fail before the task fails: a count, or a share of all images from 0 to 1."""

    count: int | None = None
    share: float | None = None

    @classmethod
    def of(cls, given: int | float | str) -> MaxFailures:
        """Read ``5``, ``0.05``, ``"5"`` or ``"5%"``.

        :raises ValueError: it has another form.
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
        """Return whether this many failures are acceptable."""
        if self.count is not None:
            return failures <= self.count
        return failures <= (self.share or 0.0) * total


# -- while it runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is.

    :param done: videos in the bucket, of which ``before`` were there when this try began.
    :param failed: images that ended without a video.
    :param running: requests estimated to run, while ``queued`` wait at RunComfy.
    :param ready: finished requests that are about to land.
    :param to_submit: images without a request so far.
    :param elapsed_s: since the batch began.
    :param bad: of the videos in the bucket, those with which a check found something wrong.
    :param rejected: videos in quarantine.
    :param usable: good videos that this task instance bought.
    :param further_takes: takes after a rejected one, bought or about to be.
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
    bad: int = 0
    rejected: int = 0
    usable: int = 0
    further_takes: int = 0

    @property
    def videos_a_minute(self) -> float:
        """New videos a minute since the batch began."""
        return 60.0 * (self.done - self.before) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def usable_usd(self) -> float | None:
        """The whole cost divided by the usable videos, in USD; None without a usable video."""
        return round(self.cost_usd / self.usable, 6) if self.usable and self.cost_usd else None

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at this rate, in seconds; None while the rate is 0."""
        rest = self.running + self.queued + self.ready + self.to_submit
        if not rest:
            return 0.0
        return 60.0 * rest / self.videos_a_minute if self.videos_a_minute > 0 else None

    def line(self) -> str:
        """Return the figures as one line for the log."""
        parts = [f"{self.done:,} of {self.total:,} done"]
        if self.before:
            parts[0] += f" ({self.before:,} were there)"
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.bad:
            parts.append(f"{self.bad:,} bad")
        if self.rejected:
            parts.append(f"{self.rejected:,} rejected")
        if self.further_takes:
            parts.append(f"{self.further_takes:,} rejected before and bought again")
        parts.append(f"{self.running:,} running, {self.queued:,} queued, {self.to_submit:,} to submit")
        if self.ready:
            parts.append(f"{self.ready:,} to land")
        parts.append(f"{self.videos_a_minute:.1f} videos/min")
        if self.cost_usd:
            each = f", {self.usable_usd:.3f} USD for each usable video" if self.usable_usd else ""
            parts.append(f"{'' if self.cost_is_exact else 'about '}{self.cost_usd:.2f} USD{each}")
        if self.left_s:
            parts.append(f"about {_duration(self.left_s)} left")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        left_s = self.left_s
        plain = asdict(self) | {"elapsed_s": round(self.elapsed_s, 1), "cost_usd": round(self.cost_usd, 6)}
        return plain | {
            "videos_a_minute": round(self.videos_a_minute, 2),
            "left_s": None if left_s is None else round(left_s),
            "cost_per_usable_usd": self.usable_usd,
        }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, slots=True)
class Landed:
    """A landing that succeeded.

    :param took_s: from the start of the landing to the verified video in the bucket.
    :param is_first_seen: whether no task had recorded the success of the request before.
    :param running_since: when the request started to run, in unix seconds; None if not known.
    """

    record: Record
    took_s: float
    is_first_seen: bool = True
    running_since: float | None = None


def count_outcomes(outcomes: Counter[Outcome]) -> dict[str, int]:
    """Return a count for every outcome, zeros included."""
    return {str(outcome): outcomes[outcome] for outcome in Outcome}
