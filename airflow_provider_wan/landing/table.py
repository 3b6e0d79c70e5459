# SPDX-License-Identifier: Apache-2.0
"""Records as rows of a table: the schema, the row of a record, and the files that tasks leave.

A task writes the records of its requests at its end, as ``{records}/runs/dt=2026-01-31/{name}.jsonl``: one file for
each day of submits, which every try of the task replaces. An export writes beside that folder.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from logging import Logger
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.durable.record import Record, Stage
from airflow_provider_wan.hooks.gcs import split_gs_uri, storage_errors, upload

if TYPE_CHECKING:
    from google.cloud import storage

#: For how long the write of one file is retried, in seconds.
_RETRY_FOR_S = 20.0
#: The columns as name, type and description; BigQuery's types. A type in brackets is repeated.
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    (
        "fingerprint",
        "STRING",
        "Identity of the video: model, inputs, source image, variation. Unique.",
    ),
    (
        "request_id",
        "STRING",
        "RunComfy's id of the latest request; null while the outcome of its submit is unknown.",
    ),
    ("model_id", "STRING", "Model of RunComfy's API."),
    ("stage", "STRING", "intent, submitted, succeeded, failed, cancelled or landed."),
    ("image", "STRING", "Address of the source image, without signature."),
    ("variation", "STRING", "The user's own text that asks for another take."),
    ("inputs", "STRING", "The inputs as sent, as JSON."),
    ("submitted_at", "TIMESTAMP", "When the request was submitted."),
    ("created_at", "TIMESTAMP", "When RunComfy created the request, by its clock."),
    ("finished_at", "TIMESTAMP", "When it finished, by RunComfy's clock."),
    ("landed_at", "TIMESTAMP", "When its videos were first in the bucket."),
    ("seconds_to_land", "FLOAT64", "From submitted_at to landed_at."),
    ("cost_usd", "FLOAT64", "What RunComfy charged for the request; null if not known."),
    ("error", "STRING", "Why the request failed."),
    ("usable", "BOOL", "Whether the videos are in the bucket and no check found something wrong with them."),
    ("verdict", "STRING", "good or bad; null if the videos were not checked."),
    ("reasons", "[STRING]", "The names of the checks that found something wrong."),
    ("rejected", "BOOL", "Whether the videos are in quarantine."),
    ("uri", "STRING", "Address of the first video."),
    ("size_bytes", "INT64", "Size of all videos."),
    ("width", "INT64", "Width of the first video in pixels."),
    ("height", "INT64", "Its height in pixels."),
    ("duration_s", "FLOAT64", "Its duration in seconds."),
    ("frame_rate", "FLOAT64", "Its frames a second on average."),
    ("codec", "STRING", "Its video codec."),
    ("has_audio", "BOOL", "Whether it has audio."),
    ("black_share", "FLOAT64", "Share of its frames that are black."),
    ("still_share", "FLOAT64", "Its longest stretch without a visible change, as a share of its frames."),
    ("first_frame_likeness", "FLOAT64", "Structural similarity of its beginning and the source image."),
    ("digital_source_type", "STRING", "IPTC's term for how the videos were made."),
)
_FACTS = ("width", "height", "duration_s", "frame_rate", "codec", "has_audio", "black_share", "still_share")


def table_schema() -> list[dict[str, str]]:
    """Return the schema as BigQuery's JSON schema files have it. The column ``dt`` is in the names of the files."""
    return [
        {
            "name": name,
            "type": kind.strip("[]"),
            "mode": "REPEATED" if kind.startswith("[") else "REQUIRED" if name == "fingerprint" else "NULLABLE",
            "description": description,
        }
        for name, kind, description in _COLUMNS
    ]


def row_of(record: Record) -> dict[str, Any]:
    """Return the row of a record, with every column."""
    first = record.videos[0] if record.videos else None
    facts = (first.facts if first is not None else None) or {}
    return {
        "fingerprint": record.fingerprint,
        "request_id": record.request_id,
        "model_id": record.model_id,
        "stage": str(record.stage),
        "image": record.image,
        "variation": record.variation,
        "inputs": json.dumps(dict(record.inputs)),
        "submitted_at": record.submitted_at,
        "created_at": record.created_at,
        "finished_at": record.finished_at,
        "landed_at": record.landed_at,
        "seconds_to_land": _seconds_between(record.submitted_at, record.landed_at),
        "cost_usd": record.cost_usd,
        "error": record.error,
        "usable": record.stage is Stage.LANDED and not record.is_bad,
        "verdict": record.verdict,
        "reasons": list(record.reasons),
        "rejected": record.is_rejected,
        "uri": first.uri if first is not None else None,
        "size_bytes": sum(video.size_bytes for video in record.videos) if first is not None else None,
        **{name: facts.get(name) for name in (*_FACTS, "first_frame_likeness")},
        "digital_source_type": record.digital_source_type,
    }


def line_of(record: Record) -> str:
    """Return the row of a record as one line of JSON."""
    return json.dumps(row_of(record), separators=(",", ":"))


def leave_records(client: storage.Client, destination: str, owner: str, records: Iterable[Record], log: Logger) -> None:
    """Write the records of a task for a table of all runs. A failure is logged: the videos are paid for, and there.

    :param destination: ``gs://bucket/prefix``.
    :param owner: names the files; the same in every try.
    :param records: those of the requests that the task bought or landed.
    """
    try:
        bucket, prefix = split_gs_uri(destination, name="records")
        folder = f"{prefix.rstrip('/')}/runs" if prefix.strip("/") else "runs"
        days: defaultdict[str, list[str]] = defaultdict(list)
        for record in records:
            days[day_of(record)].append(line_of(record))
        file = f"{hashlib.sha256(owner.encode()).hexdigest()[:24]}.jsonl"
        for day, lines in days.items():
            blob = client.bucket(bucket).blob(f"{folder}/dt={day}/{file}")
            with storage_errors(f"Writing gs://{bucket}/{blob.name}"):
                body = "".join(f"{line}\n" for line in lines).encode()
                upload(blob, body, content_type="application/x-ndjson", retry_for_s=_RETRY_FOR_S)
            log.info("%d records are in gs://%s/%s.", len(lines), bucket, blob.name)
    except Exception as error:  # whatever it is, it must not fail a task that has done its work
        log.warning(
            "The records of this task were not all written below %s: %s. Nothing is lost, they are in the journal: "
            "correct this and clear the task, which buys nothing, or export the journal with WanExportRecordsOperator.",
            destination,
            error,
        )


def day_of(record: Record) -> str:
    """Return the day (UTC) of the partition of a record: that of its latest submit or claim, which does not change."""
    return (record.submitted_at or record.claimed_at or record.created_at or "1970-01-01")[:10]


def _seconds_between(first: str | None, last: str | None) -> float | None:
    try:
        if first and last:
            return round((datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds(), 3)
    except (ValueError, TypeError):
        pass
    return None
