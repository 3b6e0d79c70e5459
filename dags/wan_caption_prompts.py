# SPDX-License-Identifier: Apache-2.0
"""Let a model look at each image and write its prompt, then turn the images into videos.

With ``apache-airflow-providers-common-ai`` installed, a language model writes the prompts through its connection
``pydanticai_default``. Without it, a function makes them from the names of the files: put your own captioning there.

A model never writes the same prompt twice, and another prompt is another video to pay for. So each prompt is saved in
``gs://{bucket}/captioned/prompts.jsonl`` before anything is bought: a retry, a clear or a later run uses the saved ones
and captions new images only. Edit a line of that file to change a prompt.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task

from airflow_provider_wan.operators.wan_batch import WanBatchOperator

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
ASK = "Write one sentence that describes how this photograph comes alive as a video of five seconds."


@dag(
    schedule=None,
    params={
        "images": Param("gs://my-images/photos/", type="string", description="Prefix of the images"),
        "bucket": Param("my-videos", type="string", description="Bucket of the videos"),
        "max_cost_usd": Param(5.0, type="number", minimum=0),
    },
    tags=["wan", "example"],
    doc_md=__doc__,
)
def wan_caption_prompts() -> None:
    # [START howto_caption_prompts]
    def manifest() -> Any:
        from google.cloud import storage

        bucket = get_current_context()["params"]["bucket"]
        return storage.Client().bucket(bucket).blob("captioned/prompts.jsonl")

    @task
    def list_new_images() -> list[str]:
        known = [json.loads(line)["image"] for line in read(manifest()).splitlines()]
        bucket, _, prefix = get_current_context()["params"]["images"].removeprefix("gs://").partition("/")
        found = [blob.name for blob in manifest().client.list_blobs(bucket, prefix=prefix)]
        images = [f"gs://{bucket}/{name}" for name in found if name.lower().endswith(IMAGES)]
        return [image for image in images if image not in known]

    @task(trigger_rule="none_failed")
    def save_prompts(images: list[str], prompts: list[str] | None) -> str:
        blob = manifest()
        rows = [{"image": image, "prompt": prompt} for image, prompt in zip(images, prompts or [], strict=True)]
        lines = [*read(blob).splitlines(), *map(json.dumps, rows)]
        blob.upload_from_string("\n".join(lines), if_generation_match=blob.generation or 0)
        return f"gs://{blob.bucket.name}/{blob.name}"

    images = list_new_images()
    WanBatchOperator(
        task_id="make_videos",
        images=save_prompts(images, caption.expand(image=images)),
        bucket_name="{{ params.bucket }}",
        object_name="captioned/",
        max_cost_usd="{{ params.max_cost_usd }}",
    )
    # [END howto_caption_prompts]


def read(blob: Any) -> str:
    """Return the text of an object, and an empty one if it does not exist."""
    return blob.download_as_text() if blob.exists() else ""


if find_spec("airflow.providers.common.ai"):
    # [START howto_caption_prompts_llm]
    @task.llm(
        llm_conn_id="pydanticai_default",
        system_prompt="You write prompts for a model that turns an image into a video.",
    )
    def caption(image: str) -> list[Any]:
        from google.cloud import storage
        from pydantic_ai import BinaryContent

        blob = storage.Blob.from_uri(image, storage.Client())
        data = blob.download_as_bytes()
        return [ASK, BinaryContent(data=data, media_type=blob.content_type)]

    # [END howto_caption_prompts_llm]
else:

    @task
    def caption(image: str) -> str:
        subject = image.rpartition("/")[2].rpartition(".")[0].replace("_", " ")
        return f"A slow move closer to the {subject}"


wan_caption_prompts()
