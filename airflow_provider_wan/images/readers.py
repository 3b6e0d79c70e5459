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
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlsplit

from airflow_provider_wan.exceptions import WanInputError, WanStorageError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, split_gs_uri, storage_errors
from airflow_provider_wan.model_api.fingerprints import encoded_url
from airflow_provider_wan.model_api.inputs import canonical_url

if TYPE_CHECKING:
    from google.cloud import storage

#: A larger source is not loaded.
MAX_SOURCE_BYTES = 256 * 1024 * 1024
#: A larger file from the web is not loaded: its size may be unknown until it has arrived.
WEB_MOST_BYTES = 64 * 1024 * 1024
#: What all reads of one image from the web together may take, in seconds.
WEB_TOTAL_S = 60.0
#: Read in one request from a remote file: it holds the whole header of most images.
BLOCK_BYTES = 16 * 1024
_READ_ON_BYTES = 1024 * 1024


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


class ImageReader(Protocol):
    """An image that can be read."""

    #: Its address as it may be shown and recorded: without signature.
    address: str

    @property
    def identity(self) -> str | None:
        """The identity of its content; None: its address identifies it."""

    @property
    def size_bytes(self) -> int | None:
        """Its size, if known without reading."""

    def open(self) -> IO[bytes]:
        """Open it as a seekable file that reads only the requested ranges; close it after use."""

    def read_all(self) -> bytes:
        """Read it whole."""


class RangedFile(io.RawIOBase):
    """A seekable file over something that returns ranges.

    :param read_range: returns up to ``length`` bytes from ``start``, fewer only where the file ends.
    :param size: returns the size of the file, None as long as it is unknown.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        size: Callable[[], int | None],
        close: Callable[[], None] | None = None,
    ) -> None:
        self._read_range = read_range
        self._size = size
        self._close = close
        self._at = 0

    @property
    def size_bytes(self) -> int | None:
        """The size of the file, if known."""
        return self._size()

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
            base = self._size()
            if base is None:
                base = self._at + len(self.readall())
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read one range."""
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Read the rest, in one range if the size is known."""
        pieces: list[bytes] = []
        while True:
            size = self._size()
            want = _READ_ON_BYTES if size is None else size - self._at
            data = self._next(want)
            pieces.append(data)
            if len(data) < want or self._at == self._size():
                return b"".join(pieces)

    def close(self) -> None:
        """Close what the ranges are read from."""
        if self._close is not None and not self.closed:
            self._close()
        super().close()

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
        blob = bucket_of(client, bucket).get_blob(name, timeout=TIMEOUT_S, retry=retry_policy())
    if blob is None:
        raise _vanished(uri)
    return facts_of(blob)


class BucketReader:
    """An object in a bucket, always read at the generation that was inspected.

    :param facts: its metadata.
    """

    def __init__(self, client: storage.Client, facts: ObjectFacts) -> None:
        self._client = client
        self.facts = facts
        self.address = facts.uri
        self._md5 = facts.md5

    @property
    def size_bytes(self) -> int | None:
        """Its size; None where it is stored compressed."""
        return None if self.facts.is_gzip else self.facts.size_bytes

    @property
    def identity(self) -> str:
        """The MD5 of the stored bytes."""
        if self._md5 is None:
            self._md5 = self._look_up_md5() or self._read_md5()
        return f"md5:{self._md5}"

    def open(self) -> IO[bytes]:
        """Open it as a seekable file; an object that is stored compressed is read whole."""
        if self.facts.is_gzip:
            return io.BytesIO(self.read_all())
        file = RangedFile(
            lambda start, length: self.read(start, start + length - 1), lambda: self.facts.size_bytes
        )
        return cast(IO[bytes], file)

    def read_all(self) -> bytes:
        """Read it whole.

        :raises WanInputError: it is too large, or no longer there.
        """
        _refuse_large(self.address, self.facts.size_bytes)
        data = self.read(None, None)
        return gunzip(data, self.address) if self.facts.is_gzip else data

    def read(self, start: int | None, end: int | None) -> bytes:
        """Read the stored bytes from ``start`` to ``end``, both included."""
        with _object_errors(self.address):
            data: bytes = self._blob().download_as_bytes(
                start=start,
                end=end,
                raw_download=True,
                if_generation_match=self.facts.generation,
                checksum="crc32c" if start is None else None,
                timeout=TIMEOUT_S,
                retry=retry_policy(),
            )
            return data

    def _look_up_md5(self) -> str | None:
        blob = self._blob()
        with _object_errors(self.address, "Looking at"):
            blob.reload(if_generation_match=self.facts.generation, timeout=TIMEOUT_S, retry=retry_policy())
        return facts_of(blob).md5

    def _read_md5(self) -> str:
        """Read a composite object, a piece at a time."""
        _refuse_large(self.address, self.facts.size_bytes)
        summing = _Summing()
        with _object_errors(self.address):
            self._blob().download_to_file(
                summing,
                raw_download=True,
                if_generation_match=self.facts.generation,
                checksum=None,
                timeout=TIMEOUT_S,
                retry=retry_policy(),
            )
        return summing.sum.hexdigest()

    def _blob(self) -> storage.Blob:
        return bucket_of(self._client, self.facts.bucket).blob(self.facts.name)


class _Summing:
    """A file that keeps only the MD5 of the bytes written to it."""

    def __init__(self) -> None:
        self.sum = hashlib.md5(usedforsecurity=False)
        self._at = 0

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        """Start again, as the client does where it cannot resume."""
        if at:
            raise OSError("a sum can only be started again")
        self.__init__()  # type: ignore[misc]


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


class WebReader:
    """An image behind an ``http`` or ``https`` address, read as RunComfy will: anonymously.

    :param url: the address, which may be signed.
    :param allow_private: whether private, loopback and link-local addresses are read too.
    :param total_s: what all reads together may take, in seconds.
    """

    identity: str | None = None

    def __init__(self, url: str, *, allow_private: bool = False, total_s: float = WEB_TOTAL_S) -> None:
        self.url = encoded_url(url)
        self.address = canonical_url(self.url)
        self.size_bytes: int | None = None
        self._allow_private = allow_private
        self._total_s = total_s

    @property
    def is_signed(self) -> bool:
        """Whether the address holds more than may be recorded."""
        return self.address != self.url

    def open(self) -> IO[bytes]:
        """Open it as a seekable file, whose time starts now."""
        from airflow_provider_wan.images.http_file import UrlReader

        reader = UrlReader(self.url, allow_private=self._allow_private, total_s=self._total_s)
        return cast(IO[bytes], RangedFile(reader.read, lambda: reader.size_bytes, reader.close))

    def read_all(self) -> bytes:
        """Read it whole."""
        from airflow_provider_wan.images.http_file import UrlReader

        reader = UrlReader(self.url, allow_private=self._allow_private, total_s=self._total_s)
        with closing(reader):
            return reader.read_all(WEB_MOST_BYTES)


class FileReader:
    """An image on the disk of this machine.

    :param path: its path.
    """

    def __init__(self, path: str) -> None:
        self.address = path
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """The MD5 of the content."""
        if self._identity is None:
            with _file_errors(self.address), open(self.address, "rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            self._identity = f"md5:{md5.hexdigest()}"
        return self._identity

    @property
    def size_bytes(self) -> int | None:
        """Its size."""
        with self.open() as file:
            return file.seek(0, io.SEEK_END)

    def open(self) -> IO[bytes]:
        """Open it."""
        with _file_errors(self.address):
            return open(self.address, "rb")

    def read_all(self) -> bytes:
        """Read it whole."""
        _refuse_large(self.address, self.size_bytes)
        with _file_errors(self.address), self.open() as file:
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
        raise WanInputError(
            f"{name} has {size_bytes:,} bytes; more than {MAX_SOURCE_BYTES:,} are not loaded."
        )


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
