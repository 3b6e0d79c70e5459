# SPDX-License-Identifier: Apache-2.0
"""The bytes of objects: small ones in memory, larger ones in files of a temporary directory."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from typing import IO, Any

IN_MEMORY_BYTES = 1024 * 1024
"""Above this size an object lives in a file, so that a thousand videos do not fill the memory."""

BLOCK_BYTES = 256 * 1024
"""How much is read or written at once; also the unit that a resumable upload is stored in."""


def b64(digest: bytes) -> str:
    """Return a digest in base64, as Cloud Storage writes it."""
    return base64.b64encode(digest).decode("ascii")


class Hashes:
    """The two checksums of Cloud Storage, computed incrementally."""

    def __init__(self) -> None:
        # Installed with google-cloud-storage; a sandbox without a bucket does not need it.
        import google_crc32c

        checksum: Any = google_crc32c.Checksum
        self._crc32c = checksum()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Append the next bytes."""
        self._crc32c.update(data)
        self._md5.update(data)

    @property
    def crc32c(self) -> str:
        """The checksum so far, base64 of its big-endian bytes."""
        return b64(self._crc32c.digest())

    @property
    def md5(self) -> str:
        """The MD5 so far, in base64."""
        return b64(self._md5.digest())


class Content:
    """Finished bytes that never change, shared by every object that contains them.

    Their file is deleted with the last object or download that uses it.
    """

    def __init__(self, *, size: int, crc32c: str, md5: str | None, data: bytes = b"", path: str | None = None):
        self.size = size
        self.crc32c = crc32c
        self.md5 = md5
        self.flipped_at: int | None = None
        self._data = data
        self._path = path
        self._keeps: Content | None = None  # keeps the file of another content alive
        if path is not None:
            weakref.finalize(self, _unlink, path).atexit = False  # the whole directory is deleted at exit

    def rotten(self, at: int | None = None) -> Content:
        """Return the same content with one byte flipped and unchanged checksums, like failing storage.

        :param at: index of the byte; default: the middle one.
        """
        other = Content(size=self.size, crc32c=self.crc32c, md5=self.md5, data=self._data)
        other._path, other._keeps = self._path, self
        other.flipped_at = self.size // 2 if at is None else at
        return other

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to ``stop`` (default: the end) in blocks."""
        at, end = start, self.size if stop is None else min(stop, self.size)
        with self._open() as source:
            if source is not None:
                source.seek(at)
            while at < end:
                want = min(BLOCK_BYTES, end - at)
                block = self._data[at : at + want] if source is None else source.read(want)
                if self.flipped_at is not None and at <= self.flipped_at < at + want:
                    block = flip(block, self.flipped_at - at)
                yield block
                at += want

    def _open(self) -> Any:
        return _NoFile() if self._path is None else open(self._path, "rb", buffering=0)


class _NoFile:
    """Takes the place of a file when the content is in memory."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None


def flip(block: bytes, at: int) -> bytes:
    """Invert one byte of a block."""
    return block[:at] + bytes([block[at] ^ 0xFF]) + block[at + 1 :]


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # the whole directory may already be deleted


class Spool:
    """Incoming bytes: append them, then seal them into a :class:`Content`."""

    def __init__(self, store: ContentStore) -> None:
        self._store = store
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._path: str | None = None
        self.size = 0
        self.hashes = Hashes()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self.hashes.update(data)
        self.size += len(data)
        if self._file is None and self.size <= IN_MEMORY_BYTES:
            self._memory += data
            return
        if self._file is None:
            self._path = self._store.new_path()
            self._file = open(self._path, "wb", buffering=0)  # noqa: SIM115
            self._write_all(bytes(self._memory))
            self._memory = bytearray()
        self._write_all(data)

    def _write_all(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def seal(self, *, with_md5: bool = True) -> Content:
        """Return the appended bytes as finished content.

        :param with_md5: False for a composite object, which has no MD5 in Cloud Storage.
        """
        if self._file is not None:
            self._file.close()
        path, self._path, self._file = self._path, None, None
        return Content(
            size=self.size,
            crc32c=self.hashes.crc32c,
            md5=self.hashes.md5 if with_md5 else None,
            data=bytes(self._memory),
            path=path,
        )

    def drop(self) -> None:
        """Discard the bytes."""
        if self._file is not None:
            self._file.close()
        if self._path is not None:
            _unlink(self._path)
        self._path, self._file, self._memory = None, None, bytearray()

    def __del__(self) -> None:
        self.drop()


class ContentStore:
    """The temporary directory of one emulator; deleted when it is closed or the process ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._dir: str | None = None
        self._cleanup: Any = None

    def new_path(self) -> str:
        """Return the path of a new file; the directory is created with the first one."""
        with self._lock:
            if self._dir is None:
                self._dir = tempfile.mkdtemp(prefix="wan-sandbox-bucket-")
                self._cleanup = weakref.finalize(self, shutil.rmtree, self._dir, True)
            self._count += 1
            return os.path.join(self._dir, str(self._count))

    def spool(self) -> Spool:
        """Return a spool for the bytes of one object."""
        return Spool(self)

    def close(self) -> None:
        """Delete all files."""
        if self._cleanup is not None:
            self._cleanup()
        self._dir = None
