# SPDX-License-Identifier: Apache-2.0
"""The objects of a landing: what they are called, and how one is told from another."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from airflow_provider_wan.durable.record import LandedVideo, Record
from airflow_provider_wan.exceptions import WanConflictError
from airflow_provider_wan.hooks.gcs import check_object_name
from airflow_provider_wan.landing.sources import CONTENT_TYPE

if TYPE_CHECKING:
    from google.cloud import storage

IfExists = Literal["skip", "overwrite", "fail"]
META_REQUEST, META_INDEX, META_COUNT = "wan-request-id", "wan-video-index", "wan-video-count"
META_MODEL, META_FINGERPRINT = "wan-model-id", "wan-fingerprint"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the videos of one request go.

    :param object_name: name of the first video; one that ends with ``/`` gets ``{request_id}.mp4``. The
        second and third get ``-2``, ``-3`` before the suffix.
    :param if_exists: what to do where another video stands under that name: ``skip`` (only the same
        request or the same bytes count as there; anything else raises), ``overwrite`` (at the generation that
        was read), or ``fail`` (raises unless it is this request's).
    """

    bucket_name: str
    object_name: str
    if_exists: IfExists = "skip"

    def name_of(self, index: int, request_id: str) -> str:
        """Give the object name of a video.

        :param index: from 0.
        """
        name = self.object_name
        if name.endswith("/") or not name:
            name += f"{request_id}.mp4"
        if index:
            stem, suffix = posixpath.splitext(name)
            name = f"{stem}-{index + 1}{suffix}"
        return check_object_name(name)


def id_of(record: Record) -> str:
    """Give the request id of a record that has one."""
    if record.request_id is None:
        raise ValueError("a record without a request id has nothing to land")
    return record.request_id


def is_of(blob: storage.Blob, request_id: str, index: int) -> bool:
    """Tell whether an object says that it is this video of this request."""
    metadata = blob.metadata or {}
    return metadata.get(META_REQUEST) == request_id and metadata.get(META_INDEX) == str(index)


def metadata_of(record: Record, index: int, count: int) -> dict[str, str]:
    """Give what an object says of itself."""
    return {
        META_REQUEST: id_of(record),
        META_MODEL: record.model_id,
        META_FINGERPRINT: record.fingerprint,
        META_INDEX: str(index),
        META_COUNT: str(count),
    }


def landed_as(blob: storage.Blob, request_id: str) -> LandedVideo:
    """Give an object as a landed video of a request."""
    return LandedVideo(
        uri=f"gs://{blob.bucket.name}/{blob.name}",
        bucket=blob.bucket.name,
        object_name=blob.name,
        size_bytes=int(blob.size),
        crc32c=blob.crc32c,
        generation=int(blob.generation),
        content_type=blob.content_type or CONTENT_TYPE,
        request_id=request_id,
    )


def conflict(blob: storage.Blob | None, request_id: str, destination: Destination) -> WanConflictError:
    """Give the error about something else that stands under the name."""
    name = blob.name if blob is not None else destination.object_name
    owner = ((blob.metadata or {}) if blob is not None else {}).get(META_REQUEST)
    what = f"the video of request {owner}" if owner else "another object"
    return WanConflictError(
        f"gs://{destination.bucket_name}/{name} holds {what}, and not that of request {request_id}; nothing was "
        'overwritten. Choose another object_name, or if_exists="overwrite".',
        request_id=request_id,
    )
