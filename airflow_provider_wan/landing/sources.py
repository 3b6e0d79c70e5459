# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a landing come from: a file that was fetched, or an object that landed before."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from airflow_provider_wan.durable.record import LandedVideo
from airflow_provider_wan.exceptions import WanStorageError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy
from airflow_provider_wan.landing.download import Download

if TYPE_CHECKING:
    from google.cloud import storage

CONTENT_TYPE = "video/mp4"
#: For how long one call of an upload is retried, in seconds.
UPLOAD_RETRY_FOR_S = 300.0
#: The most that one copy inside Cloud Storage may take, in seconds; between locations it takes several calls.
COPY_FOR_S = 1800.0


class SourceGoneError(Exception):
    """The object is not there any more as it landed, or may not be read: the result must be fetched."""


class Source(Protocol):
    """Something that can become an object."""

    @property
    def crc32c(self) -> str:
        """What the object will have, base64."""

    def write(self, blob: storage.Blob, *, replaces: int) -> None:
        """Become an object.

        :param blob: the object to be, with its metadata; has the properties of what was written afterwards.
        :param replaces: the generation that it replaces; 0: there must be none.
        :raises PreconditionFailed: there is another generation.
        :raises SourceGoneError: there is nothing to write.
        """


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was downloaded whole and checked."""

    download: Download
    content_type: str = CONTENT_TYPE

    @property
    def crc32c(self) -> str:
        """What was counted while it came."""
        return self.download.crc32c

    def write(self, blob: storage.Blob, *, replaces: int) -> None:
        """Upload it; with the checksum sent before, so that a damaged upload never becomes an object."""
        blob.crc32c = self.download.crc32c
        self.download.file.seek(0)
        blob.upload_from_file(
            self.download.file,
            size=self.download.size_bytes,
            content_type=self.content_type,
            if_generation_match=replaces,
            checksum="crc32c",
            timeout=TIMEOUT_S,
            retry=retry_policy(UPLOAD_RETRY_FOR_S),
        )


@dataclass(frozen=True, slots=True)
class LandedBefore:
    """A video that landed under another name, and is copied without leaving Cloud Storage."""

    client: storage.Client
    video: LandedVideo

    @property
    def crc32c(self) -> str:
        """What was verified when it landed."""
        return self.video.crc32c

    def write(self, blob: storage.Blob, *, replaces: int) -> None:
        """Copy it, at the generation that landed."""
        from google.api_core.exceptions import Forbidden, NotFound

        video = self.video
        source = self.client.bucket(video.bucket).blob(video.object_name, generation=video.generation)
        blob.content_type = video.content_type
        deadline = time.monotonic() + COPY_FOR_S
        token: str | None = None
        while True:
            try:
                token, _, _ = blob.rewrite(
                    source,
                    token=token,
                    if_generation_match=replaces,
                    if_source_generation_match=video.generation,
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            except (NotFound, Forbidden) as error:
                raise SourceGoneError(f"{video.uri} is not there any more, or may not be read") from error
            if token is None:
                return
            if time.monotonic() > deadline:
                raise WanStorageError(
                    f"Copying {video.uri} took longer than {COPY_FOR_S:.0f} s. Try again, or delete it there: then "
                    "the video is fetched from RunComfy.",
                    request_id=video.request_id,
                )
