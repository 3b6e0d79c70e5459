# SPDX-License-Identifier: Apache-2.0
"""What OpenLineage is told about a landing. Imported only by OpenLineage's own call, so only where it is installed."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import attrs
from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, external_query_run, output_statistics_output_dataset

from airflow_provider_wan import __version__
from airflow_provider_wan.generation.records import LandedVideo, Record

_PRODUCER = f"https://pypi.org/project/airflow-provider-wan/{__version__}/"
_SCHEMA = f"{_PRODUCER}#WanRequestRunFacet"


@attrs.define
class WanRequestRunFacet(RunFacet):
    """The request behind the videos: what it was, what it cost, and how long it took.

    :param processing_seconds: from submit to finish, by RunComfy's clock.
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

    @staticmethod
    def _get_schema() -> str:
        return _SCHEMA


def lineage_of(record: Record) -> Any:
    """Give the inputs, outputs and run facets of a landing.

    :return: an ``OperatorLineage``.
    """
    inputs = [_image(record.image)] if record.image else []
    return OperatorLineage(
        inputs=inputs,
        outputs=[_video(video) for video in record.videos],
        run_facets={
            "wan_request": _request(record),
            "externalQuery": external_query_run.ExternalQueryRunFacet(
                externalQueryId=record.request_id or "", source="runcomfy"
            ),
        },
    )


def _image(uri: str) -> InputDataset:
    """Name an image as OpenLineage names data: where it is, and what it is called there."""
    parts = urlsplit(uri)
    return InputDataset(namespace=f"{parts.scheme}://{parts.netloc}", name=parts.path.lstrip("/") or "/")


def _video(video: LandedVideo) -> OutputDataset:
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        size=video.size_bytes, fileCount=1
    )
    return OutputDataset(
        namespace=f"gs://{video.bucket}",
        name=video.object_name,
        outputFacets={"outputStatistics": statistics},
    )


def _request(record: Record) -> WanRequestRunFacet:
    return WanRequestRunFacet(
        request_id=record.request_id or "",
        model_id=record.model_id,
        fingerprint=record.fingerprint,
        variation=record.variation,
        cost_usd=record.cost_usd,
        created_at=record.created_at,
        finished_at=record.finished_at,
        landed_at=record.landed_at,
        processing_seconds=_seconds_between(record.created_at, record.finished_at),
    )


def _seconds_between(first: str | None, last: str | None) -> float | None:
    try:
        if first and last:
            return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    except (ValueError, TypeError):
        pass
    return None
