# SPDX-License-Identifier: Apache-2.0
"""Read parts of an image behind a URL, as RunComfy does: anonymously, and from public hosts only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.http.addresses import refuse_private_literal
from airflow_provider_wan.http.fetch import Fetcher, FetchError, FetchRules, FilePart
from airflow_provider_wan.images.readers import shown_name

#: A file that is read from a server without ranges is held in memory up to this size.
_MOST_BYTES = 64 * 1024 * 1024


class UrlReader:
    """A file behind a URL, read in ranges.

    A server that ignores ranges, or refuses them, is asked once for the whole file, which is read as far as needed.

    :param url: http or https.
    :param allow_private: whether private, loopback and link-local addresses are read too.
    :param total_s: the most that all reads together may take, in seconds.
    """

    def __init__(self, url: str, *, allow_private: bool = False, total_s: float = 30.0) -> None:
        self._url = url
        self._deadline = time.monotonic() + total_s
        check = (lambda url: None) if allow_private else refuse_private_literal
        self._fetcher = Fetcher(FetchRules(check, refuse_private=not allow_private), pool_size=1)
        self._size: int | None = None
        self._validator: str | None = None
        self._whole: FilePart | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._head = bytearray()

    @property
    def name(self) -> str:
        """The address without anything secret in it."""
        return shown_name(self._url)

    @property
    def size_bytes(self) -> int | None:
        """The size, once something was read and the server gave it."""
        return self._size

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on; fewer only where the file ends.

        :raises WanInputError: the server refuses the file to an anonymous reader, or sends it encoded.
        :raises WanDownloadError: the address is private, or the server is down or too slow.
        """
        with self._errors():
            if self._whole is None:
                try:
                    part = self._fetcher.open(self._url, deadline=self._deadline, start=start, length=length)
                except FetchError as error:
                    if error.status == 416 and start:  # beyond the end
                        return b""
                    raise
                if not part.is_whole:
                    with part:
                        self._check_unchanged(part)
                        return part.read(length)
                self._whole, self._pieces = part, part.pieces()
                self._size = part.length
            return self._read_whole(start, length)

    def _check_unchanged(self, part: FilePart) -> None:
        self._size = part.size_bytes
        if self._validator is not None and part.validator != self._validator:
            raise FetchError("broken", "it was replaced while it was read")
        self._validator = part.validator

    def _read_whole(self, start: int, length: int) -> bytes:
        if start + length > _MOST_BYTES:
            raise FetchError("too large", f"more than {_MOST_BYTES:,} bytes, from a server without ranges")
        while len(self._head) < start + length:
            piece = next(self._pieces, None)
            if piece is None:
                if self._size is not None and len(self._head) < self._size:
                    raise FetchError("broken", "the connection ended early")
                self._size = len(self._head)
                break
            self._head += piece
        return bytes(self._head[start : start + length])

    def read_all(self, limit_bytes: int) -> bytes:
        """Return the whole file.

        :raises WanInputError: it has more than ``limit_bytes``, besides what :meth:`read` raises.
        :raises WanDownloadError: fewer bytes came than were promised, besides.
        """
        with self._errors():
            data = self._fetcher.read_all(self._url, deadline=self._deadline, limit_bytes=limit_bytes)
        self._size = len(data)
        return data

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FetchError as error:
            raise self._error_of(error) from None

    def _error_of(self, error: FetchError) -> WanDownloadError | WanInputError:
        answers = f"{self.name} answers an anonymous reader with {error}. Nothing was bought."
        if error.status is not None and 400 <= error.status < 500 and not error.is_transient:
            return WanInputError(
                f"{answers} Give a public or signed address, or image= with a gs:// address."
            )
        if error.status is not None:
            return WanDownloadError(answers, retry_after_s=error.retry_after_s)
        if error.kind == "broken":
            return WanDownloadError(
                f"{self.name} could not be read ({error}). Nothing was bought. RunComfy needs to read it too: check "
                "that it is public."
            )
        if error.kind == "refused":
            return WanDownloadError(f"{self.name}: {error}. Nothing was bought.", retry_helps=False)
        if error.kind == "unusable":
            return WanDownloadError(
                f"{self.name}: {error}. Nothing was bought. Put the image on another server, or give image= with a "
                "gs:// address.",
                retry_helps=False,
            )
        return WanInputError(f"{self.name}: {error}. Nothing was bought.")

    def close(self) -> None:
        """Close the connections."""
        if self._whole is not None:
            self._whole.close()
        self._fetcher.close()
