# SPDX-License-Identifier: Apache-2.0
"""Facts of a video, read from its file in one decoding pass with PyAV (the extra ``[video]``).

Each frame is scaled down to a small gray picture before it is compared, so memory does not grow with the video. Reading
ends after ``ProbeLimits.frames`` frames or ``ProbeLimits.seconds``; the facts then describe that beginning. A damaged
stream gives facts that say so, and never an error. PyAV decodes outside of Python's lock, in the task's process: a
process of its own would guard against a crash of FFmpeg, and costs more than the decoding.

Two frames count as equal if no pixel of the small pictures differs by more than a few levels. ``frozen_share``
compares each frame with the one before; ``still_share`` is the longest stretch that stays equal to its first frame,
so that a slow motion, which differs little from frame to frame, does not count as still.
"""

from __future__ import annotations

import array
import importlib.util
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from logging import Logger
from typing import IO, TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from PIL import Image

#: The longer side of the pictures that are compared.
_SMALL_PX = 160
#: The longer side of a poster.
POSTER_PX = 480
#: Of 255 levels: a frame is black if no pixel of its small picture is brighter (the few lights of a night scene are),
#: and two frames are equal if no pixel differs by more, which is noise of the encoding.
_BLACK_LEVEL, _NOISE_LEVELS = 24, 6
#: Frames of the beginning that are kept to be compared with the source image, and their distance in seconds.
_KEPT_FRAMES, _KEPT_EVERY_S = 8, 0.25
#: A larger frame is not decoded: one of 8K has 33 million pixels.
_MAX_PIXELS = 36_000_000
#: Audio is silent if no sample of 16 bits is louder: -66 dB.
_SILENT_LEVEL, _AUDIO_RATE = 16, 8000
_FORMATS = {"video/webm": "matroska"}


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """How much of a video is decoded.

    :param frames: at most this many frames, default 3600: two minutes at 30 frames a second.
    :param seconds: at most this long, default 60.
    """

    frames: int = 3600
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What is known of a video; None: not known.

    :param frame_rate: frames a second on average.
    :param frames_decoded: how many frames the shares below are about.
    :param bitrate: of the file, in bits a second.
    :param audio_codec: None also if there is no audio: see ``has_audio``.
    :param audio_silent: whether no sample of its audio can be heard.
    :param black_share: share of black frames, 0 to 1.
    :param frozen_share: share of frames that are equal to the one before.
    :param still_share: the longest stretch without a visible change, as a share of the decoded frames.
    :param first_frame_likeness: structural similarity (SSIM) of the beginning and the source image, about 0 to 1.
    :param c2pa: whether the file has a C2PA box (Content Credentials).
    :param damaged: why a part of it could not be decoded.
    """

    width: int | None = None
    height: int | None = None
    duration_s: float | None = None
    frame_rate: float | None = None
    frames: int | None = None
    frames_decoded: int | None = None
    codec: str | None = None
    pixel_format: str | None = None
    bitrate: int | None = None
    has_audio: bool | None = None
    audio_codec: str | None = None
    audio_silent: bool | None = None
    black_share: float | None = None
    frozen_share: float | None = None
    still_share: float | None = None
    first_frame_likeness: float | None = None
    c2pa: bool | None = None
    damaged: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the known facts as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` returned; other keys are ignored."""
        return cls(**{each.name: plain.get(each.name) for each in fields(cls)})


@cache
def is_available() -> bool:
    """Return whether PyAV and NumPy, the extra ``[video]``, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("av", "numpy"))


@dataclass(slots=True)
class Probed:
    """The facts of a video, and pictures of it.

    :param beginning: small gray frames, to be compared with the source image.
    :param poster: a frame for people: the first one from a third of the video on that is not black, else one before,
        else a black one.
    """

    facts: VideoFacts
    beginning: list[Image.Image] = field(default_factory=list)
    poster: Image.Image | None = None


def probe(
    file: IO[bytes], content_type: str, size_bytes: int, log: Logger, *, limits: ProbeLimits | None = None
) -> Probed:
    """Decode a video once, and return its facts.

    :param file: a seekable file; its position is left anywhere.
    :param content_type: as the walk over its structure found it.
    :return: the facts; ``damaged`` holds the error if it can't be decoded.
    """
    import av

    file.seek(0)
    seen = _Seen(limits or ProbeLimits())
    try:
        with av.open(_Unclosed(file), format=_FORMATS.get(content_type, "mp4"), metadata_errors="replace") as opened:
            video = _video_of(opened)
            seen.poster_from_s = (_duration_s(opened, video) or 0.0) / 3 if video is not None else 0.0
            _decode(av, opened, seen)
            return seen.probed(opened, size_bytes)
    except Exception as error:  # the video is paid for: whatever is wrong with it must not keep it out of the bucket
        log.info("The video can't be decoded: %r", error)
        return Probed(VideoFacts(damaged=_reason(error)))


class _Unclosed:
    """A file that PyAV reads and does not close, and of which it sees nothing else."""

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)[:200]


def _video_of(opened: Any) -> Any:
    """Return the first video stream with a known codec, or None."""
    return next((stream for stream in opened.streams.video if stream.codec_context is not None), None)


def _decode(av: Any, opened: Any, seen: _Seen) -> None:
    """Decode the first video stream and the first audio stream."""
    video = _video_of(opened)
    if video is None:
        return
    if video.width * video.height > _MAX_PIXELS:
        seen.damaged = f"frames of {video.width} x {video.height} pixels are not decoded"
        return
    video.thread_type = "AUTO"
    video.codec_context.thread_count = 2
    streams = [video, *opened.streams.audio[:1]]
    resampler = av.AudioResampler(format="s16", layout="mono", rate=_AUDIO_RATE)
    for packet in _packets(av, opened, streams, seen):
        try:
            if packet.stream is video:
                for frame in packet.decode():
                    seen.on_frame(frame)
            elif seen.audio_silent is not False:
                for frame in packet.decode():
                    seen.on_audio(resampler.resample(frame))
        except av.FFmpegError as error:
            seen.damaged = seen.damaged or _reason(error)
        if seen.is_enough():
            seen.ended = False
            return


def _packets(av: Any, opened: Any, streams: list[Any], seen: _Seen) -> Iterator[Any]:
    """Yield packets up to the end of the file, or to where it can't be read on."""
    try:
        yield from opened.demux(streams)
    except av.FFmpegError as error:
        seen.damaged = seen.damaged or _reason(error)


class _Seen:
    """What was seen of a video so far."""

    def __init__(self, limits: ProbeLimits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        #: Whether the whole video was decoded.
        self.ended = True
        self.damaged: str | None = None
        self.audio_silent: bool | None = None
        self.frames = self.black = self.frozen = 0
        self.beginning: list[Image.Image] = []
        #: From when on a frame makes a good poster, in seconds from the first.
        self.poster_from_s = 0.0
        self.poster: Image.Image | None = None
        self._poster_rank = -1
        self._first_s = self._last_s = 0.0
        self._previous: Image.Image | None = None
        self._anchor: Image.Image | None = None
        self._run = self._longest_run = 0

    def is_enough(self) -> bool:
        """Return whether a limit was reached."""
        return self.frames >= self._limits.frames or time.monotonic() > self._deadline

    def on_frame(self, frame: Any) -> None:
        """Compare a frame with the one before, and with the first of the present stretch."""
        from PIL import ImageChops

        picture = _scaled(frame, _SMALL_PX, "L")
        at_s = float(frame.time or 0.0)
        if not self.frames:
            self._first_s = at_s
        self._last_s = max(self._last_s, at_s)
        self.frames += 1
        if len(self.beginning) < _KEPT_FRAMES and at_s - self._first_s >= len(self.beginning) * _KEPT_EVERY_S:
            self.beginning.append(picture)
        is_black = bool(picture.getextrema()[1] <= _BLACK_LEVEL)  # type: ignore[operator]
        self.black += is_black
        rank = 0 if is_black else 1 + (at_s - self._first_s >= self.poster_from_s)
        if rank > self._poster_rank:
            self._poster_rank, self.poster = rank, _scaled(frame, POSTER_PX, "RGB")

        def is_equal(other: Image.Image | None) -> bool:
            if other is None or other.size != picture.size:
                return False
            return bool(ImageChops.difference(picture, other).getextrema()[1] <= _NOISE_LEVELS)  # type: ignore[operator]

        self.frozen += is_equal(self._previous)
        self._previous = picture
        if is_equal(self._anchor):
            self._run += 1
        else:
            self._anchor, self._run = picture, 1
        self._longest_run = max(self._longest_run, self._run)

    def on_audio(self, frames: list[Any]) -> None:
        """Look for a sample that can be heard."""
        for frame in frames:
            samples = array.array("h", bytes(frame.planes[0])[: 2 * frame.samples])
            if samples:
                self.audio_silent = max(max(samples), -min(samples)) <= _SILENT_LEVEL

    def probed(self, opened: Any, size_bytes: int) -> Probed:
        """Return the facts."""
        video = _video_of(opened)
        audio = next((stream for stream in opened.streams.audio if stream.codec_context is not None), None)
        if video is None:
            return Probed(VideoFacts())
        frames = self.frames if self.ended else max(video.frames, self.frames)
        duration_s = _duration_s(opened, video)
        rate = frames / duration_s if duration_s and frames else float(video.average_rate or 0) or None
        damaged = self.damaged
        if self.ended and not self.frames:
            damaged = damaged or "no frame of it can be decoded"
        elif self.ended and video.frames > self.frames + 1:
            damaged = damaged or f"{self.frames} of its {video.frames} frames can be decoded"

        def share(count: int, of: int) -> float | None:
            return round(count / of, 4) if of > 0 else None

        facts = VideoFacts(
            width=video.width,
            height=video.height,
            duration_s=round(duration_s, 3) if duration_s else None,
            frame_rate=round(rate, 3) if rate else None,
            frames=frames,
            frames_decoded=self.frames,
            codec=video.codec_context.name,
            pixel_format=video.codec_context.pix_fmt,
            bitrate=round(8 * size_bytes / duration_s) if duration_s else None,
            has_audio=audio is not None,
            audio_codec=audio.codec_context.name if audio is not None else None,
            audio_silent=self.audio_silent,
            black_share=share(self.black, self.frames),
            frozen_share=share(self.frozen, max(1, self.frames - 1)) if self.frames else None,
            still_share=share(self._longest_run, self.frames),
            damaged=damaged,
        )
        return Probed(facts, self.beginning, self.poster)


def _duration_s(opened: Any, video: Any) -> float | None:
    if video.duration is not None and video.time_base is not None:
        return float(video.duration * video.time_base)
    if opened.duration:
        return float(opened.duration / 1_000_000)
    return None


def _scaled(frame: Any, side_px: int, mode: Literal["L", "RGB"]) -> Image.Image:
    """Return a frame as a picture whose longer side is at most this."""
    from PIL import Image

    scale = min(1.0, side_px / max(frame.width, frame.height))
    size = (max(8, round(frame.width * scale)), max(8, round(frame.height * scale)))
    scaled = frame.reformat(
        width=size[0], height=size[1], format="gray" if mode == "L" else "rgb24", interpolation="AREA"
    )
    plane = scaled.planes[0]
    return Image.frombuffer(mode, size, bytes(plane), "raw", mode, plane.line_size, 1)
