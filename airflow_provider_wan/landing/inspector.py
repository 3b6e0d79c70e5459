# SPDX-License-Identifier: Apache-2.0
"""Facts and verdict of a downloaded video."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from logging import Logger
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.exceptions import WanError, WanInputError
from airflow_provider_wan.landing.checks import BUILT_IN, DETAIL_CHARACTERS, Verdict, VideoChecks
from airflow_provider_wan.landing.likeness import likeness
from airflow_provider_wan.landing.poster import FACT as POSTER
from airflow_provider_wan.landing.poster import jpeg_of
from airflow_provider_wan.landing.probe import VideoFacts, is_available, probe
from airflow_provider_wan.landing.video_file import VideoFile

if TYPE_CHECKING:
    from google.cloud import storage
    from PIL import Image

#: FFmpeg reads a compressed frame into memory: a video with a larger one is not decoded.
_FRAME_BYTES = 16 * 1024 * 1024
_COPY_PREFIX = "airflow-wan-"
#: A source image is compared only if it can be read this cheaply.
_IMAGE_BYTES, _IMAGE_SECONDS = 32 * 1024 * 1024, 10.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a video.

    :param facts: as JSON values.
    :param verdict: as JSON values; None: it was not checked.
    :param poster: the bytes of its poster, or the object to copy it from; None: it has none.
    """

    facts: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    poster: bytes | storage.Blob | None = None

    def with_poster(self, name: str | None) -> Inspection:
        """Return the same with this object name of the poster among the facts, or with none."""
        facts = {key: value for key, value in (self.facts or {}).items() if key != POSTER}
        return replace(self, facts=facts | ({POSTER: name} if name else {}) or None)


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
                "Of videos only the duration is checked: PyAV or NumPy is missing. Install airflow-provider-wan[video]."
            )
        suffix = ".webm" if video.content_type == "video/webm" else ".mp4"
        try:
            facts, poster = self._facts(file, size_bytes, video, record) if is_available() else (known, None)
            reasons = {**self._built_in(facts, record), **self._users(file, suffix, facts, record)}
        except Exception:  # the video is paid for: a mistake in a check must not keep it out of the bucket
            self._log.exception("The video of request %s could not be checked.", record.request_id)
            return Inspection(known.as_dict())
        verdict = Verdict(reasons)
        if verdict.reasons:
            self._log.warning(
                "The video of request %s is bad: %s.", record.request_id, "; ".join(verdict.reasons.values())
            )
        return Inspection(facts.as_dict(), verdict.as_dict(), poster)

    def _facts(
        self, file: IO[bytes], size_bytes: int, video: VideoFile, record: Record
    ) -> tuple[VideoFacts, bytes | None]:
        """Return the facts of a video, and its poster."""
        if video.largest_frame_bytes > _FRAME_BYTES:
            self._log.info("A frame of %d bytes is not decoded.", video.largest_frame_bytes)
            return VideoFacts(duration_s=video.duration_s, c2pa=video.has_c2pa), None
        probed = probe(file, video.content_type, size_bytes, self._log)
        facts = replace(probed.facts, c2pa=video.has_c2pa, duration_s=probed.facts.duration_s or video.duration_s)
        poster = jpeg_of(probed.poster) if probed.poster is not None else None
        if "first_frame" not in self._checks or not probed.beginning or not record.image:
            return facts, poster
        image = self._images.read(record.image)
        if image is not None:
            facts = replace(facts, first_frame_likeness=likeness(probed.beginning, image))
        return facts, poster

    def _built_in(self, facts: VideoFacts, record: Record) -> dict[str, str]:
        found = {name: BUILT_IN[name](facts, record) for name in self._checks if isinstance(name, str)}
        return {name: reason for name, reason in found.items() if reason}

    def _users(self, file: IO[bytes], suffix: str, facts: VideoFacts, record: Record) -> dict[str, str]:
        """Run the user's checks over a named copy of the file. One that raises is logged and finds nothing."""
        functions = [check for check in self._checks if not isinstance(check, str)]
        if not functions:
            return {}
        found: dict[str, str] = {}
        with _named_copy(file, suffix) as path:
            for check in functions:
                name = getattr(check, "__name__", type(check).__name__)
                try:
                    answer = check(path, facts.as_dict(), record.as_dict())
                except Exception:
                    self._log.exception("The check %s failed for request %s.", name, record.request_id)
                    continue
                if answer is False or (isinstance(answer, str) and answer):
                    found[name] = (answer or f"the check {name} refuses it")[:DETAIL_CHARACTERS]
        return found


@contextlib.contextmanager
def _named_copy(file: IO[bytes], suffix: str) -> Iterator[str]:
    """Copy a video to a file with a path, which the user's checks need.

    All other temporary files have no name and end with their process. Such a copy stays behind if its process is
    killed: its owner holds a lock on it, and the next copy removes those that nobody holds.
    """
    with _locked_folder() as folder:
        for left in folder.glob(f"{_COPY_PREFIX}*"):
            with contextlib.suppress(OSError), left.open("rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
        named = tempfile.NamedTemporaryFile(prefix=_COPY_PREFIX, suffix=suffix)  # noqa: SIM115  # closed below
        fcntl.flock(named, fcntl.LOCK_EX)
    with named:
        file.seek(0)
        shutil.copyfileobj(file, named)
        named.flush()
        yield named.name


@contextlib.contextmanager
def _locked_folder() -> Iterator[Path]:
    """Hold a lock on the temporary directory, so that no copy is found between its creation and its lock."""
    folder = os.open(tempfile.gettempdir(), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield Path(tempfile.gettempdir())
    finally:
        os.close(folder)


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
        return WebReader(address, total_s=_IMAGE_SECONDS).read_all() if address.startswith("https://") else b""
