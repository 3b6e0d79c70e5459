# SPDX-License-Identifier: Apache-2.0
"""Fetch a file from outside, anonymously: its beginning, or all of it.

One mechanism for images and videos: redirects are checked at every hop, a private address gets no byte, everything has
a deadline, and a download that breaks off is resumed. The two differ in :class:`FetchRules` and in their messages, so
errors are neutral here: a :class:`FetchError` gives the reason as a clause, never shows an address, and its ``kind``
decides how it is handled.

Read it as far as needed::

    fetcher = Fetcher(FetchRules(refuse_private=True))
    with fetcher.open(url, deadline=time.monotonic() + 30) as part:
        head = next(part.pieces())

Read all of it into memory with :meth:`Fetcher.read_all`, or into a file, with resumes, with :meth:`Fetcher.download`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging import Logger
from typing import IO, Any, Literal
from urllib.parse import urljoin, urlsplit

import requests

from airflow_provider_wan.http import transport
from airflow_provider_wan.http.addresses import AddressRefusedError, refuse_private_literal
from airflow_provider_wan.model_api.faults import retry_after_s

#: Some hosts (Wikimedia) refuse the names of HTTP libraries.
USER_AGENT = "airflow-provider-wan"
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_TRANSIENT_STATUSES = (408, 425, 429)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
#: Bytes beyond the furthest point so far that make a broken connection count as progress.
_PROGRESS_BYTES = 1024 * 1024
#: A longer ``Retry-After`` ends a download: the caller waits without holding a worker, or fails with the time.
_LONGEST_ASKED_S = 60.0
_LONGEST_PAUSE_S = 30.0

Kind = Literal["refused", "redirect", "status", "broken", "too large", "unusable"]


class FetchError(Exception):
    """A file could not be fetched. The text gives the reason as a clause, without the address.

    :param kind: ``refused``: the address may not be fetched. ``redirect``: it leads nowhere. ``status``: the server
        answered with ``status``. ``broken``: no connection, a connection that broke, or no answer in time.
        ``too large``. ``unusable``: what came is not the file.
    :param retry_after_s: how long the server asked to wait, in seconds.
    """

    def __init__(
        self, kind: Kind, reason: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_transient(self) -> bool:
        """Whether the same address may work later."""
        return self.kind == "broken" or (
            self.status is not None and (self.status >= 500 or self.status in _TRANSIENT_STATUSES)
        )


@dataclass(frozen=True, slots=True)
class FetchRules:
    """Which addresses may be fetched, and the bounds of a download.

    :param check_address: raises :class:`AddressRefusedError` for an address that may not be fetched; called with the
        first one and with that of every redirect.
    :param refuse_private: refuse addresses that are not public: by name or number before a proxy is asked for them, and
        by what a name resolves to at the connection; default false.
    :param accept: the ``Accept`` header.
    :param head_s: the most that a server may take to begin its answer, in seconds, default 15.
    :param stall_s: a body that brings less than ``stall_bytes`` in this many seconds has stalled, default 30.
    :param stall_bytes: see ``stall_s``, default 16 KiB.
    :param max_size_bytes: a longer download is refused, default 2 GiB.
    :param total_s: the most that one download may take in seconds, resumes included, default 1800.
    :param tries: connections of a download in a row that may break off without coming further, default 6.
    """

    check_address: Callable[[str], None] = lambda url: None
    refuse_private: bool = False
    accept: str = "*/*"
    head_s: float = 15.0
    stall_s: float = 30.0
    stall_bytes: int = 16 * 1024
    max_size_bytes: int = 2 * 1024**3
    total_s: float = 1800.0
    tries: int = 6


class FilePart:
    """An answer with a file, or a part of one, whose body is read as it arrives; close it.

    :ivar start: where in the file the body begins; 0 where the server ignored the range.
    :ivar length: how many bytes the body has, or None if the server does not say.
    :ivar size_bytes: of the whole file, or None if the server does not say.
    :ivar validator: for ``If-Range``; None if the file has none that is strong enough.
    """

    def __init__(self, response: requests.Response, rules: FetchRules, deadline: float) -> None:
        self._response = response
        self._rules = rules
        self._deadline = deadline
        headers = response.headers
        length = headers.get("Content-Length", "")
        self.length = int(length) if _LENGTH.fullmatch(length) else None
        self.content_type = headers.get("Content-Type", "").split(";")[0].strip().lower()
        self.etag = headers.get("ETag", "")
        self.validator = self.etag if self.etag.startswith('"') else headers.get("Last-Modified")
        self.start, self.size_bytes = 0, self.length
        if response.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if found is None:
                raise FetchError("unusable", "the server gave a part without saying which")
            self.start = int(found[1])
            self.size_bytes = None if found[3] == "*" else int(found[3])

    @property
    def is_whole(self) -> bool:
        """Whether the body is the whole file, and not an answer to a range."""
        return self._response.status_code == 200

    @property
    def checksums(self) -> Mapping[str, bytes]:
        """The checksums that the server gives for the body, by their names in ``hashlib`` (and ``crc32c``)."""
        return _checksums(self._response.headers)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        :raises FetchError: it broke off, stalled, or takes longer than the deadline.
        """
        rules = self._rules
        window_ends, in_window = time.monotonic() + rules.stall_s, 0
        try:
            for piece in transport.iter_body(self._response, deadline=self._deadline, stall_s=rules.stall_s):
                yield piece
                in_window += len(piece)
                now = time.monotonic()
                if now > window_ends:
                    if in_window < rules.stall_bytes:
                        raise FetchError("broken", f"only {in_window} bytes in {rules.stall_s:.0f} s")
                    window_ends, in_window = now + rules.stall_s, 0
        except requests.RequestException as error:
            raise FetchError("broken", transport.reason_of(error)) from None

    def close(self) -> None:
        """Close the answer, and the connection unless the body was read to its end."""
        self._response.close()

    def __enter__(self) -> FilePart:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Download:
    """A file that was downloaded whole, as far as its length and checksums show; close it.

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


class Fetcher:
    """Fetches files over one pool of connections, without credentials.

    :param rules: which addresses may be fetched, and how slowly.
    :param pool_size: connections kept per host.
    :param sleep: waits between the tries of a download.
    """

    def __init__(self, rules: FetchRules, *, pool_size: int = 16, sleep: Callable[[float], None] = time.sleep) -> None:
        self._rules = rules
        self._sleep = sleep
        self._session = transport.bounded_session(refuse_private=rules.refuse_private, pool_size=pool_size)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def open(self, url: str, *, deadline: float, start: int = 0, validator: str | None = None) -> FilePart:
        """Ask for a file, or the rest of it, following redirects; the body is not read yet.

        A server that ignores the range gives the file from its beginning: see :attr:`FilePart.start`.

        :param deadline: ``time.monotonic()`` by which the body must be there.
        :param start: the first byte, default 0.
        :param validator: for ``If-Range``: another file is given from its beginning.
        :raises FetchError: the address or a redirect may not be fetched, the server gives another status than 200
            and 206 (416: there is nothing from ``start`` on), or another part.
        """
        headers = {"Accept": self._rules.accept, "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if start:
            headers["Range"] = f"bytes={start}-"
        if validator is not None:
            headers["If-Range"] = validator
        response = self._get(url, headers, deadline)
        try:
            return self._part_of(response, start, deadline)
        except BaseException:
            response.close()
            raise

    def read_all(self, url: str, *, deadline: float, limit_bytes: int) -> bytes:
        """Return the whole file.

        :param deadline: ``time.monotonic()`` by which it must be there.
        :param limit_bytes: a larger file is not loaded.
        :raises FetchError: as in :meth:`open`, or it is too large, empty or cut off, or differs from a checksum of the
            server's.
        """
        file = io.BytesIO()
        self._continue(url, _Progress(file, limit_bytes, deadline), lambda part: None)
        return file.getvalue()

    def download(
        self,
        url: str,
        file: IO[bytes],
        log: Logger,
        *,
        check_head: Callable[[FilePart], None] = lambda part: None,
    ) -> Download:
        """Download a file whole; where it breaks off it is resumed, if it is still the same file.

        :param file: an empty file; what it holds after an error is undefined.
        :param log: each resume is logged.
        :param check_head: may raise before the body is read.
        :raises FetchError: it could not be downloaded whole; with the wait that the server asked for.
        :raises OSError: the file could not be written.
        """
        rules = self._rules
        progress = _Progress(file, rules.max_size_bytes, time.monotonic() + rules.total_s)
        while True:
            try:
                self._continue(url, progress, check_head)
                return progress.result()
            except FetchError as error:
                progress.count_failure()
                asked_s = error.retry_after_s or 0.0
                own_s = min(_LONGEST_PAUSE_S, 0.5 * 2 ** (progress.failures - 1)) * random.random()
                wait_s = max(asked_s, own_s)
                if not error.is_transient:
                    raise
                is_too_long = asked_s > _LONGEST_ASKED_S or time.monotonic() + wait_s > progress.deadline
                if progress.failures >= rules.tries or is_too_long:
                    raise progress.gave_up(error) from error
                log.info("The download broke off at byte %d (%s); resuming.", progress.size, error)
            self._sleep(wait_s)

    def _continue(self, url: str, progress: _Progress, check_head: Callable[[FilePart], None]) -> None:
        """Open one connection, and append its body to the file."""
        start = progress.size if progress.validator else 0
        try:
            part = self.open(url, deadline=progress.deadline, start=start, validator=progress.validator)
        except FetchError as error:
            if error.status == 416 or (error.kind == "unusable" and start):
                progress.validator = None
                raise FetchError("broken", "the server resumed at another place") from error
            raise
        with part:
            if part.is_whole:
                progress.begin(part)
                check_head(part)
            else:
                progress.check_same_file(part)
            for piece in part.pieces():
                progress.append(piece)
        progress.check_whole()

    def _part_of(self, response: requests.Response, start: int, deadline: float) -> FilePart:
        status = response.status_code
        if status not in (200, 206):
            headers = {name.lower(): value for name, value in response.headers.items()}
            asked_s = retry_after_s(headers, datetime.now(UTC))
            raise FetchError("status", f"HTTP {status}", status=status, retry_after_s=asked_s)
        if response.headers.get("Content-Encoding", "identity") not in ("identity", ""):
            raise FetchError("unusable", "the server sent it encoded, which was not asked for")
        part = FilePart(response, self._rules, deadline)
        if status == 206 and (part.start != start or not start):
            raise FetchError("unusable", "the server was asked for a part and gave another one")
        return part

    def _get(self, url: str, headers: Mapping[str, str], deadline: float) -> requests.Response:
        """GET, following redirects only where each may be followed."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._get_once(url, headers, deadline)
            if response.status_code not in _REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.close()
            try:
                url = urljoin(url, location)
            except ValueError:
                raise FetchError("redirect", "it redirects to something that is no address") from None
        raise FetchError("redirect", "too many redirects")

    def _get_once(self, url: str, headers: Mapping[str, str], deadline: float) -> requests.Response:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise FetchError("broken", "it took too long")
        try:
            self._rules.check_address(url)
            if self._rules.refuse_private:
                refuse_private_literal(url)
            if urlsplit(url).scheme not in ("http", "https"):
                raise FetchError("redirect", "it leads to something that is not http or https")
            return self._session.get(
                url,
                headers=dict(headers),
                timeout=(min(transport.CONNECT_TIMEOUT_S, left_s), min(self._rules.head_s, left_s)),
                allow_redirects=False,
                stream=True,
            )
        except AddressRefusedError as error:
            raise FetchError("refused", str(error)) from None
        except (requests.RequestException, OSError) as error:
            # Without its cause, whose text shows the whole address and so a signature.
            if transport.caused_by(error, transport.PrivateAddressError):
                raise FetchError("refused", "its host resolves to an address that is not public") from None
            raise FetchError("broken", transport.reason_of(error)) from None


@dataclass(slots=True)
class _Progress:
    """How far a download has come."""

    file: IO[bytes]
    limit_bytes: int
    deadline: float
    size: int = 0
    furthest: int = 0
    failures: int = 0
    promised: int | None = None
    validator: str | None = None
    started: float = field(default_factory=time.monotonic)
    hashes: dict[str, Any] = field(default_factory=dict)
    expected: Mapping[str, bytes] = field(default_factory=dict)

    def count_failure(self) -> None:
        """Count a connection that broke off; one that made progress starts the count again."""
        if self.size >= self.furthest + _PROGRESS_BYTES:
            self.failures = 0
        self.failures += 1
        self.furthest = max(self.furthest, self.size)

    def begin(self, part: FilePart) -> None:
        """Start the file from its beginning."""
        import google_crc32c

        self.file.seek(0)
        self.file.truncate()
        self.size, self.promised, self.validator = 0, part.length, part.validator
        self.expected = part.checksums
        self.hashes = {name: hashlib.new(name) for name in self.expected if name != "crc32c"}
        self.hashes["crc32c"] = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
        self._check_size(part.length or 0)

    def check_same_file(self, part: FilePart) -> None:
        """Check that a part continues the file that was begun."""
        is_other = bool(part.etag) and str(self.validator).startswith('"') and part.etag != self.validator
        if is_other or (None not in (self.promised, part.size_bytes) and self.promised != part.size_bytes):
            self.validator = None
            raise FetchError("broken", "the server resumed in another file")
        self.promised = part.size_bytes if self.promised is None else self.promised

    def append(self, piece: bytes) -> None:
        self.file.write(piece)
        self.size += len(piece)
        for counter in self.hashes.values():
            counter.update(piece)
        self._check_size(self.size)

    def _check_size(self, size: int) -> None:
        if size > self.limit_bytes:
            raise FetchError(
                "too large",
                f"it has at least {size:,} bytes; more than {self.limit_bytes:,} bytes are refused",
            )

    def check_whole(self) -> None:
        """Check length and checksums against those of the server."""
        if self.promised is not None and self.size < self.promised:
            raise FetchError("broken", "the connection ended early")
        if self.promised is not None and self.size > self.promised:
            raise FetchError("unusable", f"it is {self.size} bytes long where {self.promised} were promised")
        if not self.size:
            raise FetchError("unusable", "it is empty")
        for name, digest in self.expected.items():
            if self.hashes[name].digest() != digest:
                self.validator = None
                raise FetchError("broken", f"its {name} differs from the one that the server gives")

    def gave_up(self, error: FetchError) -> FetchError:
        """Return the error about a download that broke off too often, or would take too long."""
        of = "an unknown length" if self.promised is None else str(self.promised)
        asked = f" It asks to wait {error.retry_after_s:.0f} s." if error.retry_after_s else ""
        spent_s = time.monotonic() - self.started
        return FetchError(
            "broken",
            f"broke off after {self.size} bytes of {of} ({error}), for {spent_s:.0f} s and {self.failures} times "
            f"without coming much further.{asked}",
            status=error.status,
            retry_after_s=error.retry_after_s,
        )

    def result(self) -> Download:
        crc32c = base64.b64encode(self.hashes["crc32c"].digest()).decode()
        return Download(self.file, self.size, crc32c, self.promised is not None)


def _checksums(headers: Mapping[str, str]) -> dict[str, bytes]:
    """Read the checksums of a whole body.

    Sources: ``x-goog-hash`` (Cloud Storage; of the stored object, so not where it was decompressed on its way),
    ``Content-MD5`` (RFC 1864), ``Digest`` (RFC 3230), ``Content-Digest`` and ``Repr-Digest`` (RFC 9530). The ETag is an
    MD5 at Cloud Storage only: elsewhere it can be 32 hexadecimal digits of something else (S3 with KMS).
    """
    found: dict[str, bytes] = {}
    is_google = any(name.lower().startswith("x-goog-") for name in headers)
    as_stored = headers.get("x-goog-stored-content-encoding", "identity") == "identity"
    if is_google and as_stored and re.fullmatch(r'"[0-9a-f]{32}"', headers.get("ETag", "")):
        found["md5"] = bytes.fromhex(headers["ETag"].strip('"'))
    lists = [headers.get(name, "") for name in ("Digest", "Content-Digest", "Repr-Digest")]
    lists += [f"md5={headers.get('Content-MD5', '')}", headers.get("x-goog-hash", "") if as_stored else ""]
    for entry in ",".join(lists).split(","):
        name, _, value = entry.strip().partition("=")
        size = {"md5": 16, "crc32c": 4, "sha-256": 32, "sha-512": 64}.get(name.lower())
        try:
            digest = base64.b64decode(value.strip().strip(":"), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(digest) == size:
            found[name.lower().replace("-", "")] = digest
    return found
