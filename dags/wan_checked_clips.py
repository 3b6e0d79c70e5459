# SPDX-License-Identifier: Apache-2.0
"""Make videos, check them, and keep a table of all clips: what was made, at what cost, and whether it is usable.

A video that a check rejects lands in ``_rejected/``, and one more take of it is bought within the budget. The batch
leaves the records of its requests in ``gs://{bucket}/tables/clips/runs``, and the export brings those of the whole
journal into ``gs://{bucket}/tables/clips``. BigQuery reads either as an external table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_export import WanExportRecordsOperator


# [START howto_own_check]
def not_too_heavy(path: str, facts: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    if (facts.get("bitrate") or 0) > 20_000_000:
        return f"it has {facts['bitrate'] / 1e6:.0f} Mbit/s"
    return None


# [END howto_own_check]


with DAG(
    "wan_checked_clips",
    schedule=None,
    params={
        "images": Param("gs://my-images/photos/", type="string", description="Prefix or manifest of images"),
        "prompt": Param("A slow move closer", type="string"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos and the table"),
        "max_cost_usd": Param(5.0, type="number", minimum=0),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    # [START howto_checks]
    generate = WanBatchOperator(
        task_id="generate",
        images="{{ params.images }}",
        prompt="{{ params.prompt }}",
        bucket_name="{{ params.bucket }}",
        object_name="checked/",
        max_cost_usd="{{ params.max_cost_usd }}",
        checks=["black", "frozen", "short", not_too_heavy],
        on_bad_video="reject",
        rebuy_rejected=1,  # one more take of a rejected video, within the budget
        records="gs://{{ params.bucket }}/tables/clips",
    )
    # [END howto_checks]
    # [START howto_operator_wan_export]
    export = WanExportRecordsOperator(
        task_id="export",
        journal="gs://{{ params.bucket }}/checked/_journal",
        destination="gs://{{ params.bucket }}/tables/clips",
        max_active_tis_per_dag=1,
        trigger_rule="all_done",  # a batch with failures is part of the table too
    )
    # [END howto_operator_wan_export]
    generate >> export
