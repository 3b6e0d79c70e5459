# SPDX-License-Identifier: Apache-2.0
"""Checks of a landed video: whether it is worth its price, judged by its facts and by what was asked for.

A verdict does not depend on what happens to a bad video: it is stored with the video, and a later task that handles
bad videos otherwise uses it without checking again. The limits are wide on purpose: a check reports what is surely
wrong, and no video that a person would accept.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import Logger
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.exceptions import WanBadVideoError, WanError, WanInputError
from airflow_provider_wan.landing.likeness import likeness
from airflow_provider_wan.landing.probe import VideoFacts, is_available, probe
from airflow_provider_wan.landing.video_file import VideoFile
from airflow_provider_wan.model_api.inputs import Model, clip_seconds

if TYPE_CHECKING:
    from google.cloud import storage
    from PIL import Image

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
_DETAIL_CHARACTERS = 1000
#: A source image is compared only if it can be read this cheaply.
_FRAME_BYTES = 16 * 1024 * 1024
_IMAGE_BYTES, _IMAGE_SECONDS = 32 * 1024 * 1024, 10.0


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
            "detail": "; ".join(self.reasons.values())[:_DETAIL_CHARACTERS],
        }


# -- the built-in checks ---------------------------------------------------------------------------------------


def _short(facts: VideoFacts, record: Record) -> str | None:
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
    return (
        f"it has {facts.width} x {facts.height} pixels, too {'few' if area < 1 else 'many'} for {lines} lines"
    )


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
    return (
        f"nothing moves in {share:.0%} of its frames" if share is not None and share >= _MOST_STILL else None
    )


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


_BUILT_IN: Mapping[str, Callable[[VideoFacts, Record], str | None]] = {
    "short": _short,
    "size": _size,
    "black": _black,
    "frozen": _frozen,
    "first_frame": _first_frame,
    "audio": _audio,
    "damaged": _damaged,
}
DEFAULT_CHECKS: tuple[str, ...] = tuple(_BUILT_IN)


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
            if not callable(each) and each not in _BUILT_IN:
                raise ValueError(f"checks: {each!r} is neither a function nor one of {', '.join(_BUILT_IN)}")
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


# -- facts and verdict of a file -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inspection:
    """Facts and verdict of a video, as JSON values; no verdict if it was not checked."""

    facts: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None


class VideoInspector:
    """Reads the facts of downloaded videos, and checks them; safe to use from several threads.

    :param client: a Cloud Storage client, for source images.
    """

    def __init__(self, checks: VideoChecks, client: storage.Client, log: Logger) -> None:
        self._checks = checks.checks
        self._images = _SourceImages(client)
        self._log = log
        self._is_told = False

    def inspect(self, file: IO[bytes], size_bytes: int, video: VideoFile, record: Record) -> Inspection:
        """Read the facts of a video, and check it.

        :param file: its file, which is whole; its position is left anywhere.
        :param video: what the walk over its structure found.
        :param record: the record of its request.
        """
        known = VideoFacts(duration_s=video.duration_s, c2pa=video.has_c2pa)
        if not self._checks:
            return Inspection(known.as_dict())
        if not is_available() and not self._is_told:
            self._is_told = True
            self._log.warning(
                "PyAV is not installed, so of videos only the duration is checked. Install airflow-provider-wan[video]."
            )
        suffix = ".webm" if video.content_type == "video/webm" else ".mp4"
        try:
            facts = self._facts(file, size_bytes, video, record) if is_available() else known
            reasons = {**self._built_in(facts, record), **self._users(file, suffix, facts, record)}
        except Exception:  # the video is paid for: a mistake in a check must not keep it out of the bucket
            self._log.exception("The video of request %s could not be checked.", record.request_id)
            return Inspection(known.as_dict())
        verdict = Verdict(reasons)
        if verdict.reasons:
            self._log.warning(
                "The video of request %s is bad: %s.", record.request_id, "; ".join(verdict.reasons.values())
            )
        return Inspection(facts.as_dict(), verdict.as_dict())

    def _facts(self, file: IO[bytes], size_bytes: int, video: VideoFile, record: Record) -> VideoFacts:
        if video.largest_frame_bytes > _FRAME_BYTES:  # FFmpeg reads a compressed frame into memory
            self._log.info("A frame of %d bytes is not decoded.", video.largest_frame_bytes)
            return VideoFacts(duration_s=video.duration_s, c2pa=video.has_c2pa)
        probed = probe(file, video.content_type, size_bytes, self._log)
        facts = replace(
            probed.facts, c2pa=video.has_c2pa, duration_s=probed.facts.duration_s or video.duration_s
        )
        if "first_frame" not in self._checks or not probed.beginning or not record.image:
            return facts
        image = self._images.read(record.image)
        return (
            facts if image is None else replace(facts, first_frame_likeness=likeness(probed.beginning, image))
        )

    def _built_in(self, facts: VideoFacts, record: Record) -> dict[str, str]:
        found = {name: _BUILT_IN[name](facts, record) for name in self._checks if isinstance(name, str)}
        return {name: reason for name, reason in found.items() if reason}

    def _users(self, file: IO[bytes], suffix: str, facts: VideoFacts, record: Record) -> dict[str, str]:
        """Run the user's checks over a named copy of the file. One that raises is logged and finds nothing."""
        functions = [check for check in self._checks if not isinstance(check, str)]
        if not functions:
            return {}
        found: dict[str, str] = {}
        with tempfile.NamedTemporaryFile(suffix=suffix) as named:
            file.seek(0)
            shutil.copyfileobj(file, named)
            named.flush()
            for check in functions:
                name = getattr(check, "__name__", type(check).__name__)
                try:
                    answer = check(named.name, facts.as_dict(), record.as_dict())
                except Exception:
                    self._log.exception("The check %s failed for request %s.", name, record.request_id)
                    continue
                if answer is False or (isinstance(answer, str) and answer):
                    found[name] = (answer or f"the check {name} refuses it")[:_DETAIL_CHARACTERS]
        return found


class _SourceImages:
    """Reads source images where that is cheap; a host that does not answer is not asked again."""

    def __init__(self, client: storage.Client) -> None:
        self._client = client
        self._unreadable: set[str] = set()

    def read(self, address: str) -> Image.Image | None:
        """Return a source image, small and upright; None if it can't be read."""
        from PIL import Image, ImageOps

        place = "/".join(address.split("/", 3)[:3])
        if place in self._unreadable:
            return None
        try:
            data = self._read(address)
        except WanInputError:  # of this image alone
            return None
        except WanError:
            self._unreadable.add(place)
            return None
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.draft("L", (512, 512))
                image.thumbnail((512, 512))
                return ImageOps.exif_transpose(image).convert("L")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None

    def _read(self, address: str) -> bytes:
        from airflow_provider_wan.images.readers import BucketReader, WebReader, look_up_object

        if address.startswith("gs://"):
            facts = look_up_object(self._client, address)
            return BucketReader(self._client, facts).read_all() if facts.size_bytes <= _IMAGE_BYTES else b""
        return (
            WebReader(address, total_s=_IMAGE_SECONDS).read_all() if address.startswith("https://") else b""
        )
