# SPDX-License-Identifier: Apache-2.0
"""Run a DAG whenever a video has landed, with the facts of the video in the asset event.

``wan_asset_producer`` lands a video and has an asset as its outlet; ``wan_asset_downstream`` is scheduled on it.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, Param, dag, task

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

VIDEOS = Asset(name="campaign-videos", uri="gs://my-videos/campaign")

with DAG(
    "wan_asset_producer",
    schedule=None,
    params={
        "img_url": Param(type="string", description="Public address of the image", format="uri"),
        "prompt": Param("A slow move closer", type="string", maxLength=800),
        "bucket": Param("my-videos", type="string"),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
) as producer:
    generate = WanSubmitOperator(
        task_id="generate",
        img_url="{{ params.img_url }}",
        prompt="{{ params.prompt }}",
        wait_for_completion=True,
        journal="gs://{{ params.bucket }}/_journal",
    )
    # [START howto_asset_outlet]
    land = WanToGCSOperator(
        task_id="land",
        request=generate.output,
        bucket_name="{{ params.bucket }}",
        object_name="campaign/",
        outlets=[VIDEOS],
    )
    # [END howto_asset_outlet]
    # [START howto_operator_wan_contact_sheet]
    sheet = WanContactSheetOperator(
        task_id="sheet",
        bucket_name="{{ params.bucket }}",
        prefix="campaign/",
        title="Our campaign",
    )
    # [END howto_operator_wan_contact_sheet]
    land >> sheet


# [START howto_asset_downstream]
@dag(schedule=[VIDEOS], tags=["wan", "example"], doc_md=__doc__)
def wan_asset_downstream() -> None:
    @task
    def review(*, triggering_asset_events: dict[Asset, Any]) -> list[dict[str, Any]]:
        """Return address, checksum and cost of each video that has landed since the last run."""
        return [
            {name: event.extra.get(name) for name in ("uri", "request_id", "crc32c", "size_bytes", "cost_usd")}
            for events in triggering_asset_events.values()
            for event in events
        ]

    review()


# [END howto_asset_downstream]
downstream = wan_asset_downstream()
