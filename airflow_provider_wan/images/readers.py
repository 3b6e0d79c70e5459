# SPDX-License-Identifier: Apache-2.0
"""Where an image is stored, and how it is read: an object in a bucket, a web address, or a local file.

All of them can be read whole, or opened as a seekable file that reads ranges, which Pillow needs for a header.

Where the content can be known, it identifies the image: the MD5 that Cloud Storage keeps of each object, so nothing is
read for it, and a file that is uploaded again, renamed or moved counts as the same image. Composite objects have none
and are read once for it. A web address identifies itself, without its signature: its content may change at any time
without notice.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanDownloadError, WanInputError, WanStorageError
from airflow_provider_wan.hooks.gcs import call_limits, split_gs_uri, storage_errors
from airflow_provider_wan.http.fetch import Fetcher, FetchError, FetchRules, FilePart
from airflow_provider_wan.model_api.fingerprints import canonical_url, encoded_url

if TYPE_CHECKING:
    from google.cloud import storage

#: A larger source is not loaded.
MAX_SOURCE_BYTES = 256 * 1024 * 1024
#: A larger file from the web is not loaded: its size may be unknown until it has arrived.
WEB_MOST_BYTES = 64 * 1024 * 1024
#: What the reads of one image from the web may take together, in seconds.
WEB_TOTAL_S = 60.0
_READ_ON_BYTES = 1024 * 1024
#: Read in one request of a composite object, whose MD5 is computed here.
_COMPOSITE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """The metadata of an object in a bucket, known without reading it.

    :param md5: of the stored bytes, in hex; None if the bucket did not say: composite objects have none, and listings
        leave it out for objects with a customer-managed key.
    :param is_gzip: whether it is stored compressed (``Content-Encoding: gzip``).
    """

    bucket: str
    name: str
    generation: int
    size_bytes: int
    md5: str | None
    is_gzip: bool = False

    @property
    def uri(self) -> str:
        """Its ``gs://`` address."""
        return f"gs://{self.bucket}/{self.name}"


class ImageReader:
    """An image that can be read, whole or in ranges; it is closed after either.

    :ivar address: its address as it may be shown and recorded: without signature.
    """

    address: str

    @property
    def identity(self) -> str | None:
        """The identity of its content; None: its address identifies it."""
        return None

    @property
    def needs_copy(self) -> bool:
        """Whether it is sent from a copy in a bucket although it fits: a file, or a link that may not be kept."""
        return False

    @property
    def size_bytes(self) -> int | None:
        """Its size, if known so far."""
        raise NotImplementedError

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on; fewer only where the file ends."""
        raise NotImplementedError

    def read_all(self) -> bytes:
        """Read it whole.

        :raises WanInputError: it is too large, or no longer there.
        """
        raise NotImplementedError

    def open(self) -> IO[bytes]:
        """Return it as a seekable file that reads only the requested ranges."""
        return cast(IO[bytes], RangedFile(self.read, lambda: self.size_bytes))

    def close(self) -> None:
        """Close its connections; the next read opens them again."""


class RangedFile(io.RawIOBase):
    """A seekable file over something that returns ranges.

    :param read_range: returns up to ``length`` bytes from ``start``, and none only at the end of the file.
    :param size: returns the size of the file, None as long as it is unknown.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: Callable[[], int | None]) -> None:
        self._read_range = read_range
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; nothing is read, unless the end is asked for and unknown."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        if base is None:
            size = self._size()
            base = self._at + len(self.readall()) if size is None else size
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read one range."""
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Read the rest, in one range if the size is known."""
        size = self._size()
        length = _READ_ON_BYTES if size is None else size - self._at
        return b"".join(iter(lambda: self._next(length), b""))

    def _next(self, length: int) -> bytes:
        size = self._size()
        length = length if size is None else min(length, size - self._at)
        data = self._read_range(self._at, length) if length > 0 else b""
        self._at += len(data)
        return data


# -- buckets ---------------------------------------------------------------------------------------------------------


def facts_of(blob: storage.Blob) -> ObjectFacts:
    """Return the facts of an object from a listing, or from its metadata."""
    md5 = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else None
    is_gzip = blob.content_encoding == "gzip"
    return ObjectFacts(blob.bucket.name, blob.name, int(blob.generation), int(blob.size or 0), md5, is_gzip)


def bucket_of(client: storage.Client, name: str) -> storage.Bucket:
    """Return the handle of a bucket; reads are billed to the quota project of the credentials, if they have one.

    A bucket where the requester pays cannot be read otherwise (Cloud Storage, "Requester Pays").
    """
    return client.bucket(name, user_project=getattr(client._credentials, "quota_project_id", None))


def look_up_object(client: storage.Client, uri: str) -> ObjectFacts:
    """Return the metadata of an object.

    :raises WanInputError: it does not exist, or reading it is not allowed.
    :raises WanStorageError: the bucket cannot be reached.
    """
    bucket, name = split_gs_uri(uri, name="image", needs_object=True)
    with _object_errors(uri, "Looking at"):
        blob = bucket_of(client, bucket).get_blob(name, **call_limits())
    if blob is None:
        raise _vanished(uri)
    return facts_of(blob)


class BucketReader(ImageReader):
    """An object in a bucket, always read at the generation that was inspected."""

    def __init__(self, client: storage.Client, facts: ObjectFacts) -> None:
        self._client = client
        self.facts = facts
        self.address = facts.uri
        self._plain: bytes | None = None

    @property
    def size_bytes(self) -> int | None:
        """Its size; None where it is stored compressed."""
        return None if self.facts.is_gzip else self.facts.size_bytes

    @property
    def identity(self) -> str:
        """The MD5 of the stored bytes."""
        if self.facts.md5 is None:
            self.facts = replace(self.facts, md5=self._look_up_md5() or self._read_md5())
        return f"md5:{self.facts.md5}"

    def read(self, start: int, length: int) -> bytes:
        """Read a range; an object that is stored compressed is read whole for it."""
        if not self.facts.is_gzip:
            return self._stored(start, length)
        if self._plain is None:
            self._plain = self.read_all()
        return self._plain[start : start + length]

    def read_all(self) -> bytes:
        """Read it whole."""
        _refuse_large(self.address, self.facts.size_bytes)
        data = self._stored()
        return gunzip(data, self.address) if self.facts.is_gzip else data

    def _stored(self, start: int | None = None, length: int = 0) -> bytes:
        """Read the stored bytes, all or a range."""
        with _object_errors(self.address):
            data: bytes = self._blob().download_as_bytes(
                start=start,
                end=None if start is None else start + length - 1,
                raw_download=True,
                if_generation_match=self.facts.generation,
                checksum="crc32c" if start is None else None,
                **call_limits(),
            )
            return data

    def _look_up_md5(self) -> str | None:
        blob = self._blob()
        with _object_errors(self.address, "Looking at"):
            blob.reload(if_generation_match=self.facts.generation, **call_limits())
        return facts_of(blob).md5

    def _read_md5(self) -> str:
        """Read a composite object, a piece at a time."""
        _refuse_large(self.address, self.facts.size_bytes)
        md5 = hashlib.md5(usedforsecurity=False)
        for start in range(0, self.facts.size_bytes, _COMPOSITE_BYTES):
            md5.update(self._stored(start, min(_COMPOSITE_BYTES, self.facts.size_bytes - start)))
        return md5.hexdigest()

    def _blob(self) -> storage.Blob:
        return bucket_of(self._client, self.facts.bucket).blob(self.facts.name)


def gunzip(data: bytes, name: str) -> bytes:
    """Decompress an object that is stored with ``Content-Encoding: gzip``.

    :raises WanInputError: it is not gzip, or expands beyond the size limit.
    """
    inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = inflate.decompress(data, MAX_SOURCE_BYTES)
    except zlib.error as error:
        raise WanInputError(f"{name} has Content-Encoding: gzip, and its content is not gzip.") from error
    if inflate.unconsumed_tail:
        raise WanInputError(f"{name} expands to more than {MAX_SOURCE_BYTES:,} bytes, which are not loaded.")
    if not inflate.eof:
        raise WanInputError(f"{name}: its compressed content is cut off. Upload it again.")
    return plain


# -- web and disk ----------------------------------------------------------------------------------------------------


class WebReader(ImageReader):
    """An image behind an ``http`` or ``https`` address, read as RunComfy will: anonymously.

    Until it is closed, one request brings the file, which is read as far as needed: a header takes the start of it.

    :param url: the address, which may be signed.
    :param allow_private: whether private, loopback and link-local addresses are read too.
    :param total_s: what all reads until it is closed may take together, in seconds.
    """

    def __init__(self, url: str, *, allow_private: bool = False, total_s: float = WEB_TOTAL_S) -> None:
        self.url = encoded_url(url)
        self.address = canonical_url(self.url)
        self._rules = FetchRules(refuse_private=not allow_private)
        self._total_s = total_s
        self._deadline = 0.0
        self._fetcher: Fetcher | None = None
        self._size: int | None = None
        self._file: FilePart | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._head = bytearray()

    @property
    def needs_copy(self) -> bool:
        """Whether the address is signed: it may not be recorded."""
        return self.address != self.url

    @property
    def size_bytes(self) -> int | None:
        """The size, once something was read and the server gave it."""
        return self._size

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start`` on; fewer only where the file ends.

        :raises WanInputError: the server refuses the file to an anonymous reader, or it would take more than 64 MiB.
        :raises WanDownloadError: the address is private, or the server is down, too slow, or sends the file encoded.
        """
        with self._fetching() as fetcher:
            if start + length > WEB_MOST_BYTES:
                raise FetchError("too large", f"more than {WEB_MOST_BYTES:,} bytes are not read from the web")
            if self._file is None:
                self._file = fetcher.open(self.url, deadline=self._deadline)
                self._pieces, self._size = self._file.pieces(), self._file.length
            while len(self._head) < start + length:
                piece = next(self._pieces, None)
                if piece is None:
                    if self._size is not None and len(self._head) < self._size:
                        raise FetchError("broken", "the connection ended early")
                    self._size = len(self._head)
                    break
                self._head += piece
            return bytes(self._head[start : start + length])

    def read_all(self, limit_bytes: int = WEB_MOST_BYTES) -> bytes:
        """Return the whole file.

        :param limit_bytes: a larger one is not loaded; default 64 MiB.
        :raises WanInputError: it is larger, besides what :meth:`read` raises.
        :raises WanDownloadError: fewer bytes came than were promised, besides.
        """
        try:
            with self._fetching() as fetcher:
                data = fetcher.read_all(self.url, deadline=self._deadline, limit_bytes=limit_bytes)
        finally:
            self.close()
        self._size = len(data)
        return data

    @contextmanager
    def _fetching(self) -> Iterator[Fetcher]:
        if self._fetcher is None:
            self._fetcher = Fetcher(self._rules, pool_size=1)
            self._deadline = time.monotonic() + self._total_s
        try:
            yield self._fetcher
        except FetchError as error:
            raise self._error_of(error) from None

    def _error_of(self, error: FetchError) -> WanDownloadError | WanInputError:
        name = shown_name(self.url)
        about = f"{name}: {error}. Nothing was bought."
        if error.status is not None:
            about = f"{name} answers an anonymous reader with {error}. Nothing was bought."
            if error.is_transient or not 400 <= error.status < 500:
                return WanDownloadError(about, retry_after_s=error.retry_after_s)
            return WanInputError(f"{about} Give a public or signed address, or image= with a gs:// address.")
        if error.kind == "broken":
            return WanDownloadError(
                f"{name} could not be read ({error}). Nothing was bought. RunComfy needs to read it too: check that "
                "it is public."
            )
        if error.kind == "refused":
            return WanDownloadError(about, retry_helps=False)
        if error.kind == "unusable":
            advice = "Put the image on another server, or give image= with a gs:// address."
            return WanDownloadError(f"{about} {advice}", retry_helps=False)
        return WanInputError(about)

    def close(self) -> None:
        """Close the connections; the next read gets its full time limit again."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._head.clear()
        if self._fetcher is not None:
            self._fetcher.close()
            self._fetcher = None


class FileReader(ImageReader):
    """An image on the disk of this machine."""

    def __init__(self, path: str) -> None:
        self.address = path

    @property
    def needs_copy(self) -> bool:
        """Return true."""
        return True

    @cached_property
    def identity(self) -> str:
        """The MD5 of the content."""
        with _file_errors(self.address), open(self.address, "rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
        return f"md5:{md5.hexdigest()}"

    @property
    def size_bytes(self) -> int | None:
        """Its size."""
        with _file_errors(self.address):
            return os.path.getsize(self.address)

    def read(self, start: int, length: int) -> bytes:
        """Read a range."""
        with _file_errors(self.address), open(self.address, "rb") as file:
            file.seek(start)
            return file.read(length)

    def read_all(self) -> bytes:
        """Read it whole."""
        _refuse_large(self.address, self.size_bytes)
        with _file_errors(self.address), open(self.address, "rb") as file:
            return file.read()


def md5_identity(data: bytes) -> str:
    """Return the identity of an image that is in memory."""
    return f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def shown_name(name: str) -> str:
    """Return a name that may be shown: an address without its query, which may hold a signature."""
    if "://" not in name:
        return name
    parts = urlsplit(name)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _refuse_large(name: str, size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes > MAX_SOURCE_BYTES:
        raise WanInputError(f"{name} has {size_bytes:,} bytes; more than {MAX_SOURCE_BYTES:,} are not loaded.")


def _vanished(uri: str) -> WanInputError:
    return WanInputError(f"{uri}: there is no such object. Nothing was bought.")


@contextmanager
def bucket_errors(what: str) -> Iterator[None]:
    """Raise errors about a bucket; where the requester pays, say how to name the project."""
    from google.api_core.exceptions import BadRequest

    with storage_errors(what):
        try:
            yield
        except BadRequest as error:
            if "requester pays" not in str(error).lower():
                raise
            raise WanStorageError(
                f"{what} failed: in this bucket the requester pays. Name the project that is billed as the quota "
                "project of the Google credentials (GOOGLE_CLOUD_QUOTA_PROJECT, or the connection's "
                "quota_project_id).",
                retry_helps=False,
            ) from error


@contextmanager
def _object_errors(uri: str, doing: str = "Reading") -> Iterator[None]:
    """Raise errors about one object as input errors: they do not concern the whole bucket."""
    from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed

    with bucket_errors(f"{doing} {uri}"):
        try:
            yield
        except Forbidden as error:
            raise WanInputError(
                f"{doing} {uri} is not allowed: the credentials need roles/storage.objectViewer on it. Nothing was "
                "bought."
            ) from error
        except NotFound as error:
            raise _vanished(uri) from error
        except PreconditionFailed as error:
            raise WanInputError(f"{uri} was replaced while it was read. Run the task again.") from error


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WanInputError(f"{path} can't be read: {error.strerror or error}.") from error
