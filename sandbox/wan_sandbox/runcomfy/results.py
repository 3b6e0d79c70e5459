# SPDX-License-Identifier: Apache-2.0
"""The answers about a generation: its two vocabularies of states, its output, error and cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from wan_sandbox.control.faults import FaultRule
from wan_sandbox.runcomfy.api_faults import error_value
from wan_sandbox.runcomfy.generations import Generation, Phase
from wan_sandbox.runcomfy.media import link
from wan_sandbox.runcomfy.world import World

#: ``/status`` says completed for a failure as well.
_STATUS_WORDS = {
    Phase.QUEUED: "in_queue",
    Phase.RUNNING: "in_progress",
    Phase.SUCCEEDED: "completed",
    Phase.FAILED: "completed",
    Phase.CANCELLED: "cancelled",
}
_RESULT_WORDS = {**_STATUS_WORDS, Phase.SUCCEEDED: "succeeded", Phase.FAILED: "failed"}

_FOREIGN_LINKS = {
    "link": "https://files.example.com/video-0.mp4",
    "link_other_host": "https://files.example.com/video-0.mp4",
    "link_private": "http://169.254.169.254/latest/video-0.mp4",
    "link_http": "http://files.example.com/video-0.mp4",
}


def spelled(word: str, rule: FaultRule | None) -> str:
    """Return the word for a state, changed if the fault is about words."""
    match rule.fault if rule else "":
        case "word":
            return str(rule.params.get("word", "post_processing")) if rule else word
        case "upper_case":
            return word.upper()
        case "one_l":
            return word.replace("cancelled", "canceled")
        case _:
            return word


def urls(origin: str, request_id: str, rule: FaultRule | None) -> dict[str, str]:
    """Return the three URLs of an answer; clients must not follow them with a token."""
    if rule is not None and rule.fault == "foreign_urls":
        origin = str(rule.params.get("location", "https://collect.example.com"))
    base = f"{origin}/v1/requests/{request_id}"
    return {"status_url": f"{base}/status", "result_url": f"{base}/result", "cancel_url": f"{base}/cancel"}


def status_json(world: World, origin: str, generation: Generation, rule: FaultRule | None) -> dict[str, Any]:
    """Return the answer of ``/status``."""
    body: dict[str, Any] = {
        "request_id": generation.request_id,
        "status": spelled(_STATUS_WORDS[generation.phase], rule),
    }
    if generation.phase is Phase.QUEUED:
        body["queue_position"] = world.accounts[generation.account].lane.position(generation)
    body |= urls(origin, generation.request_id, rule)
    del body["cancel_url"]
    return body


def cancel_json(generation: Generation, *, cancelled: bool, rule: FaultRule | None) -> dict[str, Any]:
    """Return the answer of ``/cancel``: as published, ``status`` says completed next to a true cancel."""
    word = "completed" if cancelled else _STATUS_WORDS[generation.phase]
    outcome = "cancelled" if cancelled else "not_cancellable"
    return {"request_id": generation.request_id, "status": spelled(word, rule), "outcome": outcome}


def result_json(
    world: World, origin: str, generation: Generation, *, with_cost: bool, rule: FaultRule | None
) -> dict[str, Any]:
    """Return the answer of ``/result``."""
    fault, params = (rule.fault, rule.params) if rule else ("", {})
    if fault == "pending" and generation.phase.is_over:
        word = str(params.get("word", "in_progress"))
        return {
            "request_id": generation.request_id,
            "status": word,
            "created_at": _iso(generation.submitted_at),
        }
    body: dict[str, Any] = {
        "request_id": generation.request_id,
        "status": spelled(_RESULT_WORDS[generation.phase], rule),
        "created_at": _iso(generation.submitted_at),
    }
    if not generation.phase.is_over:
        return body
    body["finished_at"] = _iso(generation.finished_at or time.time())
    if fault == "failed":
        return _add_error(body | {"status": "failed"}, params, error_value(params))
    if generation.phase is Phase.FAILED:
        _add_error(body, generation.fate_params, generation.error)
    if generation.phase is Phase.SUCCEEDED:
        _add_output(world, body, origin, generation, rule)
    if with_cost and generation.phase is not Phase.CANCELLED and not _hides_cost(generation, rule):
        body["cost"] = generation.charged_micro / 1e6
    return body


def _add_error(body: dict[str, Any], params: Mapping[str, Any], error: Any) -> dict[str, Any]:
    if params.get("error_shape") != "absent":
        body["error"] = error
    return body


def _hides_cost(generation: Generation, rule: FaultRule | None) -> bool:
    if rule is None:
        return False
    if rule.fault == "cost_late":
        return time.time() - (generation.finished_at or 0) < float(rule.params.get("seconds", 5))
    return rule.fault == "cost_absent"


def _add_output(
    world: World, body: dict[str, Any], origin: str, generation: Generation, rule: FaultRule | None
) -> None:
    faults = (rule.fault if rule else "", generation.fate)
    if "no_output" in faults:
        return
    shape, count = generation.output_shape, 1
    suffix = "mp4" if shape in {"video", "videos", "both"} else "none"
    for fault, params in (
        (generation.fate, generation.fate_params),
        (faults[0], rule.params if rule else {}),
    ):
        if fault == "output_shape":
            shape, count = str(params.get("shape", "videos")), int(params.get("n", 1))
            suffix = str(params.get("suffix", "mp4"))
    ending = "" if suffix == "none" else f".{suffix}"
    videos = [_link(world, origin, generation, f"video-{index}{ending}", rule) for index in range(count)]
    image = link(world, origin, generation, "image-0.png")
    body["output"] = output(shape, videos, image)


def _link(world: World, origin: str, generation: Generation, name: str, rule: FaultRule | None) -> str:
    good = link(world, origin, generation, name)
    if rule is None:
        return good
    if rule.fault == "link_credentials":
        return good.replace("://", "://user:secret@", 1)
    if rule.fault in _FOREIGN_LINKS:
        return str(rule.params.get("url", _FOREIGN_LINKS[rule.fault]))
    return good


def output(shape: str, videos: list[str], image: str) -> Any:
    """Return links in one of the output forms that models use."""
    match shape:
        case "videos":
            return {"videos": videos}
        case "both":
            return {"video": videos[0], "videos": videos}
        case "bare":
            return videos[0]
        case "list":
            return videos
        case "image":
            return {"image": image}
        case "video_url" | "download_url":
            return {shape: videos[0]}
        case "generated_video":
            return {"generated_video": {"uri": videos[0]}}
        case "image_and_video":
            return {"image": image, "images": [image], "video": videos[0]}
        case _:
            return {"video": videos[0]}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
