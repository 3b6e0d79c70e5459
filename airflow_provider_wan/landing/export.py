# SPDX-License-Identifier: Apache-2.0
"""Export of a journal into a table: newline-delimited JSON, one file a day, one line for each record.

``{destination}/dt=2026-01-31/records.jsonl`` holds the records whose latest submit was on that day,
``{destination}/_schema.json`` the schema, and ``{destination}/_state.json`` the generation of each exported record.
The next export lists the journal, reads only the records that have changed, and writes only their days. The state is
written last: an export that was killed is repeated, and every step gives the same files again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.durable.journal import BucketJournal, VersionedRecord
from airflow_provider_wan.exceptions import WanConflictError
from airflow_provider_wan.hooks.gcs import call_limits, split_gs_uri, storage_errors, upload
from airflow_provider_wan.landing.table import day_of, line_of, table_schema

if TYPE_CHECKING:
    from google.cloud import storage


@dataclass(slots=True)
class _Day:
    """The changes of one day.

    :param rows: new lines, by fingerprint.
    :param gone: fingerprints whose line is removed: deleted records, and those that moved to another day.
    """

    rows: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)


class JournalExport:
    """Exports a journal.

    :param journal: ``gs://bucket/prefix`` of the records.
    :param destination: ``gs://bucket/prefix`` of the table.
    """

    def __init__(self, client: storage.Client, journal: str, destination: str, log: Logger) -> None:
        self._journal = BucketJournal(client, journal)
        bucket, prefix = split_gs_uri(destination, name="destination")
        self._bucket = client.bucket(bucket)
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""
        self._log = log

    def run(self) -> dict[str, Any]:
        """Export the records that have changed since the last export.

        :return: ``records`` in the journal, ``changed`` ones, ``removed`` ones, those that are ``unreadable``, and the
            ``days`` that were written.
        :raises WanConflictError: another export writes the same table.
        :raises WanStorageError: the bucket refuses, or does not answer.
        """
        text, state_generation = self._read("_state.json")
        state: dict[str, list[Any]] = json.loads(text or "{}")
        names: set[str] = set()
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for name, generation, submitted_at in self._journal.generations():
            names.add(name)
            if state.get(name, [None])[0] != generation:
                changed[submitted_at[:10]].append(name)
        removed = state.keys() - names
        days: defaultdict[str, _Day] = defaultdict(_Day)
        written: set[str] = set()
        for name in removed:
            days[state.pop(name)[1]].gone.add(name)
        unreadable = 0
        for some in changed.values():  # those of one day at a time, to hold few rows
            for name, found in self._journal.read_each(some):
                before = state.get(name)
                if not isinstance(found, VersionedRecord):
                    unreadable += 1
                    if found is not None:  # else it was deleted since the listing: the next export removes its line
                        self._log.warning("%s It is left out of the table.", found)
                    continue
                day = day_of(found.record)
                if before is not None and before[1] != day:
                    days[before[1]].gone.add(name)
                days[day].rows[name] = line_of(found.record)
                state[name] = [found.version, day]
            for day in [day for day, changes in days.items() if changes.rows]:
                self._write_day(day, days.pop(day))
                written.add(day)
        for day, changes in days.items():
            self._write_day(day, changes)
            written.add(day)
        if written or not state_generation:
            self._write("_schema.json", json.dumps(table_schema(), indent=1), "application/json", None)
            self._write("_state.json", json.dumps(state), "application/json", state_generation)
        return {
            "records": len(names),
            "changed": sum(map(len, changed.values())) - unreadable,
            "removed": len(removed),
            "unreadable": unreadable,
            "days": sorted(written),
        }

    def _write_day(self, day: str, changes: _Day) -> None:
        """Merge the changes of a day into its file."""
        name = f"dt={day}/records.jsonl"
        text, generation = self._read(name)
        lines = {json.loads(line)["fingerprint"]: line for line in text.splitlines()}
        merged = {key: line for key, line in lines.items() if key not in changes.gone} | changes.rows
        body = "".join(f"{line}\n" for _, line in sorted(merged.items()))
        self._write(name, body, "application/x-ndjson", generation)

    def _read(self, name: str) -> tuple[str, int]:
        """Return text and generation of an object; empty and 0 for a missing one."""
        from google.api_core.exceptions import NotFound

        blob = self._bucket.blob(self._prefix + name)
        with storage_errors(f"Reading gs://{self._bucket.name}/{blob.name}"):
            try:
                body: bytes = blob.download_as_bytes(**call_limits())
            except NotFound:
                return "", 0
        return body.decode(), int(blob.generation)

    def _write(self, name: str, body: str, content_type: str, replaces: int | None) -> None:
        """Write an object.

        :param replaces: the generation that it replaces, 0: there must be none; None: whatever is there.
        """
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket.blob(self._prefix + name)
        uri = f"gs://{self._bucket.name}/{blob.name}"
        with storage_errors(f"Writing {uri}"):
            try:
                upload(blob, body.encode(), content_type=content_type, if_generation_match=replaces)
            except PreconditionFailed as error:
                if self._read(name)[0] == body:  # our own write whose acknowledgement was lost
                    return
                raise WanConflictError(
                    f"{uri} was written by another export at the same time. Nothing is lost: run one export of a "
                    "table at a time (max_active_tis_per_dag=1), and clear this task."
                ) from error
