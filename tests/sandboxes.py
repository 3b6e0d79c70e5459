# SPDX-License-Identifier: Apache-2.0
"""Types and values of the fixtures ``sandbox`` and ``bucket``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.cloud import storage

    from wan_sandbox.server import Sandbox

MODEL = "wan-ai/wan-2-2/image-to-video"
#: Inputs that the sandbox accepts without checking an image.
INPUTS = {"prompt": "a slow wave", "img_url": "https://images.example.com/a.jpg"}
#: Size of each video of the shared sandbox.
VIDEO_BYTES = 50_000


@dataclass(frozen=True)
class Bucket:
    """A bucket of the sandbox, and a real client for it."""

    client: storage.Client
    name: str
    sandbox: Sandbox

    @property
    def uri(self) -> str:
        return f"gs://{self.name}"

    def objects(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return its objects by name, read past all faults: size_bytes, generation, crc32c, metadata, writes."""
        shown = self.sandbox.bucket_control(f"objects?bucket={self.name}&prefix={prefix}")
        return {item["name"]: item for item in shown["objects"]}

    def read(self, name: str) -> bytes:
        data: bytes = self.client.bucket(self.name).blob(name).download_as_bytes()
        return data

    def put(self, name: str, data: bytes, content_type: str = "application/octet-stream", **metadata: str) -> int:
        """Upload an object; returns its generation."""
        blob = self.client.bucket(self.name).blob(name)
        blob.metadata = metadata or None
        blob.upload_from_string(data, content_type=content_type)
        return int(blob.generation)

    def calls(self) -> dict[str, int]:
        """Return the number of calls to the buckets, by kind."""
        counted: dict[str, int] = self.sandbox.bucket_control("calls")["calls"]
        return counted
