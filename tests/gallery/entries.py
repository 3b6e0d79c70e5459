# SPDX-License-Identifier: Apache-2.0
"""XComs as the provider's tasks push them."""

from __future__ import annotations

from typing import Any

from airflow_provider_wan.gallery.run_cards import Entry

MODEL = "wan-ai/wan-2-2/image-to-video"
IMAGE = "https://images.example.com/a.jpg"


def request_id(number: int = 0) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def submitted(number: int = 0, *, prompt: str = "a slow wave", **more: Any) -> Entry:
    value = {
        "request_id": request_id(number),
        "model_id": MODEL,
        "fingerprint": "f" * 64,
        "submitted_at": "2026-01-15T00:00:00+00:00",
        "image": IMAGE,
        "inputs": {"prompt": prompt, "img_url": IMAGE, "seed": 7},
        **more,
    }
    return Entry("submit", number, "return_value", value)


def waited(number: int = 0, **more: Any) -> Entry:
    value = {
        "request_id": request_id(number),
        "model_id": MODEL,
        "fingerprint": "f" * 64,
        "state": "succeeded",
        "videos": ["https://cdn.example.com/v.mp4"],
        "cost_usd": 0.2,
        "created_at": "2026-01-15T00:00:01+00:00",
        "finished_at": "2026-01-15T00:02:15+00:00",
        **more,
    }
    return Entry("wait", number, "return_value", value)


def landed(number: int = 0, **more: Any) -> Entry:
    video = {
        "uri": f"gs://videos/{number}.mp4",
        "bucket": "videos",
        "object_name": f"{number}.mp4",
        "size_bytes": 50_000,
        "crc32c": "AAAAAA==",
        "generation": 1,
        "content_type": "video/mp4",
        "request_id": request_id(number),
        **more,
    }
    return Entry("land", number, "return_value", [video])


def failed(
    number: int = 0,
    *,
    kind: str = "WanGenerationFailedError",
    task: str = "wait",
    request: str | None = "",
) -> Entry:
    """Return the XCom of a failed task.

    :param request: the request that it names; empty: the request with this number.
    """
    request = request_id(number) if request == "" else request
    value = {"request_id": request, "kind": kind, "error": "it shows too much"}
    return Entry(task, number, "failed", value)


def refused(number: int = 0) -> Entry:
    return Entry("submit", number, "refused", [{"img_url": IMAGE, "rule": "it is too small"}])
