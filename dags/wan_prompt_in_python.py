# SPDX-License-Identifier: Apache-2.0
"""Build the prompt in Python: ``@task.wan`` submits what the function returns and waits for the video."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

MOODS = {"mist": "drifts out of", "rain": "streams down", "sun": "breaks over"}


@dag(
    schedule=None,
    params={
        "img_url": Param(type="string", description="Public address of the image", format="uri"),
        "subject": Param("the harbour", type="string"),
        "weather": Param("mist", type="string", enum=list(MOODS)),
        "bucket": Param("my-videos", type="string"),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
)
def wan_prompt_in_python() -> None:
    # [START howto_task_wan]
    @task.wan(wait_for_completion=True, journal="gs://{{ params.bucket }}/_journal")
    def film(*, params: dict[str, Any]) -> dict[str, Any]:
        weather, subject = params["weather"], params["subject"]
        return {
            "prompt": f"{weather} {MOODS[weather]} {subject}, the camera glides closer".capitalize(),
            "img_url": params["img_url"],
            "seed": sum(map(ord, subject)),  # the same subject always gives the same video
        }

    # [END howto_task_wan]
    WanToGCSOperator(task_id="land", request=film(), bucket_name="{{ params.bucket }}", object_name="in-python/")


dag_object = wan_prompt_in_python()
