# SPDX-License-Identifier: Apache-2.0
"""Cancel a request that is still queued when the run ends.

A run can end early because a task fails or because somebody marks it failed. A queued request that is cancelled in
time costs nothing. A running request cannot be stopped: the log then says so and names it.
"""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Param

from airflow_provider_wan.operators.wan import WanCancelOperator, WanSubmitOperator
from airflow_provider_wan.sensors.wan import WanRequestSensor
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

with DAG(
    "wan_cancel_unwanted",
    schedule=None,
    params={
        "img_url": Param(type="string", description="Public address of the image", format="uri"),
        "prompt": Param("A slow move closer", type="string", maxLength=800),
        "bucket": Param("my-videos", type="string"),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
) as dag:
    submit = WanSubmitOperator(
        task_id="submit",
        img_url="{{ params.img_url }}",
        prompt="{{ params.prompt }}",
        variation="{{ run_id }}",
    )
    wait = WanRequestSensor(
        task_id="wait",
        request=submit.output,
        timeout=pendulum.duration(hours=1),
        cancel_on_timeout=False,  # the teardown cancels it, whatever ended the run
    )
    land = WanToGCSOperator(
        task_id="land",
        request=wait.output,
        bucket_name="{{ params.bucket }}",
        object_name="{{ dag_run.run_after | ds }}/",
    )
    # [START howto_operator_wan_cancel]
    cancel = WanCancelOperator(task_id="cancel", request=submit.output)
    # [END howto_operator_wan_cancel]
    submit >> wait >> land >> cancel.as_teardown(setups=submit)
