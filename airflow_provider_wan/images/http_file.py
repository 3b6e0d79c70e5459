# SPDX-License-Identifier: Apache-2.0
"""Reading a few parts of an image behind a URL, as RunComfy will: anonymously, and from public hosts only."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import requests

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.http import transport as web

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
#: The most that a server may take to begin its answer, in seconds.
_HEAD_S = 15.0
_REDIRECTS = (301, 302, 303, 307, 308)
#: How much is kept of a file whose server ignores Range, unless more is asked for.
_WITHOUT_RANGES_BYTES = 1024 * 1024


class UrlReader:
    """A file behind a URL, read in ranges.

    :param url: http or https.
    :param allow_private: whether private, loopback and link-local addresses are read too.
    :param total_s: the most that all reads together may take, in seconds.
    """

    def __init__(self, url: str, *, allow_private: bool = False, total_s: float = 30.0) -> None:
        self._url = url
        self._allow_private = allow_private
        self._deadline = time.monotonic() + total_s
        self._session = web.bounded_session(refuse_private=not allow_private)
        self._size: int | None = None
        self._head: bytes | None = None

    @property
    def name(self) -> str:
        """The address without anything secret in it."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def size_bytes(self) -> int | None:
        """The size, once something was read and the server told it."""
        return self._size

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on; fewer only where the file ends.

        :raises WanInputError: the server refuses the file to an anonymous reader, or sends it encoded.
        :raises WanDownloadError: the address is private, or the server is out or too slow.
        """
        if self._head is not None:
            return self._head[start : start + length]
        with self._errors_told():
            return self._read(start, length)

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except (requests.RequestException, OSError) as error:
            if web.caused_by(error, web.PrivateAddressError):
                raise WanDownloadError(
                    f"{self.name}: its host resolves to an address that is not public, and reading it is "
                    "refused. If it is meant so (a sandbox, an internal store), set "
                    '"allow_private_images": true in the connection.',
                    retry_helps=False,
                ) from None
            # Without its cause, whose text shows the whole address and so a signature.
            raise WanDownloadError(
                f"{self.name} could not be read ({type(error).__name__}). Nothing was bought. RunComfy needs to "
                "read it too: check that it is public."
            ) from None

    def read_all(self, limit_bytes: int) -> bytes:
        """Return the whole file.

        :raises WanInputError: it has more than ``limit_bytes``, besides what :meth:`read` raises.
        :raises WanDownloadError: fewer bytes came than were promised, besides.
        """
        with self._errors_told():
            response = self._get(None)
            with response:
                self._check_status(response)
                return self._checked_body(response, limit_bytes)

    def _checked_body(self, response: requests.Response, limit_bytes: int) -> bytes:
        too_large = WanInputError(f"{self.name} has more than {limit_bytes:,} bytes, which are not loaded.")
        expected = _length(response)
        if expected is not None and expected > limit_bytes:
            raise too_large
        pieces: list[bytes] = []
        size = 0
        for piece in web.iter_body(response, deadline=self._deadline):
            pieces.append(piece)
            size += len(piece)
            if size > limit_bytes:
                raise too_large
        if expected is not None and size != expected:
            raise WanDownloadError(
                f"{self.name} was cut off after {size:,} of {expected:,} bytes. Nothing was bought."
            )
        self._size = size
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _read(self, start: int, length: int) -> bytes:
        with self._get(f"bytes={start}-{start + length - 1}") as response:
            if response.status_code == 416:
                return b""
            self._check_status(response)
            is_part = response.status_code == 206
            if is_part:
                return self._part(response, start, length)
            return self._whole(response, start, length)

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if 400 <= status < 500 and status not in (408, 429):
            raise WanInputError(
                f"{self.name} answers an anonymous reader with HTTP {status}, and so RunComfy. Nothing was "
                "bought. Give a public or signed address, or image= with a gs:// address."
            )
        if status not in (200, 206):
            raise WanDownloadError(f"{self.name} answers with HTTP {status} just now. Nothing was bought.")
        if response.headers.get("Content-Encoding", "identity") not in ("identity", ""):
            raise WanInputError(f"{self.name} is sent encoded, though that was not asked for.")

    def _part(self, response: requests.Response, start: int, length: int) -> bytes:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != start:
            raise WanDownloadError(
                f"{self.name} was asked for a part and gave another one. Nothing was bought. Put the image on another "
                "server, or give image= with a gs:// address.",
                retry_helps=False,
            )
        self._size = int(match[3])
        return self._up_to(length, response)[:length]

    def _up_to(self, enough: int, response: requests.Response) -> bytes:
        """Read until there is enough, or all."""
        pieces: list[bytes] = []
        size = 0
        for piece in web.iter_body(response, deadline=self._deadline):
            pieces.append(piece)
            size += len(piece)
            if size >= enough:
                break
        return b"".join(pieces)

    def _whole(self, response: requests.Response, start: int, length: int) -> bytes:
        """A server without ranges: keep the head of what it sends."""
        promised = _length(response)
        enough = max(_WITHOUT_RANGES_BYTES, start + length)
        self._head = self._up_to(enough, response)
        ended = len(self._head) < enough
        self._size = promised if promised is not None else (len(self._head) if ended else None)
        return self._head[start : start + length]

    def _get(self, wanted: str | None) -> requests.Response:
        url = self._url
        headers = {"Accept-Encoding": "identity"} | ({"Range": wanted} if wanted else {})
        for _ in range(6):
            if urlsplit(url).scheme not in ("http", "https"):
                raise WanInputError(f"{self.name} leads to something that is not http or https.")
            if not self._allow_private:
                web.refuse_private_literal(url, what=self.name)
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise requests.ReadTimeout("out of time")
            response = self._session.get(
                url,
                headers=headers,
                timeout=(min(web.CONNECT_TIMEOUT_S, left_s), min(_HEAD_S, left_s)),
                allow_redirects=False,
                stream=True,
            )
            if response.status_code not in _REDIRECTS:
                return response
            response.close()
            url = self._next(url, response.headers.get("Location", ""))
        raise WanInputError(f"{self.name} leads round and round.")

    def _next(self, url: str, location: str) -> str:
        try:
            return urljoin(url, location)
        except ValueError:
            raise WanInputError(f"{self.name} leads to something that is no address.") from None


def _length(response: requests.Response) -> int | None:
    promised = response.headers.get("Content-Length", "")
    return int(promised) if _LENGTH.fullmatch(promised) else None
