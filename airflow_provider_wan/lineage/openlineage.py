# SPDX-License-Identifier: Apache-2.0
"""OpenLineage of landings and batches. Imported only by OpenLineage's own call, so only where it is installed."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import attrs
from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, external_query_run, output_statistics_output_dataset

from airflow_provider_wan import __version__
from airflow_provider_wan.batch.results import Outcome
from airflow_provider_wan.durable.record import Record
from airflow_provider_wan.lineage.assets import BatchEnd, places_of

_PRODUCER = f"https://pypi.org/project/airflow-provider-wan/{__version__}/"
_SCHEMA = f"{_PRODUCER}#WanRequestRunFacet"
_BATCH_SCHEMA = f"{_PRODUCER}#WanBatchRunFacet"


@attrs.define
class WanRequestRunFacet(RunFacet):
    """The request behind the videos, with its cost and duration.

    :param processing_seconds: from submit to finish, by RunComfy's clock.
    :param digital_source_type: how the videos were made, as a term of IPTC's vocabulary.
    :param videos: address, facts and verdict of each video.
    """

    request_id: str
    model_id: str
    fingerprint: str
    variation: str | None
    cost_usd: float | None
    created_at: str | None
    finished_at: str | None
    landed_at: str | None
    processing_seconds: float | None
    digital_source_type: str | None = None
    videos: list[dict[str, Any]] = attrs.field(factory=list)

    @staticmethod
    def _get_schema() -> str:
        return _SCHEMA


@attrs.define
class WanBatchRunFacet(RunFacet):
    """The requests behind the videos of a batch, with their number, outcomes, cost and duration.

    :param outcomes: number of images by outcome.
    :param usable: good videos that are in the bucket.
    :param cost_per_usable_usd: the whole cost divided by the good videos that it bought.
    :param bought: requests that this task instance bought, over all its tries.
    :param processing_seconds: from the start of the try to its end.
    """

    model_id: str
    total: int
    outcomes: dict[str, int]
    bought: int
    cost_usd: float | None
    cost_is_exact: bool
    size_bytes: int
    processing_seconds: float | None
    manifest: str
    journal: str
    usable: int | None = None
    cost_per_usable_usd: float | None = None

    @staticmethod
    def _get_schema() -> str:
        return _BATCH_SCHEMA


def lineage_of_batch(end: BatchEnd) -> Any:
    """Return the inputs, outputs and run facet of a batch: images and videos if they are few, else folders.

    :return: an ``OperatorLineage``.
    """
    landed, summary = end.landed, end.summary
    if end.outputs == [end.uri]:
        size_bytes = sum(result.size_bytes or 0 for result in landed)
        outputs = [_output(end.uri, size_bytes, files=len(landed))]
    else:
        outputs = [_output(result.uri, result.size_bytes) for result in landed if result.uri]
    facet = WanBatchRunFacet(
        model_id=end.model_id,
        total=summary["total"],
        outcomes={str(outcome): summary[str(outcome)] for outcome in Outcome},
        bought=summary["bought"],
        cost_usd=summary["cost_usd"],
        cost_is_exact=summary["cost_is_exact"],
        size_bytes=summary["size_bytes"],
        processing_seconds=summary["duration_s"],
        manifest=summary["manifest"],
        journal=summary["journal"],
        usable=summary.get("usable"),
        cost_per_usable_usd=summary.get("cost_per_usable_usd"),
    )
    return OperatorLineage(
        inputs=[_image(place) for place in places_of(result.image for result in landed)],
        outputs=outputs,
        run_facets={"wan_batch": facet},
    )


def lineage_of(record: Record) -> Any:
    """Return the inputs, outputs and run facets of a landing.

    :return: an ``OperatorLineage``.
    """
    facet = WanRequestRunFacet(
        request_id=record.request_id or "",
        model_id=record.model_id,
        fingerprint=record.fingerprint,
        variation=record.variation,
        cost_usd=record.cost_usd,
        created_at=record.created_at,
        finished_at=record.finished_at,
        landed_at=record.landed_at,
        processing_seconds=_seconds_between(record.created_at, record.finished_at),
        digital_source_type=record.digital_source_type,
        videos=[
            {"uri": video.uri, "facts": dict(video.facts or {}), "verdict": dict(video.verdict or {})}
            for video in record.videos
        ],
    )
    query = external_query_run.ExternalQueryRunFacet(externalQueryId=record.request_id or "", source="runcomfy")
    return OperatorLineage(
        inputs=[_image(record.image)] if record.image else [],
        outputs=[_output(video.uri, video.size_bytes) for video in record.videos],
        run_facets={"wan_request": facet, "externalQuery": query},
    )


def _image(uri: str) -> InputDataset:
    """Return an image by OpenLineage's naming: namespace and path."""
    parts = urlsplit(uri)
    return InputDataset(namespace=f"{parts.scheme}://{parts.netloc}", name=parts.path.strip("/") or "/")


def _output(uri: str, size_bytes: int | None, *, files: int = 1) -> OutputDataset:
    bucket, _, name = uri.removeprefix("gs://").partition("/")
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(size=size_bytes, fileCount=files)
    return OutputDataset(
        namespace=f"gs://{bucket}",
        name=name.rstrip("/") or "/",
        outputFacets={"outputStatistics": statistics},
    )


def _seconds_between(first: str | None, last: str | None) -> float | None:
    try:
        if first and last:
            return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    except (ValueError, TypeError):
        pass
    return None
