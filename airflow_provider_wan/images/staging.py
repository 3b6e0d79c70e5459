# SPDX-License-Identifier: Apache-2.0
"""Prepared copies in a bucket, each named by the content of its source and the options of its preparation.

A second run finds a copy with one listing call, and reads and writes nothing. An image that fits as it is gets no copy
but an empty object next to the copies, a mark that records the same about it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks.gcs import (
    TIMEOUT_S,
    check_object_name,
    retry_policy,
    split_gs_uri,
    storage_errors,
)
from airflow_provider_wan.images.check import TooSmall
from airflow_provider_wan.images.prepare import RECIPE_VERSION, PreparedImage, parse_background

if TYPE_CHECKING:
    from google.cloud import storage

    from airflow_provider_wan.model_api.schema import ImageRules

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp"}
_MARK = "asis"
_META = "wan-prepared"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The preparation of images: the model's rules and the user's options.

    :param background: the colour behind transparent parts; a colour name or ``#rrggbb``.
    :param too_small: ``"upscale"`` or ``"reject"``.
    """

    rules: ImageRules
    background: str = "white"
    too_small: TooSmall = "upscale"

    def __post_init__(self) -> None:
        parse_background(self.background)
        if self.too_small not in ("upscale", "reject"):
            raise WanInputError('too_small must be "upscale" or "reject".')

    def key(self, identity: str) -> str:
        """Return the name of the prepared copy of a source; equal names are equal bytes."""
        rules = self.rules
        recipe = [
            RECIPE_VERSION,
            list(rules.formats),
            rules.alpha,
            rules.min_side_px,
            rules.max_side_px,
            rules.max_size_bytes_exclusive,
            list(parse_background(self.background)),
            self.too_small,
        ]
        if rules.min_aspect is not None or rules.max_aspect is not None:  # the names of Wan 2.2's copies stay
            recipe.append([rules.min_aspect, rules.max_aspect])
        return hashlib.sha256(json.dumps([identity, recipe]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Staged:
    """An image that was prepared, now or earlier.

    :param object_name: of the copy in the staging bucket; None: the source fits as it is.
    :param notes: remarks about the source; known only when it was prepared now.
    """

    object_name: str | None
    width: int
    height: int
    size_bytes: int
    sha256: str
    changes: tuple[str, ...]
    notes: tuple[str, ...] = ()


class Staging:
    """The place of prepared copies.

    :param client: of Cloud Storage.
    :param uri: ``gs://bucket/prefix``.
    """

    def __init__(self, client: storage.Client, uri: str) -> None:
        bucket, prefix = split_gs_uri(uri, name="staging")
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = client
        check_object_name(f"{self.prefix}x", name="staging")

    @property
    def uri(self) -> str:
        """Its address, without a slash at the end."""
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")

    def find(self, key: str, *, copy: bool = False) -> Staged | None:
        """Return the result of an earlier preparation, or None.

        :param copy: whether a copy is needed, and a mark is not enough.
        :raises WanStorageError: the bucket cannot be reached.
        """
        name = self._name(key)
        with storage_errors(f"Looking for a staged copy in {self.uri}"):
            blobs = self._client.list_blobs(
                self.bucket, prefix=f"{name}.", max_results=4, timeout=TIMEOUT_S, retry=retry_policy()
            )
            for blob in blobs:
                staged = _read(blob)
                if staged is not None and (staged.object_name or not copy):
                    return staged
        return None

    def put(self, key: str, prepared: PreparedImage, *, copy: bool = False) -> Staged:
        """Write a copy, or the mark of an unchanged image; an existing object stays as it is.

        :param copy: whether an unchanged image gets a copy too.
        :raises WanStorageError: it cannot be written.
        """
        is_copy = copy or not prepared.is_unchanged
        name = f"{self._name(key)}.{_SUFFIXES[prepared.format] if is_copy else _MARK}"
        staged = Staged(
            name if is_copy else None,
            prepared.width,
            prepared.height,
            prepared.size_bytes,
            prepared.sha256,
            prepared.changes,
            prepared.notes,
        )
        data = prepared.data if is_copy else b""
        self._write(name, data, prepared.content_type if is_copy else "application/octet-stream", staged)
        return staged

    def _write(self, name: str, data: bytes, content_type: str, staged: Staged) -> None:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._client.bucket(self.bucket).blob(name)
        blob.metadata = {_META: _written(staged)}
        with storage_errors(f"Staging gs://{self.bucket}/{name}"):
            try:
                blob.upload_from_string(
                    data,
                    content_type=content_type,
                    if_generation_match=0,
                    checksum="crc32c",
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            except PreconditionFailed:
                return  # another task was faster, or our own acknowledgement was lost: the bytes are the same

    def _name(self, key: str) -> str:
        return f"{self.prefix}{key[:2]}/{key}"


def _written(staged: Staged) -> str:
    return json.dumps(
        [staged.width, staged.height, staged.size_bytes, staged.sha256, list(staged.changes)],
        separators=(",", ":"),
    )


def _read(blob: storage.Blob) -> Staged | None:
    """Read what :func:`_written` wrote; None for an object that something else wrote."""
    try:
        about: Any = json.loads((blob.metadata or {})[_META])
        width, height, size_bytes, sha256, changes = about
        name = None if blob.name.endswith(f".{_MARK}") else str(blob.name)
        if name is not None and int(blob.size) != int(size_bytes):
            return None
        return Staged(name, int(width), int(height), int(size_bytes), str(sha256), tuple(changes))
    except (KeyError, TypeError, ValueError):
        return None
