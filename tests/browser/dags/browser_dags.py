# SPDX-License-Identifier: Apache-2.0
"""The Dags whose runs the browser tests look at."""

from __future__ import annotations

from airflow.sdk import DAG, Param, task, task_group

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator

with DAG("photos_one_by_one", schedule=None, params={"images": Param([], type="array")}):

    @task
    def list_images(**context: dict[str, dict[str, list[dict[str, str]]]]) -> list[dict[str, str]]:
        return context["params"]["images"]

    @task_group
    def make_video(img_url: str, prompt: str, object_name: str) -> None:
        submit = WanSubmitOperator(
            task_id="submit",
            img_url=img_url,
            prompt=prompt,
            variation="first take",
            on_invalid="skip",
            wait_for_completion=True,
        )
        WanToGCSOperator(task_id="land", request=submit.output, bucket_name="videos", object_name=object_name)

    make_video.expand_kwargs(list_images())

with DAG(
    "photos_in_a_batch",
    schedule=None,
    render_template_as_native_obj=True,
    params={"rows": Param([], type="array")},
):
    batch = WanBatchOperator(
        task_id="make_videos",
        images="{{ params.rows }}",
        bucket_name="videos",
        object_name="batch/",
        max_in_flight=20,
        resume_when_ready=20,
        resume_after=5,
        max_failures="50%",
    )
    batch >> WanContactSheetOperator(task_id="sheet", bucket_name="videos", prefix="batch", manifest=batch.output)
