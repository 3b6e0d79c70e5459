# SPDX-License-Identifier: Apache-2.0
"""Reading a few parts of a file that may be far away, without reading the rest.

Everything that looks at headers goes through :class:`Window`: it keeps what was read, reads far files in
blocks so that a header costs one or two requests, and stops at a bound that no ordinary header reaches.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanInputError

#: Read at once at the start of a far file: one request that holds the whole header of most images.
FIRST_BLOCK_BYTES = 16 * 1024
#: Read at once elsewhere: enough for a segment's head, since bodies are skipped.
NEXT_BLOCK_BYTES = 4 * 1024
#: No header of an ordinary image comes near this; a file that needs more is hostile or broken.
MAX_HEADER_BYTES = 1024 * 1024


class RangedReader(Protocol):
    """A file of which any part can be read, such as an object in a bucket or a URL that honours Range."""

    @property
    def size_bytes(self) -> int | None:
        """The size of the whole file, or None where it is not known (yet)."""

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on; fewer only where the file ends."""


class BytesReader:
    """A file that is in memory already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        """The number of bytes."""
        return len(self._data)

    def read(self, start: int, length: int) -> bytes:
        """Return a slice."""
        return self._data[start : start + length]


class FileReader:
    """A file on disk, opened for each read so that nothing has to be closed."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    @property
    def size_bytes(self) -> int:
        """The size on disk."""
        return self._path.stat().st_size

    def read(self, start: int, length: int) -> bytes:
        """Return a part of the file."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read(length)


class Window:
    """What the header parsers read through: exact reads, with blocks kept and the total bounded.

    :param reader: the file.
    :param name: how messages call the image.
    :param size_bytes: the size where it is known from elsewhere (a listing); default the reader's own.
    """

    def __init__(self, reader: RangedReader, *, name: str, size_bytes: int | None = None) -> None:
        self._reader = reader
        self._blocks: list[tuple[int, bytes]] = []
        self._known_size = size_bytes
        self.name = name
        self.bytes_read = 0
        #: In memory or on disk: looking at the far end costs nothing.
        self.is_near = isinstance(reader, BytesReader | FileReader)

    @property
    def size_bytes(self) -> int | None:
        """The size of the whole file, if anybody knows it."""
        return self._known_size if self._known_size is not None else self._reader.size_bytes

    def peek(self, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``start`` on, fewer where the file ends."""
        kept = self._from_block(start, length)
        if kept is not None:
            return kept
        wanted = length if self.is_near else max(length, NEXT_BLOCK_BYTES if start else FIRST_BLOCK_BYTES)
        if self.size_bytes is not None:
            wanted = min(wanted, max(self.size_bytes - start, 0))
        if wanted == 0:
            return b""
        if self.bytes_read + wanted > MAX_HEADER_BYTES:
            raise WanInputError(
                f"{self.name}: its header goes on for more than {MAX_HEADER_BYTES:,} bytes, which no ordinary "
                f"image needs. Save it again as JPEG or PNG."
            )
        block = self._reader.read(start, wanted)
        self.bytes_read += len(block)
        if not self.is_near:
            self._blocks.append((start, block))
        return block[:length]

    def read(self, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``start`` on.

        :raises WanInputError: the file ends before that.
        """
        data = self.peek(start, length)
        if len(data) < length:
            raise WanInputError(
                f"{self.name}: the file is cut off inside its header (at byte {start + len(data):,}). "
                f"Upload it again, whole."
            )
        return data

    def _from_block(self, start: int, length: int) -> bytes | None:
        for block_start, block in reversed(self._blocks):
            offset = start - block_start
            if offset >= 0 and offset + length <= len(block):
                return block[offset : offset + length]
        return None


def shown_name(name: str) -> str:
    """Return a name that may be shown: an address loses its query, which may hold a signature."""
    if "://" not in name:
        return name
    parts = urlsplit(name)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
