# SPDX-License-Identifier: Apache-2.0
"""The two buckets of the demo: one for photographs, one for videos."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHOTOS_BUCKET = "demo-photos"
VIDEOS_BUCKET = "demo-videos"
PHOTOS = Path(__file__).resolve().parent / "photos"


@dataclass(frozen=True, slots=True)
class Landed:
    """A video in the bucket, described by its record."""

    image_url: str
    uri: str
    object_name: str
    size_bytes: int
    request_id: str
    cost_usd: float | None
    seconds: float | None


class Gallery:
    """Photographs and videos in the sandbox's bucket, through Google's own client.

    :param bucket_url: of the emulator.
    """

    def __init__(self, bucket_url: str) -> None:
        # Imported on first use: Google's client takes a second to import.
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        self._bucket_url = bucket_url
        self._client = storage.Client(
            project="sandbox",
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": bucket_url},
        )

    def publish_photos(self) -> dict[str, str]:
        """Upload every photograph and return their public addresses by file name."""
        bucket = self._client.bucket(PHOTOS_BUCKET)
        addresses = {}
        for path in sorted(PHOTOS.glob("*.[jp][pn]g")):
            bucket.blob(path.name).upload_from_filename(str(path), timeout=30)
            addresses[path.name] = f"{self._bucket_url}/{PHOTOS_BUCKET}/{path.name}"
        return addresses

    def landed(self) -> list[Landed]:
        """Return the videos that have a record; a video without one is not complete yet."""
        found: dict[str, Landed] = {}
        for blob in self._client.list_blobs(VIDEOS_BUCKET, timeout=30):
            # Without the journal, which is in the same bucket.
            if not blob.name.endswith(".mp4.json"):
                continue
            record = json.loads(blob.download_as_bytes(timeout=30))
            for video in record.get("videos", []):
                found[video["uri"]] = _landed(record, video)
        return [found[uri] for uri in sorted(found)]

    def download(self, landed: Landed, folder: Path) -> Path:
        """Download a video; the client verifies its checksum."""
        path = folder / Path(landed.object_name).name
        blob = self._client.bucket(VIDEOS_BUCKET).blob(landed.object_name)
        blob.download_to_filename(str(path), checksum="crc32c", timeout=60)
        return path


def _landed(record: dict[str, Any], video: dict[str, Any]) -> Landed:
    from pendulum import parse

    times = [parse(record[name]) for name in ("submitted_at", "landed_at") if record.get(name)]
    return Landed(
        image_url=record.get("image") or record.get("inputs", {}).get("img_url", ""),
        uri=video["uri"],
        object_name=video["object_name"],
        size_bytes=video["size_bytes"],
        request_id=video["request_id"],
        cost_usd=record.get("cost_usd"),
        seconds=(times[1] - times[0]).total_seconds() if len(times) == 2 else None,  # type: ignore[operator, union-attr]
    )
