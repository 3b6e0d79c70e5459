# SPDX-License-Identifier: Apache-2.0
"""Write the result of a preparation: chunk manifests of prepared rows, and the report of unusable images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.hooks.gcs import (
    TIMEOUT_S,
    check_object_name,
    retry_policy,
    split_gs_uri,
    storage_errors,
)

if TYPE_CHECKING:
    from google.cloud import storage

_SPOOLED_BYTES = 1024 * 1024
_CONTENT_TYPE = "application/x-ndjson"


class Manifests:
    """Writes prepared rows into objects of ``chunk_size`` lines each; the same rows give the same objects.

    :param uri: ``gs://bucket/prefix`` of the objects.
    """

    def __init__(self, client: storage.Client, uri: str, *, chunk_size: int) -> None:
        self._client = client
        self._bucket, prefix = split_gs_uri(uri, name="manifests")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        check_object_name(f"{self._prefix}chunk-00000.jsonl", name="manifests")
        self._chunk_size = chunk_size
        self._lines: list[str] = []
        self._report = tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES)  # noqa: SIM115 - closed by finish()
        #: Addresses of the chunks so far.
        self.chunks: list[str] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a prepared row."""
        self._lines.append(_line(row))
        if len(self._lines) >= self._chunk_size:
            self._write_chunk()

    def report(self, problem: Mapping[str, Any]) -> None:
        """Add a line to the report."""
        self._report.write(_line(problem).encode("utf-8", "backslashreplace"))

    def finish(self) -> str:
        """Write the remaining rows and the report; return the address of the report."""
        if self._lines:
            self._write_chunk()
        size = self._report.tell()
        self._report.seek(0)
        uri = self._write("report.jsonl", self._report, size)
        self._report.close()
        return uri

    def _write_chunk(self) -> None:
        import io

        body = "".join(self._lines).encode("utf-8", "backslashreplace")
        self._lines.clear()
        self.chunks.append(self._write(f"chunk-{len(self.chunks):05}.jsonl", io.BytesIO(body), len(body)))

    def _write(self, name: str, file: Any, size: int) -> str:
        uri = f"gs://{self._bucket}/{self._prefix}{name}"
        with storage_errors(f"Writing {uri}"):
            self._client.bucket(self._bucket).blob(self._prefix + name).upload_from_file(
                file,
                size=size,
                content_type=_CONTENT_TYPE,
                checksum="crc32c",
                timeout=TIMEOUT_S,
                retry=retry_policy(),
            )
        return uri


def _line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":")) + "\n"
