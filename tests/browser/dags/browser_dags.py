# SPDX-License-Identifier: Apache-2.0
"""A batch to be looked at."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Asset, Param

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator

with DAG(
    "photos_in_a_batch",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    render_template_as_native_obj=True,
    params={"rows": Param([], type="array"), "bucket": Param("", type="string")},
) as dag:
    batch = WanBatchOperator(
        task_id="make_videos",
        images="{{ params.rows }}",
        bucket_name="{{ params.bucket }}",
        object_name="batch/",
        max_in_flight=20,
        resume_when_ready=20,
        resume_after=5,
        max_failures="50%",
        outlets=[Asset("gs://videos/batch")],
    )
    batch >> WanContactSheetOperator(
        task_id="sheet", bucket_name="{{ params.bucket }}", prefix="batch", manifest=batch.output
    )
