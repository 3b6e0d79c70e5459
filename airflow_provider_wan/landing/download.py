# SPDX-License-Identifier: Apache-2.0
"""Download the video of a request to a temporary file: from hosts on the connection's list, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from logging import Logger
from typing import IO

from airflow_provider_wan.exceptions import WanDownloadError
from airflow_provider_wan.http.addresses import check_link
from airflow_provider_wan.http.fetch import Download, Fetcher, FetchError, FetchRules, FilePart

_IN_MEMORY_BYTES = 4 * 1024 * 1024
_VIDEO_TYPES = ("video/", "application/octet-stream", "binary/octet-stream", "application/mp4")
_EXPIRED_STATUSES = (401, 403, 404, 410)


class LinkExpiredError(WanDownloadError):
    """The link does not work any more: a fresh one is in ``/result``."""


def video_rules(hosts: Sequence[str], *, max_size_bytes: int = 2 * 1024**3, stall_s: float = 30.0) -> FetchRules:
    """Return the rules and bounds of downloads of videos.

    :param hosts: host patterns or whole origins that videos may come from.
    :param max_size_bytes: a longer file is refused, default 2 GiB.
    :param stall_s: for so many seconds a server may send nothing, or too little, default 30.
    """
    return FetchRules(
        check_address=functools.partial(check_link, hosts=hosts),
        accept="video/*, application/octet-stream",
        head_s=stall_s,
        stall_s=stall_s,
        max_size_bytes=max_size_bytes,
    )


class Downloader:
    """Downloads videos over one pool of connections without credentials.

    :param rules: see :func:`video_rules`.
    :param log: each resume is logged.
    :param sleep: waits between the tries.
    """

    def __init__(self, rules: FetchRules, log: Logger, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._rules = rules
        self._log = log
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
            done = self._fetcher.download(url, file, self._log, check_head=functools.partial(_check_type, request_id))
            file.seek(0)  # what is still buffered goes to the disk now
            return done
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

    def _error_of(self, error: FetchError, request_id: str) -> WanDownloadError:
        video = f"The video of request {request_id}"
        nothing = "Nothing was put into the bucket."
        if error.kind in ("refused", "redirect"):
            return WanDownloadError(
                f"{video} was not fetched: {error}. {nothing}", request_id=request_id, retry_helps=False
            )
        if error.kind == "too large":
            return WanDownloadError(
                f"{video} is larger than max_size_bytes={self._rules.max_size_bytes}: {error}. {nothing} Raise "
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
