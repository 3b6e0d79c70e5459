# SPDX-License-Identifier: Apache-2.0
"""The smallest useful DAG: one image becomes one video in a bucket."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

with DAG(
    "wan_single_video",
    schedule=None,
    params={
        "img_url": Param(type="string", description="Public address of the image", format="uri"),
        "prompt": Param("A slow move closer", type="string", maxLength=800),
        "bucket": Param("my-videos", type="string"),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    # [START howto_operator_wan_submit_and_wait]
    generate = WanSubmitOperator(
        task_id="generate",
        img_url="{{ params.img_url }}",
        prompt="{{ params.prompt }}",
        wait_for_completion=True,  # waits in the triggerer and holds no worker slot
        journal="gs://{{ params.bucket }}/_journal",  # a rerun, in any run, finds the request
    )
    # [END howto_operator_wan_submit_and_wait]
    land = WanToGCSOperator(
        task_id="land",
        request=generate.output,
        bucket_name="{{ params.bucket }}",
        object_name="{{ dag_run.run_after | ds }}/",
    )
