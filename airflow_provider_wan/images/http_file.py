# SPDX-License-Identifier: Apache-2.0
"""Read parts of an image behind a URL, as RunComfy does: anonymously, and from public hosts only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError
from airflow_provider_wan.http.addresses import refuse_private_literal
from airflow_provider_wan.http.fetch import Fetcher, FetchError, FetchRules

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
        self._deadline = time.monotonic() + total_s
        check = (lambda url: None) if allow_private else refuse_private_literal
        self._fetcher = Fetcher(FetchRules(check, refuse_private=not allow_private), pool_size=1)
        self._size: int | None = None
        self._head: bytes | None = None

    @property
    def name(self) -> str:
        """The address without anything secret in it."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def size_bytes(self) -> int | None:
        """The size, once something was read and the server gave it."""
        return self._size

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on; fewer only where the file ends.

        :raises WanInputError: the server refuses the file to an anonymous reader, or sends it encoded.
        :raises WanDownloadError: the address is private, or the server is out or too slow.
        """
        if self._head is not None:
            return self._head[start : start + length]
        with self._errors():
            try:
                part = self._fetcher.open(self._url, deadline=self._deadline, start=start, length=length)
            except FetchError as error:
                if error.status == 416:
                    return b""
                raise
            with part:
                if not part.is_whole:
                    self._size = part.size_bytes
                    return part.read(length)
                enough = max(_WITHOUT_RANGES_BYTES, start + length)
                self._head = part.read(enough)
                ended = len(self._head) < enough
                self._size = part.length if part.length is not None else len(self._head) if ended else None
                return self._head[start : start + length]

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
        self._fetcher.close()
