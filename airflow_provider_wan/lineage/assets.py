# SPDX-License-Identifier: Apache-2.0
"""Asset events and hook lineage of a landing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import Logger
from typing import Any

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_wan.durable.record import LandedVideo, Record


def extra_of(record: Record, video: LandedVideo) -> dict[str, Any]:
    """Give what an asset event says about a landed video, as plain JSON values."""
    return {
        "uri": video.uri,
        "request_id": video.request_id,
        "model_id": record.model_id,
        "cost_usd": record.cost_usd,
        "size_bytes": video.size_bytes,
        "crc32c": video.crc32c,
        "image": record.image,
    }


def emit_outlets(context: Mapping[str, Any], outlets: Iterable[Any], record: Record) -> None:
    """Put what has landed into the events of a task's outlets.

    An :class:`Asset` gets one event a task, about the first video, and ``videos`` lists all where there are more.
    An :class:`AssetAlias` gets one event a video, on an asset of the video's own address.
    """
    if not record.videos:
        return
    extras = [extra_of(record, video) for video in record.videos]
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            for extra in extras:
                context["outlet_events"][outlet].add(Asset(extra["uri"]), extra=extra)
        elif isinstance(outlet, Asset):
            more = {"videos": extras} if len(extras) > 1 else {}
            context["outlet_events"][outlet].extra = {**extras[0], **more}


def emit_hook_lineage(hook: Any, record: Record, log: Logger) -> None:
    """Tell Airflow's collector which image went in and which videos came out; costs nothing where nobody reads it.

    :param hook: in whose name it is told.
    """
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    try:
        collector = get_hook_lineage_collector()
        if record.image:
            collector.add_input_asset(context=hook, uri=record.image)
        for video in record.videos:
            collector.add_output_asset(
                context=hook, uri=video.uri, asset_extra={"request_id": video.request_id}
            )
    except Exception as error:  # a collector of somebody else's must not fail a landing
        log.warning("Hook lineage could not be told: %s", error)
