# SPDX-License-Identifier: Apache-2.0
"""Compare models: the same images and the same prompt become videos of several models, within one budget.

The videos land in ``gs://{bucket}/{prefix}/{model}/``. The page ``gs://{bucket}/{prefix}/index.html`` shows them side
by side: a row for each image and a column for each model, with cost and time. The tab *Videos* of the run does so too,
also while it runs. A rerun buys only what is missing.

Each model gets an equal share of ``max_cost_usd``. The price on a model's page is only a base, so each batch buys one
video first and reads what it cost. A model that reaches its share leaves the rest undone; the others go on.
"""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import Param, dag, get_current_context, task

from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.operators.wan_contact_sheet import WanContactSheetOperator

#: Inputs that make the videos comparable: small, five seconds, silent.
MODELS = [
    {"model_id": "wan-ai/wan-2-2/image-to-video", "inputs": {"resolution": "480P"}},
    {
        "model_id": "wan-ai/wan-3.0/image-to-video",
        "inputs": {"resolution": "480p", "duration": 5, "enable_audio": False},
    },
    {
        "model_id": "bytedance/seedance-2.5/image-to-video/480p",
        "inputs": {"duration": 5, "generate_audio": False},
    },
]


@dag(
    schedule=None,
    params={
        "images": Param("gs://my-images/photos/", type="string", description="Prefix or manifest of the images"),
        "prompt": Param("A slow move closer", type="string"),
        "models": Param(MODELS, type="array", description="Models, each with the inputs of its own"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos"),
        "prefix": Param("compare", type="string", description="Prefix of the videos in it"),
        "max_cost_usd": Param(5.0, type="number", minimum=0, description="Limit of all models together"),
    },
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30)},
    tags=["wan", "example"],
    doc_md=__doc__,
)
def wan_compare_models() -> None:
    # [START howto_compare_models]
    @task
    def list_models() -> list[dict[str, Any]]:
        params = get_current_context()["params"]
        return [
            {
                "model_id": model["model_id"],
                "inputs": {"prompt": params["prompt"], **model.get("inputs", {})},
                "max_cost_usd": params["max_cost_usd"] / len(params["models"]),
                "object_name": f"{params['prefix']}/{model['model_id'].replace('/', '--')}/",
            }
            for model in params["models"]
        ]

    models = list_models()
    videos = WanBatchOperator.partial(
        task_id="make_videos",
        images="{{ params.images }}",
        bucket_name="{{ params.bucket }}",
        journal="gs://{{ params.bucket }}/{{ params.prefix }}/_journal",
        staging="gs://{{ params.bucket }}/{{ params.prefix }}/_staging",  # of images that a model needs fixed
        max_failures="100%",  # an image that one model refuses is a result too
        map_index_template="{{ task.model_id }}",
    ).expand_kwargs(models)
    WanContactSheetOperator(
        task_id="compare",
        bucket_name="{{ params.bucket }}",
        prefix="{{ params.prefix }}",
        manifest=videos.output,
        title="{{ params.prompt }}",
        trigger_rule="all_done",
    )
    # [END howto_compare_models]


wan_compare_models()
