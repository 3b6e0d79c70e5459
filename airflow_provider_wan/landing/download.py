# SPDX-License-Identifier: Apache-2.0
"""Download the video of a request to a temporary file: from hosts on the connection's list, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import Logger
from typing import IO

from airflow_provider_wan.exceptions import WanDownloadError
from airflow_provider_wan.http.addresses import check_link
from airflow_provider_wan.http.fetch import DownloadLimits, Fetcher, FetchError, FetchRules, FilePart

_IN_MEMORY_BYTES = 4 * 1024 * 1024
_VIDEO_TYPES = ("video/", "application/octet-stream", "binary/octet-stream", "application/mp4")
_EXPIRED_STATUSES = (401, 403, 404, 410)


class LinkExpiredError(WanDownloadError):
    """The link does not work any more: a fresh one is in ``/result``."""


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """Bounds of one download.

    :param hosts: host patterns or whole origins that videos may come from.
    :param max_size_bytes: a longer file is refused, default 2 GiB.
    :param stall_s: a download that brings less than ``stall_bytes`` in this many seconds has stalled, default 30.
    :param stall_bytes: see ``stall_s``, default 16 KiB.
    :param total_s: the most that one file may take in seconds, resumes included, default 1800.
    :param tries: connections in a row that may break off without bringing the file further, default 6.
    """

    hosts: Sequence[str]
    max_size_bytes: int = 2 * 1024**3
    stall_s: float = 30.0
    stall_bytes: int = 16 * 1024
    total_s: float = 1800.0
    tries: int = 6


@dataclass(slots=True)
class Download:
    """A video that was downloaded whole, as far as its length and checksums show; close it.

    :param file: at its beginning; in memory while small, else on disk.
    :param crc32c: base64, as Cloud Storage writes it.
    :param length_was_promised: whether the server gave a length, which agreed with the file's.
    """

    file: IO[bytes]
    size_bytes: int
    crc32c: str
    length_was_promised: bool

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()


class Downloader:
    """Downloads videos over one pool of connections without credentials.

    :param policy: the bounds.
    :param log: each resume is logged.
    :param sleep: waits between the tries.
    """

    def __init__(
        self, policy: DownloadPolicy, log: Logger, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._max_size_bytes = policy.max_size_bytes
        self._limits = DownloadLimits(policy.max_size_bytes, policy.total_s, policy.tries)
        self._log = log
        rules = FetchRules(
            check_address=functools.partial(check_link, hosts=policy.hosts),
            accept="video/*, application/octet-stream",
            head_s=policy.stall_s,
            stall_s=policy.stall_s,
            stall_bytes=policy.stall_bytes,
        )
        self._fetcher = Fetcher(rules, sleep=sleep)

    def fetch(self, url: str, *, request_id: str) -> Download:
        """Download one video.

        :param url: its link.
        :param request_id: for the messages.
        :raises LinkExpiredError: the link does not work any more.
        :raises WanDownloadError: any other failure; nothing of the file is kept.
        """
        file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # returned
        try:
            done = self._fetcher.download(
                url, file, self._limits, self._log, check_head=functools.partial(_check_type, request_id)
            )
            file.seek(0)  # what is still buffered goes to the disk now
        except FetchError as error:
            file.close()
            raise self._error_of(error, request_id) from error
        except OSError as error:
            with contextlib.suppress(OSError):  # closing writes what is buffered, and the disk may be full
                file.close()
            raise WanDownloadError(
                f"The video of request {request_id} could not be kept in the temporary directory "
                f"{tempfile.gettempdir()}: {error.strerror}. Nothing was put into the bucket. Make room there, or set "
                "TMPDIR on the workers to a disk with as much free space as the video has bytes.",
                request_id=request_id,
            ) from error
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            raise
        return Download(file, done.size_bytes, done.crc32c, done.length_was_promised)

    def _error_of(self, error: FetchError, request_id: str) -> WanDownloadError:
        video = f"The video of request {request_id}"
        nothing = "Nothing was put into the bucket."
        if error.kind in ("refused", "redirect"):
            return WanDownloadError(
                f"{video} was not fetched: {error}. {nothing}", request_id=request_id, retry_helps=False
            )
        if error.kind == "too large":
            return WanDownloadError(
                f"{video} is larger than max_size_bytes={self._max_size_bytes} ({error}). {nothing} Raise "
                "max_size_bytes if the size is right.",
                request_id=request_id,
                retry_helps=False,
            )
        if error.status in _EXPIRED_STATUSES:
            return LinkExpiredError(
                f"The link to the video of request {request_id} does not work any more ({error}). {nothing} It is "
                "paid for: another try asks RunComfy for a fresh link.",
                request_id=request_id,
            )
        if error.kind == "broken":
            return WanDownloadError(
                f"{video} {error} {nothing} It is paid for and not lost: try again soon, before RunComfy deletes it.",
                request_id=request_id,
                retry_after_s=error.retry_after_s,
            )
        return WanDownloadError(
            f"{video} was not fetched: {error} from the file server. {nothing} It is paid for and not lost: try again "
            "soon.",
            request_id=request_id,
            retry_after_s=error.retry_after_s,
        )


def _check_type(request_id: str, part: FilePart) -> None:
    if part.content_type and not part.content_type.startswith(_VIDEO_TYPES):
        page = " (a login or error page?)" if "html" in part.content_type else ""
        raise WanDownloadError(
            f"The link of request {request_id} gave {part.content_type}{page} and not a video. Nothing was "
            "put into the bucket.",
            request_id=request_id,
        )
