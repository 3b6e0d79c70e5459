# SPDX-License-Identifier: Apache-2.0
"""Decodes every frame of a landed video, as a player does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FRAMES = 150
LENGTH_S = 5.0


class BadVideoError(RuntimeError):
    """A video is damaged or has the wrong length."""


@dataclass(frozen=True, slots=True)
class Video:
    """The properties of a decoded video."""

    frames: int
    length_s: float
    width: int
    height: int


def decode(path: Path) -> Video:
    """Decode every frame of a video.

    :raises BadVideoError: it cannot be decoded, or it does not have 150 frames and 5 seconds.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = sum(1 for _ in container.decode(stream))
            length_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
            video = Video(frames, length_s, stream.width, stream.height)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise BadVideoError(f"{path.name} cannot be decoded: {error}") from error
    if video.frames != FRAMES or abs(video.length_s - LENGTH_S) > 0.1:
        raise BadVideoError(
            f"{path.name} has {video.frames} frames in {video.length_s:.2f} s, not {FRAMES} in {LENGTH_S} s"
        )
    return video
