# SPDX-License-Identifier: Apache-2.0
"""Batches against a sandbox, as a worker runs them, without the rest of Airflow."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from google.cloud import storage

from airflow_provider_wan.batch.batch import Batch
from airflow_provider_wan.batch.engine import BatchEngine, Pause
from airflow_provider_wan.batch.report import Report
from airflow_provider_wan.batch.spec import BatchLimits, BatchSpec
from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.hooks.wan import WanHook
from airflow_provider_wan.images.source import ImageOptions, ImageSources
from airflow_provider_wan.triggers.wan_batch import WanBatchTrigger
from airflow_provider_wan.utils.params import DEFAULT_MODEL_ID, model_of
from wan_sandbox.server import Sandbox

BUCKET = "videos"
JOURNAL = "gs://videos/_journal"
LOG = logging.getLogger("batch")


def addresses(count: int, *, first: int = 0) -> list[str]:
    """Return addresses of images that the sandbox does not read."""
    return [f"https://images.example.com/{number:05d}.jpg" for number in range(first, first + count)]


#: The most that an API call may take, in seconds: on a busy machine, no answer may count as lost that is only slow.
TIMEOUT_S = 20.0


def connection(sandbox: Sandbox, **extra: Any) -> str:
    """Return the connection to a sandbox, with other values in its extra."""
    given = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    given["extra"] |= {"timeout": TIMEOUT_S, "not_found_patience": 0.4, **extra}
    return json.dumps(given)


def point_at(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, **extra: Any) -> None:
    """Set the environment that points at a sandbox, with other values in the extra of the connection."""
    for name, value in sandbox.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", connection(sandbox, **extra))


#: What a task says about its model if it says nothing.
_MODEL: dict[str, Any] = {"image_field": None, "schema": None, "require_schema": False}


def batch(
    images: Any,
    *,
    owner: str = "dag/run/task/-1",
    deadline_s: float = 300.0,
    stop: threading.Event | None = None,
    limits: dict[str, Any] | None = None,
    model_id: str = DEFAULT_MODEL_ID,
    staging: str | None = None,
    check_images: bool = False,
    sources: ImageSources | None = None,
    model: dict[str, Any] | None = None,
    **spec: Any,
) -> Batch:
    """Return a batch of images that are not read before they are bought.

    :param model: what the task says about its model: ``schema``, ``image_field``, ``require_schema``.
    """
    hook = WanHook("wan_default")
    given = {"bucket_name": BUCKET, "object_name": "out/", "journal": JOURNAL, "inputs": {"prompt": "waves"}}
    return Batch(
        BatchSpec(
            images=images,
            model_id=model_id,
            limits=BatchLimits(time.time() + deadline_s, **{"max_in_flight": 50, **(limits or {})}),
            **{**given, **spec},
        ),
        hook,
        storage_client(pool_size=24),
        sources
        or ImageSources(
            model_of(SimpleNamespace(model_id=model_id, log=LOG, **{**_MODEL, **(model or {})}), hook),
            lambda: storage_client(pool_size=24),
            LOG,
            options=ImageOptions(staging, check=check_images, allow_private=True),
        ),
        LOG,
        owner=owner,
        stop=stop,
    )


def bad_first_take(path: str, facts: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """A check that finds something wrong with the first take of every image."""
    return None if "take" in (record["variation"] or "") else "it is dull"


def run(images: Any, **more: Any) -> Report:
    """Run a whole batch."""
    one = batch(images, **more)
    return finish(one, one.begin())


def finish(one: Batch, engine: BatchEngine) -> Report:
    """Run a batch in this process, to its end."""
    engine.run(may_pause=False)
    return one.report(engine)


def waiting(sandbox: Sandbox, images: Any, **more: Any) -> Pause:
    """Start a batch of requests that run for an hour, up to its wait."""
    sandbox.control("speed", {"speed": 1, "generation_seconds": 3600})
    one = batch(images, **more)
    engine = one.begin()
    pause = engine.run(may_pause=True)
    assert pause is not None
    one.save(engine)
    return pause


def run_over_a_wait(sandbox: Sandbox, images: Any, meanwhile: Callable[[], Any], **more: Any) -> Report:
    """Start a batch, let something happen while it waits, and finish it in another process."""
    pause = waiting(sandbox, images, **more)
    meanwhile()
    sandbox.control("speed", {"speed": 100_000})
    again = batch(images, **more)
    return finish(again, again.resume({"ready": list(pause.request_ids), "learned": pause.learned}))


def wait(pause: Pause, deadline_s: float = 300.0) -> dict[str, Any]:
    """Wait as a triggerer does; return its event."""
    trigger = WanBatchTrigger(
        wan_conn_id="wan_default",
        request_ids=pause.request_ids,
        deadline=time.time() + deadline_s,
        not_later_than=pause.not_later_than,
        started=pause.started,
        learned=pause.learned,
        look_at=pause.poll_at,
    )
    again = WanBatchTrigger(**json.loads(json.dumps(trigger.serialize()[1])))

    async def first() -> Any:
        return (await anext(again.run())).payload

    return dict(json.loads(json.dumps(asyncio.run(first()))))


def purchases_per_image(sandbox: Sandbox) -> Counter[str]:
    """How often each image was bought."""
    return Counter(purchase["img_url"] for purchase in sandbox.ledger()["purchases"])


def videos(bucket: str = BUCKET, prefix: str = "out/") -> list[str]:
    """Names of the videos in a bucket."""
    found = storage.Client().list_blobs(bucket, prefix=prefix)
    return sorted(blob.name for blob in found if blob.name.endswith(".mp4"))


def manifest(report: Report) -> list[dict[str, Any]]:
    """The lines of a report's manifest."""
    bucket, _, name = report.summary["manifest"].removeprefix("gs://").partition("/")
    text = storage.Client().bucket(bucket).blob(name).download_as_text()
    return [json.loads(line) for line in text.splitlines()]


def outcomes(report: Report) -> Counter[str]:
    """How many images ended how, by the manifest."""
    return Counter(line["outcome"] for line in manifest(report))
