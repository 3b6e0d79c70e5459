# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of purchases: a video, a journal, a submission, and the ledger that counts purchases."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from airflow_provider_wan.durable.journal import BucketJournal
from airflow_provider_wan.durable.record import Record, Stage, new_claim, utc_text
from airflow_provider_wan.durable.submission import Submission
from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.model_api.video_spec import VideoSpec, make_video_spec
from tests.sandboxes import INPUTS, MODEL
from tests.task_runs import StoreInMemory, connect, posts, purchases

__all__ = ["StoreInMemory", "connect", "posts", "purchases"]

JOURNAL = "gs://videos/_journal"
LOG = logging.getLogger("tests.durable")
#: Retries at once a submit that was certainly not accepted.
AT_ONCE = RetryPolicy(tries=3, first_s=0.001)
#: Does not retry.
ONE_TRY = RetryPolicy(tries=1)


def a_video(prompt: str = "a slow wave", *, owner: str | None = None, **changes: Any) -> VideoSpec:
    """Return the spec of a video with this prompt."""
    return replace(make_video_spec(MODEL, {**INPUTS, "prompt": prompt}, owner=owner), **changes)


def bucket_journal(uri: str = JOURNAL) -> BucketJournal:
    """Open a journal with a client of its own, as another worker would."""
    return BucketJournal(storage_client(), uri)


def submission(journal: Any, **options: Any) -> Submission:
    """Make what a worker makes: a hook of its own, and a submission on it."""
    from airflow_provider_wan.hooks.wan import WanHook

    return Submission(WanHook(), journal, LOG, **{"retry": ONE_TRY, **options})


def an_intent(video: VideoSpec, **changes: Any) -> Record:
    """Give the record that a worker leaves that died between its claim and the id."""
    fields: dict[str, Any] = {
        "fingerprint": video.fingerprint,
        "model_id": video.model_id,
        "stage": Stage.INTENT,
        "inputs": dict(video.recorded_inputs),
        "image": video.image,
        "claim": new_claim(),
        "claimed_at": utc_text(),
    }
    return Record(**{**fields, **changes})
