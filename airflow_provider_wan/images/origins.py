# SPDX-License-Identifier: Apache-2.0
"""Where an image lies: an object in a bucket, an address on the web, or a file.

One identity for all whose content can be told: the MD5 that Cloud Storage keeps of each object, so that it comes with
a listing and nothing is read for it, and a file that is uploaded again, renamed or moved counts as the same image.
Composite objects have no such sum; they are read through once for it. An address on the web is its own identity,
less what signs it: its content may change at any time without anybody being told.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Protocol

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, split_gs_uri, storage_errors
from airflow_provider_wan.images.check import MAX_SOURCE_BYTES
from airflow_provider_wan.images.dataset import ObjectFacts
from airflow_provider_wan.images.readers import RangedReader
from airflow_provider_wan.model_api.fingerprints import encoded_url
from airflow_provider_wan.model_api.inputs import canonical_url

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.images.http_file import UrlReader

#: What all reads of one image from the web together may take, in seconds: a host that drips is given up.
WEB_TOTAL_S = 60.0
#: A larger file from the web is not loaded: how large it is, is known only while it comes.
WEB_MOST_BYTES = 64 * 1024 * 1024


class Origin(Protocol):
    """An image that can be looked at and read."""

    #: Its address as it may be shown and remembered: without signature.
    address: str

    @property
    def identity(self) -> str | None:
        """What it counts as; None: its address."""

    @property
    def size_bytes(self) -> int | None:
        """Its size, where that is known without reading."""

    def reader(self) -> RangedReader:
        """Give a reader of parts of it."""

    def read_all(self) -> bytes:
        """Read it whole."""


def facts_of(blob: storage.Blob) -> ObjectFacts:
    """Take what a listing, or an object's metadata, tells of it."""
    md5 = base64.b64decode(blob.md5_hash).hex() if blob.md5_hash else None
    return ObjectFacts(blob.bucket.name, blob.name, int(blob.generation), int(blob.size or 0), md5)


def look_up_object(client: storage.Client, uri: str) -> ObjectFacts:
    """Ask a bucket about an object.

    :raises WanInputError: there is none, or it may not be looked at.
    :raises WanStorageError: the bucket can't be asked.
    """
    bucket, name = split_gs_uri(uri, name="image", needs_object=True)
    with _object_errors(uri, "Looking at"):
        blob = client.bucket(bucket).get_blob(name, timeout=TIMEOUT_S, retry=retry_policy())
    if blob is None:
        raise _vanished(uri)
    return facts_of(blob)


class BucketOrigin:
    """An image in a bucket, read at the generation that was looked at.

    :param facts: what the bucket says of it.
    """

    def __init__(self, client: storage.Client, facts: ObjectFacts) -> None:
        self._client = client
        self.facts = facts
        self.address = facts.uri
        self.size_bytes: int | None = facts.size_bytes
        self._md5 = facts.md5

    @property
    def identity(self) -> str:
        """The MD5 of the content."""
        if self._md5 is None:
            self._md5 = self._read_md5()
        return f"md5:{self._md5}"

    def reader(self) -> RangedReader:
        """Give a reader of parts of it."""
        return _BucketReader(self)

    def read_all(self) -> bytes:
        """Read it whole.

        :raises WanInputError: it is too large, or is not there any more.
        """
        _refuse_large(self.address, self.facts.size_bytes)
        return self.read(None, None)

    def read(self, start: int | None, end: int | None) -> bytes:
        """Read from ``start`` to ``end``, both included."""
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

    def _read_md5(self) -> str:
        """Read a composite object through, a piece at a time."""
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
        return self._client.bucket(self.facts.bucket).blob(self.facts.name)


class _BucketReader:
    def __init__(self, origin: BucketOrigin) -> None:
        self._origin = origin

    @property
    def size_bytes(self) -> int:
        return self._origin.facts.size_bytes

    def read(self, start: int, length: int) -> bytes:
        end = min(start + length, self.size_bytes) - 1
        return self._origin.read(start, end) if end >= start else b""


class _Summing:
    """A file that keeps nothing but the sum of what is written to it."""

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
        """Begin again, as the client does where it can't go on in the middle."""
        if at:
            raise OSError("a sum can only be begun again")
        self.__init__()  # type: ignore[misc]


class WebOrigin:
    """An image behind an ``http`` or ``https`` address, read as RunComfy will: anonymously.

    :param url: the address, which may be signed.
    :param allow_private: whether private, loopback and link-local addresses are read too.
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
        """Whether the address says more than it may in what is remembered."""
        return self.address != self.url

    def reader(self) -> UrlReader:
        """Give a reader of parts of it, whose time begins now; close it."""
        from airflow_provider_wan.images.http_file import UrlReader

        return UrlReader(self.url, allow_private=self._allow_private, total_s=self._total_s)

    def read_all(self) -> bytes:
        """Read it whole."""
        with closing(self.reader()) as reader:
            return reader.read_all(WEB_MOST_BYTES)


class FileOrigin:
    """An image on this machine's disk.

    :param path: where.
    """

    def __init__(self, path: str) -> None:
        self.address = path
        self._path = path
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """The MD5 of the content."""
        if self._identity is None:
            with _file_errors(self._path), open(self._path, "rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            self._identity = f"md5:{md5.hexdigest()}"
        return self._identity

    @property
    def size_bytes(self) -> int | None:
        """Its size."""
        with _file_errors(self._path):
            return self.reader().size_bytes

    def reader(self) -> RangedReader:
        """Give a reader of parts of it."""
        from airflow_provider_wan.images.readers import FileReader

        return FileReader(self._path)

    def read_all(self) -> bytes:
        """Read it whole."""
        _refuse_large(self._path, self.size_bytes)
        with _file_errors(self._path), open(self._path, "rb") as file:
            return file.read()


def md5_identity(data: bytes) -> str:
    """Give the identity of an image that is in memory."""
    return f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"


def _refuse_large(name: str, size_bytes: int | None) -> None:
    if size_bytes is not None and size_bytes > MAX_SOURCE_BYTES:
        raise WanInputError(
            f"{name} has {size_bytes:,} bytes; more than {MAX_SOURCE_BYTES:,} are not loaded."
        )


def _vanished(uri: str) -> WanInputError:
    return WanInputError(f"{uri}: there is no such object. Nothing was bought.")


@contextmanager
def _object_errors(uri: str, doing: str = "Reading") -> Iterator[None]:
    """What one object's trouble is must not look like the bucket's."""
    from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed

    with storage_errors(f"{doing} {uri}"):
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
            raise WanInputError(f"{uri} was replaced while it was looked at. Run it again.") from error


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WanInputError(f"{path} can't be read: {error.strerror or error}.") from error
