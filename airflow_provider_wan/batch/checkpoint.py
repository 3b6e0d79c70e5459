# SPDX-License-Identifier: Apache-2.0
"""What a batch keeps in the bucket besides journal and videos: its manifest, its plan, and a note to itself; and, for
people, where each image stands while it is under way.

The note is for going on after a wait in the triggerer. It holds what the journal does not tell: how images ended that
nothing was bought for, and how often requests failed in this try. Without it nothing is lost or bought twice; a
refused image would only be offered again.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.batch.results import ImageResult
from airflow_provider_wan.batch.saved_plan import SavedPlan
from airflow_provider_wan.batch.values import Checkpoint, Retries
from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, split_gs_uri, storage_errors

if TYPE_CHECKING:
    from google.cloud import storage

_IN_MEMORY_BYTES = 4 * 1024 * 1024
_ODD = re.compile(r"[^\w.:+=-]+")


class BatchFiles:
    """Reads and writes them.

    :param client: a Cloud Storage client.
    :param journal: ``gs://bucket/prefix`` of the journal; notes lie in a folder of it that no listing of records sees.
    :param watcher: the task instance.
    """

    def __init__(self, client: storage.Client, journal: str, watcher: str) -> None:
        self._client = client
        self._bucket, prefix = split_gs_uri(journal, name="journal")
        folder = prefix.rstrip("/") + "/" if prefix else ""
        note = f"{folder}_notes/{hashlib.sha256(watcher.encode()).hexdigest()[:24]}"
        self._note, self._standing, self._plan = f"{note}.json", f"{note}.jsonl", f"{note}.plan.jsonl"
        self._manifest = folder + "_manifests/" + "/".join(_ODD.sub("_", part) for part in watcher.split("/"))

    @property
    def manifest_uri(self) -> str:
        """Where the manifest lies."""
        return f"gs://{self._bucket}/{self._manifest}.jsonl"

    @property
    def standing_uri(self) -> str:
        """Where it is told how far each image is."""
        return f"gs://{self._bucket}/{self._standing}"

    def write_manifest(self, endings: Iterable[ImageResult]) -> str:
        """Write how every image ended, a line each; gives the address."""
        self._write_lines(f"{self._manifest}.jsonl", (ending.to_json() for ending in endings))
        return self.manifest_uri

    def write_standing(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write where each image stands, a line each."""
        plain = (json.dumps(line, separators=(",", ":")) for line in lines)
        self._write_lines(self._standing, plain, retry_for_s=10.0)

    def write_plan(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write what this batch is going to do, a line each."""
        self._write_lines(self._plan, (json.dumps(line, default=str) for line in lines))

    def read_plan(self, log: Logger) -> SavedPlan | None:
        """Read what this task instance was going to do before; None where nothing that can be used tells it."""
        try:
            body = self._read(self._plan)
            return None if body is None else SavedPlan(json.loads(line) for line in body.splitlines())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("What this task planned before can't be used: %s", error)
            return None

    def _read(self, name: str) -> bytes | None:
        from google.api_core.exceptions import NotFound

        blob = self._client.bucket(self._bucket).blob(name)
        with storage_errors(f"Reading gs://{self._bucket}/{name}"):
            try:
                return bytes(blob.download_as_bytes(timeout=TIMEOUT_S, retry=retry_policy()))
            except NotFound:
                return None

    def _write_lines(self, name: str, lines: Iterable[str], *, retry_for_s: float | None = None) -> None:
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as file:
            for line in lines:
                file.write(line.encode() + b"\n")
            size = file.tell()
            file.seek(0)
            blob = self._client.bucket(self._bucket).blob(name)
            with storage_errors(f"Writing gs://{self._bucket}/{name}"):
                blob.upload_from_file(
                    file,
                    size=size,
                    content_type="application/x-ndjson",
                    timeout=TIMEOUT_S,
                    retry=retry_policy(retry_for_s),
                )

    def write_note(self, memory: Checkpoint, more: Mapping[str, Any]) -> None:
        """Note what the journal does not tell.

        :param more: plain JSON values to go on with, such as the price.
        """
        note = {
            **more,
            "started_at": memory.started_at,
            "failures": dict(memory.failures),
            "done_before": memory.done_before,
            "inherited": sorted(memory.inherited),
            "troubles": memory.troubles.as_dict(),
            "unwritten": memory.unwritten,
            "endings": {one: ending.as_dict() for one, ending in memory.endings.items()},
        }
        blob = self._client.bucket(self._bucket).blob(self._note)
        with storage_errors(f"Writing gs://{self._bucket}/{self._note}"):
            blob.upload_from_string(
                json.dumps(note), content_type="application/json", timeout=TIMEOUT_S, retry=retry_policy()
            )

    def read_note(self, log: Logger) -> tuple[Checkpoint, Mapping[str, Any]] | None:
        """Read the note; None where there is none that can be used."""
        try:
            body = self._read(self._note)
            if body is None:
                return None
            note = json.loads(body)
            endings = {one: ImageResult.from_dict(plain) for one, plain in note["endings"].items()}
            memory = Checkpoint(
                float(note["started_at"]),
                endings,
                Counter(note["failures"]),
                set(note["inherited"]),
                int(note["done_before"]),
                Retries.from_dict(note.get("troubles")),
                dict(note.get("unwritten") or {}),
            )
            return memory, note
        except (WanError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("What this batch noted before its wait can't be used: %s", error)
            return None
