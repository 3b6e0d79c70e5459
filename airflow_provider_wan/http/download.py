# SPDX-License-Identifier: Apache-2.0
"""Fetching a result file: from hosts on the list only, bounded, resumed where it breaks, or not at all."""

from __future__ import annotations

import base64
import contextlib
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging import Logger
from typing import IO, Any
from urllib.parse import urljoin

import requests

from airflow_provider_wan.exceptions import WanDownloadError
from airflow_provider_wan.http import transport as web
from airflow_provider_wan.http.addresses import check_link, refused
from airflow_provider_wan.model_api.faults import retry_after_s

_IN_MEMORY_BYTES = 4 * 1024 * 1024
_VIDEO_TYPES = ("video/", "application/octet-stream", "binary/octet-stream", "application/mp4")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
#: Bytes beyond the furthest point so far that make a broken connection count as progress.
_PROGRESS_BYTES = 1024 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)


class LinkExpiredError(WanDownloadError):
    """The link is no longer good: a fresh one is in ``/result``."""


@dataclass(frozen=True, slots=True)
class DownloadPolicy:
    """Bounds of one download.

    :param hosts: host patterns or whole origins that files may come from.
    :param max_size_bytes: a longer file is refused, default 2 GiB.
    :param stall_s: a download that brings less than ``stall_bytes`` in this many seconds has stalled.
    :param stall_bytes: see ``stall_s``.
    :param total_s: the most that one file may take, resumes included, in seconds.
    :param tries: connections in a row that may break off without bringing the file any further.
    """

    hosts: Sequence[str]
    max_size_bytes: int = 2 * 1024**3
    stall_s: float = 30.0
    stall_bytes: int = 16 * 1024
    total_s: float = 1800.0
    tries: int = 6


@dataclass(slots=True)
class Download:
    """A file that was fetched whole, as far as its length tells; close it.

    :param file: at its beginning; in memory while small, on disk else.
    :param crc32c: base64, as Cloud Storage writes it.
    :param length_was_promised: whether a Content-Length agreed with what came.
    """

    file: IO[bytes]
    size_bytes: int
    crc32c: str
    content_type: str
    length_was_promised: bool

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()


@dataclass(slots=True)
class _State:
    """How far a download has come."""

    file: IO[bytes]
    crc: Any
    size: int = 0
    furthest: int = 0
    failures: int = 0
    promised: int | None = None
    validator: str | None = None
    content_type: str = ""
    started: float = field(default_factory=time.monotonic)

    def count_failure(self) -> None:
        """Count a connection that broke off; one that came further is the first of a new row."""
        if self.size >= self.furthest + _PROGRESS_BYTES:
            self.failures = 0
        self.failures += 1
        self.furthest = max(self.furthest, self.size)

    def keep(self, piece: bytes, request_id: str) -> None:
        """Append what came."""
        with _on_disk(request_id):
            self.file.write(piece)
        self.crc.update(piece)
        self.size += len(piece)

    def start_over(self, request_id: str) -> None:
        """Forget what came."""
        import google_crc32c

        with _on_disk(request_id):
            self.file.seek(0)
            self.file.truncate()
        self.crc, self.size = google_crc32c.Checksum(), 0  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _on_disk(request_id: str) -> Iterator[None]:
    """Tell trouble with the temporary file from trouble with the connection."""
    try:
        yield
    except OSError as error:
        raise WanDownloadError(
            f"The video of request {request_id} could not be kept in the temporary directory "
            f"{tempfile.gettempdir()}: {error.strerror}. Nothing was put into the bucket. Make room there, or set "
            "TMPDIR on the workers to a disk with as much free space as the video has bytes.",
            request_id=request_id,
        ) from error


class Downloader:
    """Fetches result files over one pooled session without credentials.

    :param policy: the bounds.
    :param log: resumes are worth a line.
    """

    def __init__(
        self, policy: DownloadPolicy, log: Logger, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._policy = policy
        self._log = log
        self._sleep = sleep
        self._session = web.bounded_session(pool_size=16)

    def fetch(self, url: str, *, request_id: str) -> Download:
        """Fetch one file whole.

        :param url: its link.
        :param request_id: whose it is, for the messages.
        :raises LinkExpiredError: the link is no longer good.
        :raises WanDownloadError: anything else; nothing of it is kept.
        """
        import google_crc32c

        check_link(url, self._policy.hosts, request_id=request_id)
        file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # given away
        state = _State(file, google_crc32c.Checksum())  # type: ignore[no-untyped-call]
        try:
            self._fetch_with_resumes(url, state, request_id)
            self._check_whole(state, request_id)
            with _on_disk(request_id):  # what is still buffered goes there now
                file.seek(0)
        except BaseException:
            with contextlib.suppress(OSError):  # closing writes what is buffered, and a disk may be full
                file.close()
            raise
        crc32c = base64.b64encode(state.crc.digest()).decode()
        return Download(file, state.size, crc32c, state.content_type, state.promised is not None)

    def _fetch_with_resumes(self, url: str, state: _State, request_id: str) -> None:
        while True:
            asked_s = 0.0
            try:
                pause = self._fetch_once(url, state, request_id)
                if pause is None:
                    return
                asked_s, why = pause, "the server is overloaded or out"
            except (requests.RequestException, OSError, _BrokenOffError) as error:
                why = str(error) if isinstance(error, _BrokenOffError) else type(error).__name__
            state.count_failure()
            wait_s = max(asked_s, min(30.0, 0.5 * 2 ** (state.failures - 1)) * random.random())
            spent_s = time.monotonic() - state.started
            if state.failures >= self._policy.tries or spent_s + wait_s > self._policy.total_s:
                raise self._gave_up(state, why, asked_s, request_id)
            self._log.info("The download broke off at byte %d (%s); resuming.", state.size, why)
            self._sleep(wait_s)

    def _gave_up(self, state: _State, why: str, asked_s: float, request_id: str) -> WanDownloadError:
        of = "an unknown length" if state.promised is None else str(state.promised)
        asked = f" It asks to wait {asked_s:.0f} s." if asked_s else ""
        return WanDownloadError(
            f"The video of request {request_id} broke off after {state.size} bytes of {of} ({why}), for "
            f"{time.monotonic() - state.started:.0f} s and {state.failures} times without coming much further.{asked} "
            "Nothing was put into the bucket. It is paid for and not lost: try again soon, before RunComfy "
            "deletes it.",
            request_id=request_id,
        )

    def _fetch_once(self, url: str, state: _State, request_id: str) -> float | None:
        """Open one connection and read what comes; None: it came to its end; else the seconds to wait."""
        headers = {"Accept": "video/*, application/octet-stream", "Accept-Encoding": "identity"}
        if state.size and state.validator:
            headers |= {"Range": f"bytes={state.size}-", "If-Range": state.validator}
        response = self._get(url, headers, request_id)
        with response:
            if response.status_code in (429, 500, 502, 503, 504):
                asked = retry_after_s({k.lower(): v for k, v in response.headers.items()}, datetime.now(UTC))
                return asked or 0.0
            self._begin(response, state, request_id)
            for piece in self._pieces(response, state):
                state.keep(piece, request_id)
                self._check_size(state.size, request_id)
        if state.promised is not None and state.size < state.promised:
            raise _BrokenOffError("the connection ended early")
        return None

    def _get(self, url: str, headers: dict[str, str], request_id: str) -> requests.Response:
        """GET, following redirects only where the list allows each of them."""
        for _ in range(6):
            response = self._session.get(
                url,
                headers=headers,
                timeout=(web.CONNECT_TIMEOUT_S, self._policy.stall_s),
                allow_redirects=False,
                stream=True,
            )
            if response.status_code not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.close()
            try:
                url = urljoin(url, location)
            except ValueError:
                raise refused("its link leads on to something that is no address", request_id) from None
            check_link(url, self._policy.hosts, request_id=request_id)
        raise refused("its link leads round and round", request_id)

    def _begin(self, response: requests.Response, state: _State, request_id: str) -> None:
        """Check the head of an answer and put the file to where its body continues."""
        status = response.status_code
        if status in (401, 403, 404, 410):
            raise LinkExpiredError(
                f"The link to the video of request {request_id} is no longer good (HTTP {status}). Nothing was put "
                "into the bucket. It is paid for: another try asks RunComfy for a fresh link.",
                request_id=request_id,
            )
        if status == 206 and state.size and self._continues(response, state):
            return
        if status == 416:
            state.validator = None
            raise _BrokenOffError("the server has no such range")
        if status != 200:
            raise WanDownloadError(
                f"The video of request {request_id} was not fetched: HTTP {status} from the file server. Nothing was "
                "put into the bucket; try again soon.",
                request_id=request_id,
            )
        state.start_over(request_id)
        state.content_type = response.headers.get("Content-Type", "").split(";")[0].strip().lower()
        etag = response.headers.get("ETag", "")
        state.validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        length = response.headers.get("Content-Length", "")
        state.promised = int(length) if _LENGTH.fullmatch(length) else None
        self._check_kind(response, state, request_id)
        if state.promised is not None:
            self._check_size(state.promised, request_id)

    def _continues(self, response: requests.Response, state: _State) -> bool:
        """Whether a partial answer goes on exactly where we stand, in a file of the same length."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        etag = response.headers.get("ETag", "")
        is_other = bool(etag) and str(state.validator).startswith('"') and etag != state.validator
        here = match is not None and int(match[1]) == state.size and state.promised in (None, int(match[3]))
        if match is None or not here or is_other:
            state.validator = None
            raise _BrokenOffError("the server resumed at another place, or in another file")
        state.promised = int(match[3])
        return True

    def _check_kind(self, response: requests.Response, state: _State, request_id: str) -> None:
        if response.headers.get("Content-Encoding", "identity") not in ("identity", ""):
            raise refused("the server sent it encoded, though that was not asked for", request_id)
        if state.content_type and not state.content_type.startswith(_VIDEO_TYPES):
            page = " (a login or error page?)" if "html" in state.content_type else ""
            raise WanDownloadError(
                f"The link of request {request_id} gave {state.content_type}{page} and not a video. Nothing was "
                "put into the bucket.",
                request_id=request_id,
            )

    def _check_size(self, size: int, request_id: str) -> None:
        if size > self._policy.max_size_bytes:
            raise WanDownloadError(
                f"The video of request {request_id} is larger than max_size_bytes="
                f"{self._policy.max_size_bytes} ({size} bytes so far or promised). Nothing was put into the "
                "bucket. Raise max_size_bytes if it is right.",
                request_id=request_id,
                retry_helps=False,
            )

    def _pieces(self, response: requests.Response, state: _State) -> Iterator[bytes]:
        """Yield what comes, until it comes too slowly."""
        window_ends = time.monotonic() + self._policy.stall_s
        in_window = 0
        ends = state.started + self._policy.total_s
        for piece in web.iter_body(response, deadline=ends, stall_s=self._policy.stall_s):
            yield piece
            in_window += len(piece)
            now = time.monotonic()
            if now > window_ends:
                if in_window < self._policy.stall_bytes:
                    raise _BrokenOffError(f"only {in_window} bytes in {self._policy.stall_s:.0f} s")
                window_ends, in_window = now + self._policy.stall_s, 0

    def _check_whole(self, state: _State, request_id: str) -> None:
        problem = None
        if state.size == 0:
            problem = "is empty"
        elif state.promised is not None and state.size != state.promised:
            problem = f"is {state.size} bytes long where {state.promised} were promised"
        if problem:
            raise WanDownloadError(
                f"The video of request {request_id} {problem}. Nothing was put into the bucket.",
                request_id=request_id,
            )


class _BrokenOffError(Exception):
    """The download broke off, and may be resumed."""
