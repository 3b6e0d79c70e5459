# SPDX-License-Identifier: Apache-2.0
"""Checks of a landed video: whether it is worth its price, judged by its facts and by what was asked for.

A verdict does not depend on what happens to a bad video: it is stored with the video, and a later task that handles
bad videos otherwise uses it without checking again. The limits are wide on purpose: a check reports what is surely
wrong, and no video that a person would accept.

Operators import this module when a Dag is parsed, so it imports nothing that is only needed in a task.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow_provider_wan.exceptions import WanBadVideoError

if TYPE_CHECKING:
    from airflow_provider_wan.durable.record import Record
    from airflow_provider_wan.landing.probe import VideoFacts

OnBadVideo = Literal["report", "reject", "fail"]
#: A check of the user's: gets the path of the file, the facts and the record (both as JSON values), and returns None
#: or True for a good video, and False or the reason for a bad one.
UserCheck = Callable[[str, Mapping[str, Any], Mapping[str, Any]], "str | bool | None"]

#: A clip may be a little shorter than asked: models count frames.
_LEAST_PART_OF_DURATION = 0.85
#: What "480P" means differs: 480 lines of any aspect ratio, or the pixels of 4:3 or 16:9. In squares of the number.
_LEAST_AREA, _MOST_AREA = 0.8, 3.6
_MOST_BLACK, _MOST_STILL = 0.9, 0.9
#: Unrelated photos have up to 0.2, see ``likeness``.
_LEAST_LIKENESS = 0.25
_RESOLUTION = re.compile(r"(?:^|/)(\d{3,4})[pP]$|(?:^|/)([24])[kK]$")
_LINES_OF_K = {"2": 1440, "4": 2160}
_AUDIO_INPUT = re.compile(r"^((enable|generate|with|include)_)?(audio|sound)$")
#: The metadata of an object may have 8 KiB in all.
DETAIL_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a video is good.

    :param reasons: the reason of each failed check, by its name.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return {
            "status": "bad" if self.reasons else "good",
            "reasons": list(self.reasons),
            "detail": "; ".join(self.reasons.values())[:DETAIL_CHARACTERS],
        }


# -- the built-in checks ---------------------------------------------------------------------------------------


def _short(facts: VideoFacts, record: Record) -> str | None:
    from airflow_provider_wan.model_api.inputs import clip_seconds
    from airflow_provider_wan.model_api.schema import Model

    asked = clip_seconds(Model.bundled(record.model_id), record.inputs) if record.inputs else None
    if asked and facts.duration_s is not None and facts.duration_s < _LEAST_PART_OF_DURATION * asked:
        return f"it lasts {facts.duration_s:g} s instead of {asked:g} s"
    return None


def _size(facts: VideoFacts, record: Record) -> str | None:
    lines = _asked_lines(record)
    if not lines or not facts.width or not facts.height:
        return None
    area = facts.width * facts.height / lines**2
    if _LEAST_AREA <= area <= _MOST_AREA:
        return None
    return f"it has {facts.width} x {facts.height} pixels, too {'few' if area < 1 else 'many'} for {lines} lines"


def _asked_lines(record: Record) -> int | None:
    """Return the lines of the resolution that was asked for, by an input or in the model's id."""
    asked = str(record.inputs.get("resolution") or record.model_id)
    found = _RESOLUTION.search(asked)
    return (int(found[1]) if found[1] else _LINES_OF_K[found[2]]) if found else None


def _black(facts: VideoFacts, _: Record) -> str | None:
    share = facts.black_share
    return f"{share:.0%} of its frames are black" if share is not None and share >= _MOST_BLACK else None


def _frozen(facts: VideoFacts, record: Record) -> str | None:
    share = facts.still_share
    if _black(facts, record):
        return None
    return f"nothing moves in {share:.0%} of its frames" if share is not None and share >= _MOST_STILL else None


def _first_frame(facts: VideoFacts, record: Record) -> str | None:
    alike = facts.first_frame_likeness
    if alike is None or alike >= _LEAST_LIKENESS or _black(facts, record):
        return None
    return f"it does not begin with the source image (similarity {alike:.2f})"


def _audio(facts: VideoFacts, record: Record) -> str | None:
    names = [name for name, value in record.inputs.items() if value is True and _AUDIO_INPUT.match(name)]
    if not names or facts.has_audio is None or (facts.has_audio and not facts.audio_silent):
        return None
    return f"{names[0]} was asked for, and its audio is {'silent' if facts.has_audio else 'missing'}"


def _damaged(facts: VideoFacts, _: Record) -> str | None:
    return f"it can't be decoded whole: {facts.damaged}" if facts.damaged else None


BUILT_IN: Mapping[str, Callable[[VideoFacts, Record], str | None]] = {
    "short": _short,
    "size": _size,
    "black": _black,
    "frozen": _frozen,
    "first_frame": _first_frame,
    "audio": _audio,
    "damaged": _damaged,
}
DEFAULT_CHECKS: tuple[str, ...] = tuple(BUILT_IN)


@dataclass(frozen=True, slots=True)
class VideoChecks:
    """Which checks a landing makes, and what happens to a bad video.

    :param checks: names of built-in checks, and functions; empty: videos are not decoded.
    :param on_bad_video: ``report`` (it lands as others do), ``reject`` or ``fail`` (both: it lands in quarantine).
    """

    checks: tuple[str | UserCheck, ...] = DEFAULT_CHECKS
    on_bad_video: OnBadVideo = "report"

    @classmethod
    def of(cls, checks: Sequence[str | UserCheck] | None, on_bad_video: OnBadVideo) -> Self:
        """Return the checks that an operator's parameters ask for.

        :param checks: None: the built-in ones.
        :raises ValueError: a name or a value is unknown.
        """
        if on_bad_video not in ("report", "reject", "fail"):
            raise ValueError('on_bad_video must be "report", "reject" or "fail"')
        given = DEFAULT_CHECKS if checks is None else (checks,) if isinstance(checks, str) else tuple(checks)
        for each in given:
            if not callable(each) and each not in BUILT_IN:
                raise ValueError(f"checks: {each!r} is neither a function nor one of {', '.join(BUILT_IN)}")
        return cls(given, on_bad_video)

    @property
    def quarantines(self) -> bool:
        """Whether a bad video lands in quarantine."""
        return self.on_bad_video != "report"

    def rejects(self, verdict: Mapping[str, Any] | None) -> bool:
        """Return whether a video with this verdict lands in quarantine."""
        return self.quarantines and verdict is not None and verdict.get("status") == "bad"


def bad_video_error(landed: Record) -> WanBadVideoError:
    """Return the error about a landed request with a bad video."""
    bad = [video for video in landed.videos if video.is_bad]
    what = "; ".join(f"{video.uri}: {(video.verdict or {}).get('detail')}" for video in bad)
    return WanBadVideoError(
        f"{len(bad)} of {len(landed.videos)} videos of request {landed.request_id} are bad: "
        f'{what}. They are paid for. To accept them, run the task again with on_bad_video="report"; a new value of '
        "variation buys another video.",
        request_id=landed.request_id,
    )
