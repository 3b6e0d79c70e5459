# SPDX-License-Identifier: Apache-2.0
"""Asset events and hook lineage of landings and batches; those of a batch stay small whatever its size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_wan.batch.results import ImageResult, Outcome
from airflow_provider_wan.durable.record import LandedVideo, Record

#: Up to this many videos are named one by one, in an asset event and in lineage.
FEW = 20
MAX_PLACES = 50
#: Keys of a batch's summary that its asset event has too.
_SUMMARY_FIELDS = (
    "total",
    *(str(outcome) for outcome in Outcome),
    "bad",
    "usable",
    "bought",
    "cost_usd",
    "cost_per_usable_usd",
    "cost_is_exact",
    "size_bytes",
    "duration_s",
    "manifest",
    "journal",
)


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """How a batch ended.

    :param bucket: of the videos; ``prefix`` is their folder in it, empty or ending with a slash.
    :param summary: the return value of the task.
    :param results: of its images.
    """

    model_id: str
    bucket: str
    prefix: str
    summary: Mapping[str, Any]
    results: Sequence[ImageResult]

    @property
    def uri(self) -> str:
        """The folder of all videos."""
        return f"gs://{self.bucket}/{self.prefix}"

    @property
    def landed(self) -> list[ImageResult]:
        """The images whose videos this task instance landed."""
        return [result for result in self.results if result.outcome is Outcome.LANDED]

    @property
    def outputs(self) -> list[str]:
        """The addresses of the videos it landed if they are few, else their folder."""
        landed = [result.uri for result in self.landed if result.uri]
        return landed if len(landed) <= FEW else [self.uri]


# -- asset events ------------------------------------------------------------------------------------------


def emit_outlets(outlet_events: Any, outlets: Iterable[Any], record: Record) -> None:
    """Put landed videos into the events of a task's outlets.

    An :class:`Asset` gets one event a task, about the first video; ``videos`` lists all if there are more.
    An :class:`AssetAlias` gets one event a video, on an asset of the video's own address.
    """
    if not record.videos:
        return
    extras = [extra_of(record, video) for video in record.videos]
    more = {"videos": extras} if len(extras) > 1 else {}
    aliased = [(extra["uri"], extra) for extra in extras]
    _emit(outlet_events, outlets, extra={**extras[0], **more}, aliased=aliased)


def emit_batch_outlets(outlet_events: Any, outlets: Iterable[Any], end: BatchEnd) -> None:
    """Put the end of a batch into the events of a task's outlets: one event for each outlet.

    The event of an :class:`AssetAlias` is on an asset of the folder of all videos.
    """
    extra = extra_of_batch(end)
    _emit(outlet_events, outlets, extra=extra, aliased=[(end.uri, extra)])


def _emit(
    outlet_events: Any,
    outlets: Iterable[Any],
    *,
    extra: Mapping[str, Any],
    aliased: Sequence[tuple[str, Mapping[str, Any]]],
) -> None:
    """Fill the outlet events of a task.

    :param outlet_events: Airflow's accessor of the events, by outlet.
    :param extra: the extra of each asset.
    :param aliased: address and extra of the assets that an alias gets.
    """
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            for uri, its_extra in aliased:
                outlet_events[outlet].add(Asset(uri), extra=dict(its_extra))
        elif isinstance(outlet, Asset):
            outlet_events[outlet].extra = dict(extra)


def extra_of(record: Record, video: LandedVideo) -> dict[str, Any]:
    """Return the asset event extra of a landed video, as plain JSON values."""
    return {
        "uri": video.uri,
        "request_id": video.request_id,
        "model_id": record.model_id,
        "cost_usd": record.cost_usd,
        "size_bytes": video.size_bytes,
        "crc32c": video.crc32c,
        "image": record.image,
        **({"facts": dict(video.facts)} if video.facts else {}),
        **({"verdict": dict(video.verdict)} if video.verdict else {}),
    }


def extra_of_batch(end: BatchEnd) -> dict[str, Any]:
    """Return the asset event extra of a batch, as plain JSON values; ``videos`` only if they are few."""
    summary = {name: end.summary[name] for name in _SUMMARY_FIELDS if name in end.summary}
    in_bucket = [result for result in end.results if result.outcome.is_there]
    videos = [
        {name: getattr(result, name) for name in ("uri", "request_id", "cost_usd", "size_bytes", "image", "verdict")}
        for result in in_bucket
    ]
    more = {"videos": videos} if len(videos) <= FEW else {}
    return {"uri": end.uri, "model_id": end.model_id, **summary, **more}


# -- hook lineage ------------------------------------------------------------------------------------------


def emit_hook_lineage(hook: Any, record: Record, log: Logger) -> None:
    """Report the image and the videos of a landing to Airflow's lineage collector.

    :param hook: reported as the source of the lineage.
    """
    outputs = [(video.uri, {"request_id": video.request_id}) for video in record.videos]
    _report(hook, [record.image] if record.image else [], outputs, log)


def emit_batch_hook_lineage(hook: Any, end: BatchEnd, log: Logger) -> None:
    """Report where the images and videos of a batch are to Airflow's lineage collector.

    :param hook: reported as the source of the lineage.
    """
    landed = end.landed
    extra = {"videos": len(landed), "manifest": end.summary.get("manifest")}
    inputs = places_of(result.image for result in landed)
    _report(hook, inputs, [(uri, extra) for uri in end.outputs], log)


def _report(hook: Any, inputs: Iterable[str], outputs: Iterable[tuple[str, dict[str, Any]]], log: Logger) -> None:
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    try:
        collector = get_hook_lineage_collector()
        for uri in inputs:
            collector.add_input_asset(context=hook, uri=uri)
        for uri, extra in outputs:
            collector.add_output_asset(context=hook, uri=uri, asset_extra=extra)
    except Exception as error:  # an error of a third-party collector must not fail a task
        log.warning("Hook lineage could not be reported: %s", error)


def places_of(addresses: Iterable[str], *, at_most: int = MAX_PLACES) -> list[str]:
    """Return where data is: each address if they are few, else their folders, else their hosts.

    :param at_most: number of places to return.
    """
    distinct = [address for address in dict.fromkeys(addresses) if "://" in address]
    if len(distinct) <= FEW:
        return distinct
    found: list[str] = []
    levels: tuple[Callable[[str], str], ...] = (_folder, _root)
    for level in levels:
        found = list(dict.fromkeys(map(level, distinct)))
        if len(found) <= at_most:
            break
    return found[:at_most]


def _folder(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}/"


def _root(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/"
