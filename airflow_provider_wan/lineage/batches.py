# SPDX-License-Identifier: Apache-2.0
"""Asset events and hook lineage of a batch: as small for ten thousand videos as for ten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import Logger
from typing import Any
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_wan.batch.report import ImageResult, Outcome

#: Up to so many videos are told one by one: in an asset event, and in lineage.
FEW = 20
MOST_PLACES = 50
#: What an asset event takes over from the summary, which stays small however many images there are.
_FIGURES = (
    "total",
    *(str(outcome) for outcome in Outcome),
    "bought",
    "cost_usd",
    "cost_is_exact",
    "size_bytes",
    "duration_s",
    "manifest",
    "journal",
)


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """How a batch has ended.

    :param bucket: of the videos; ``prefix`` is where in it they all lie, empty or ending with a slash.
    :param summary: what the task returns.
    :param endings: of its images.
    """

    model_id: str
    bucket: str
    prefix: str
    summary: Mapping[str, Any]
    endings: Sequence[ImageResult]

    @property
    def uri(self) -> str:
        """Where all videos lie."""
        return f"gs://{self.bucket}/{self.prefix}"

    @property
    def there(self) -> list[ImageResult]:
        """The images whose videos are in the bucket."""
        return [ending for ending in self.endings if ending.outcome.is_there]

    @property
    def landed(self) -> list[ImageResult]:
        """Those that this task instance has brought there."""
        return [ending for ending in self.endings if ending.outcome is Outcome.LANDED]


def extra_of_batch(end: BatchEnd) -> dict[str, Any]:
    """Give what an asset event says about a batch, as plain JSON values; ``videos`` only where they are few."""
    extra = {
        "uri": end.uri,
        "model_id": end.model_id,
        **{name: end.summary[name] for name in _FIGURES if name in end.summary},
    }
    there = end.there
    if len(there) <= FEW:
        extra["videos"] = [_video(ending) for ending in there]
    return extra


def _video(ending: ImageResult) -> dict[str, Any]:
    return {
        "uri": ending.uri,
        "request_id": ending.request_id,
        "cost_usd": ending.cost_usd,
        "size_bytes": ending.size_bytes,
        "image": ending.image,
    }


def emit_batch_outlets(context: Mapping[str, Any], outlets: Iterable[Any], end: BatchEnd) -> None:
    """Put how a batch has ended into the events of a task's outlets: one event for each outlet.

    The event of an :class:`AssetAlias` is on an asset of the address under which all videos lie.
    """
    extra = extra_of_batch(end)
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            context["outlet_events"][outlet].add(Asset(end.uri), extra=extra)
        elif isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra = extra


def emit_batch_hook_lineage(hook: Any, end: BatchEnd, log: Logger) -> None:
    """Tell Airflow's collector from where images came and where videos went.

    :param hook: in whose name it is told.
    """
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    landed = end.landed
    try:
        collector = get_hook_lineage_collector()
        for place in places_of(ending.image for ending in landed):
            collector.add_input_asset(context=hook, uri=place)
        extra = {"videos": len(landed), "manifest": end.summary.get("manifest")}
        for place in outputs_of(end):
            collector.add_output_asset(context=hook, uri=place, asset_extra=extra)
    except Exception as error:  # a collector of somebody else's must not fail a batch
        log.warning("Hook lineage could not be told: %s", error)


def outputs_of(end: BatchEnd) -> list[str]:
    """Give where its videos are: each of them where they are few, else where all of them lie."""
    landed = [ending.uri for ending in end.landed if ending.uri]
    return landed if len(landed) <= FEW else [end.uri]


def places_of(addresses: Iterable[str], *, most: int = MOST_PLACES) -> list[str]:
    """Give where data is, in few words: each address where they are few, else their folders, else their hosts.

    :param most: how many words at most.
    """
    distinct = [one for one in dict.fromkeys(addresses) if "://" in one]
    if len(distinct) <= FEW:
        return distinct
    found: list[str] = []
    levels: tuple[Callable[[str], str], ...] = (_folder, _root)
    for level in levels:
        found = list(dict.fromkeys(map(level, distinct)))
        if len(found) <= most:
            break
    return found[:most]


def _folder(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}/"


def _root(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}/"
