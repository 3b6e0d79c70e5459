# SPDX-License-Identifier: Apache-2.0
"""Submits, waits and lands as a worker does; the tests run it as a program and kill it."""

from __future__ import annotations

import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.transfers.wan_to_gcs import WanToGCSOperator
from tests.task_runs import make_context, run

JOURNAL = "gs://videos/_journal"


def chain(img_url: str, *, deferrable: bool = False) -> list[dict[str, Any]]:
    """Submit one image, wait for its request and land its video; return what the landing returns."""
    name = img_url.rpartition("/")[2].removesuffix(".png")
    make = WanSubmitOperator(
        task_id="make",
        prompt="a slow wave",
        img_url=img_url,
        journal=JOURNAL,
        wait_for_completion=True,
        deferrable=deferrable,
        poll_interval=0.1,
    )
    land = WanToGCSOperator(
        task_id="land",
        request=run(make, make_context(run_id=name, task_id="make")),
        bucket_name="videos",
        object_name=f"{name}/video.mp4",
    )
    landed: list[dict[str, Any]] = run(land, make_context(run_id=name, task_id="land"))
    return landed


def all_at_once(img_urls: list[str]) -> list[Any]:
    """Run the chain of each image in a thread of its own."""
    with ThreadPoolExecutor(len(img_urls)) as pool:
        return list(pool.map(chain, img_urls))


def until_killed(img_urls: list[str]) -> None:
    """Run the chain of each image; the first that fails ends the process with its traceback."""

    def chain_or_exit(img_url: str) -> None:
        try:
            chain(img_url)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    with ThreadPoolExecutor(len(img_urls)) as pool:
        list(pool.map(chain_or_exit, img_urls))


if __name__ == "__main__":
    until_killed(sys.argv[1:])
