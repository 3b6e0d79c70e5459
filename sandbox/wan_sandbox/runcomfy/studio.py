# SPDX-License-Identifier: Apache-2.0
"""Stores the videos: encoded into files as soon as they are bought, or padded from one small real MP4."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from wan_sandbox.runcomfy import videos
from wan_sandbox.runcomfy.catalog import Model
from wan_sandbox.runcomfy.clip import Clip

CHUNK_BYTES = 256 * 1024
_ZEROS = bytes(CHUNK_BYTES)
_LABEL_BYTES = 160
_LARGEST_SHORT_BOX = 0xFFFF_FFFF
#: The small clips are five seconds long, as small as a thumbnail, and have few frames: tests decode thousands of them.
_TINY = Clip(lines=0, frames_per_second=10)


class Video(Protocol):
    """A file that is served: its size, its identity, and any part of it."""

    @property
    def size_bytes(self) -> int: ...  # noqa: D102

    @property
    def etag(self) -> str: ...  # noqa: D102

    def read(self, start: int, stop: int) -> Iterator[bytes]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class FileVideo:
    """A video in a file, which never changes."""

    path: Path
    size_bytes: int
    etag: str

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``stop`` in chunks."""
        with self.path.open("rb") as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(CHUNK_BYTES, stop - start))):
                start += len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class PaddedVideo:
    """A small real MP4, then a ``free`` box up to the requested size; nothing is stored.

    :param video: the small MP4.
    :param label: written into the box, so that each request has a different file.
    """

    video: bytes
    size_bytes: int
    label: str

    @property
    def etag(self) -> str:
        """Identity of the file."""
        return hashlib.sha256(f"{self.label} {self.size_bytes}".encode()).hexdigest()[:32]

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``stop`` in chunks."""
        head = self._head()
        if start < len(head):
            yield head[start : min(stop, len(head))]
            start = len(head)
        while start < stop:
            chunk = _ZEROS[: min(CHUNK_BYTES, stop - start)]
            start += len(chunk)
            yield chunk

    def _head(self) -> bytes:
        box_bytes = self.size_bytes - len(self.video)
        if box_bytes <= _LARGEST_SHORT_BOX:
            box = struct.pack(">I4s", box_bytes, b"free")
        else:
            box = struct.pack(">I4sQ", 1, b"free", box_bytes)
        return self.video + box + self.label.encode()[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")


class WebMVideo:
    """A small real WebM, the same for every request."""

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(small_webm())

    @property
    def etag(self) -> str:
        """Identity of the file."""
        return hashlib.sha256(small_webm()).hexdigest()[:32]

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``stop``."""
        yield small_webm()[start:stop]


@cache
def small_webm() -> bytes:
    """Encode the WebM of the models that return one; once in each process."""
    with tempfile.TemporaryDirectory(prefix="wan-sandbox-") as folder:
        path = Path(folder) / "small.webm"
        picture = videos.placeholder_image("small", size=(96, 64))
        videos.encode_video(picture, path, _TINY, key="small", container="webm")
        return path.read_bytes()


@cache
def small_video() -> bytes:
    """Encode the small MP4 that padded files start with; once a process."""
    with tempfile.TemporaryDirectory(prefix="wan-sandbox-") as folder:
        path = Path(folder) / "small.mp4"
        picture = videos.placeholder_image("small", size=(96, 64))
        videos.encode_video(picture, path, _TINY, key="small")
        return path.read_bytes()


def smallest_padded_bytes(video: bytes) -> int:
    """Return the smallest size that a padded file can have."""
    return len(video) + 16 + _LABEL_BYTES


def inputs_key(model: Model, inputs: Mapping[str, Any], images: Sequence[str]) -> str:
    """Return a key of what determines a video's bytes: model, images and inputs, not the images' addresses.

    :param images: digests of the images; empty where none was fetched.
    """
    asked = {name: value for name, value in inputs.items() if name not in model.image_rules or not images}
    text = json.dumps([model.model_id, images, asked], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Studio:
    """Encodes in two threads (Pillow and FFmpeg release the GIL), one file for each key.

    :param folder: where the files are.
    :param padded_bytes: encode nothing and give padded files of this size.
    """

    def __init__(self, folder: Path, *, padded_bytes: int | None) -> None:
        self._folder = folder
        self._padded_bytes = padded_bytes
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="sandbox-video")
        self._jobs: dict[str, asyncio.Future[FileVideo]] = {}
        self._small = self._small_video() if padded_bytes is not None else b""

    def close(self) -> None:
        """End the threads, after the current encodings."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def encodes(self) -> bool:
        """Whether videos are encoded."""
        return self._padded_bytes is None

    def order(self, key: str, *, image: Path | None, clip: Clip, on_done: Callable[[bool], None]) -> None:
        """Start to encode a video; ``on_done`` is called with whether it worked."""
        job = self._job(key, image, clip)
        if job.done():
            on_done(job.exception() is None)
        else:
            job.add_done_callback(lambda done: on_done(not done.cancelled() and done.exception() is None))

    async def video(self, key: str, *, label: str, image: Path | None, clip: Clip) -> Video:
        """Return a video as soon as it is encoded."""
        if self._padded_bytes is not None:
            return PaddedVideo(self._small, self._padded_bytes, label)
        return await asyncio.shield(self._job(key, image, clip))

    def _job(self, key: str, image: Path | None, clip: Clip) -> asyncio.Future[FileVideo]:
        job = self._jobs.get(key)
        if job is None:
            loop = asyncio.get_running_loop()
            job = self._jobs[key] = loop.run_in_executor(self._threads, self._encode, key, image, clip)
        return job

    def _encode(self, key: str, image: Path | None, clip: Clip) -> FileVideo:
        path = self._folder / f"{key}.mp4"
        picture = image.read_bytes() if image is not None else videos.placeholder_image(key)
        videos.encode_video(picture, path, clip, key=key)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileVideo(path, path.stat().st_size, digest[:32])

    def _small_video(self) -> bytes:
        small = small_video()
        least = smallest_padded_bytes(small)
        if self._padded_bytes is not None and self._padded_bytes < least:
            raise ValueError(f"video-bytes must be {least} or more: a real MP4 of that size is inside")
        return small
