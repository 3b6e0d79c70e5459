# SPDX-License-Identifier: Apache-2.0
"""The plan of a batch: the fingerprint and object name of each row, and what the journal knows about it.

Images are identified without opening them where possible. They are opened only when a purchase is about to be made.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_provider_wan.batch.results import ImageResult, Outcome
from airflow_provider_wan.durable.journal import RecordSummary
from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.exceptions import WanInputError, WanRefusedError
from airflow_provider_wan.hooks.gcs import check_object_name
from airflow_provider_wan.images.rows import DatasetRow, RowError
from airflow_provider_wan.images.source import ImageSource, ImageSources
from airflow_provider_wan.model_api.fingerprints import take_of
from airflow_provider_wan.model_api.inputs import clip_seconds
from airflow_provider_wan.model_api.schema import LazyModel, Model

_NAME = "{name}-{fingerprint}.mp4"
_TAKEN = (
    "{} holds another object, and nothing was bought. Choose another object_name, such as one with {{fingerprint}} in "
    'it, or if_exists="overwrite"; if it is the same video, set journal= to the prefix it was generated with.'
)
_BUILT_IN = ("name", "fingerprint", "variation")
_NOT_IN_NAMES = re.compile(r"[^\w.()@+=-]+")
_SHOWN_HEX = 12
_IDENTIFY_THREADS = 16
_IDENTIFY_AT_ONCE = 1000


# -- source images -----------------------------------------------------------------------------------------

SourcedRow = ImageSource | RowError


def open_rows(rows: Iterable[DatasetRow | RowError], sources: ImageSources) -> Iterator[SourcedRow]:
    """Identify the image of each row.

    A web address, a prepared row and an object from a listing need no call; for the others their bucket is asked, many
    at a time.
    """

    def open_row(row: DatasetRow | RowError) -> SourcedRow:
        if isinstance(row, RowError):
            return row
        try:
            return sources.open(row)
        except (WanInputError, ValueError) as error:
            return RowError(row.origin, row.line, str(error))

    remaining = iter(rows)
    with ThreadPoolExecutor(_IDENTIFY_THREADS, "wan-identify") as pool:
        while some := list(islice(remaining, _IDENTIFY_AT_ONCE)):
            needs_calls = any(isinstance(row, DatasetRow) and not _is_identified(row) for row in some)
            yield from pool.map(open_row, some) if needs_calls else map(open_row, some)


def _is_identified(row: DatasetRow) -> bool:
    return all(
        image.prepared is not None
        or (image.known is not None and image.known.md5 is not None)
        or image.address is None
        or image.address.startswith(("http://", "https://"))
        for image in row.images
    )


# -- the plan ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One video to generate.

    :param inputs: all inputs but the image.
    :param copies: how many rows ask for exactly this video.
    :param before: the take before this one, which was rejected; None: this is the first.
    :param rejection: the result of the take before this one.
    """

    fingerprint: str
    source: ImageSource
    inputs: Mapping[str, Any]
    object_name: str
    variation: str | None = None
    row: str = ""
    copies: int = 1
    before: Item | None = None
    rejection: ImageResult | None = None

    @property
    def takes(self) -> tuple[Item, ...]:
        """All takes of this video up to this one, the first first."""
        return (*(self.before.takes if self.before else ()), self)

    def next_take(self, rejection: ImageResult, model: Model) -> Item:
        """Return another take: with a seed of its own, if the model has one, under the same name.

        :param rejection: the result of this one.
        """
        takes = self.takes
        variation, name = take_of(takes[0].fingerprint, len(takes) + 1)
        inputs = {**self.inputs, **model.seed_from(name, self.inputs)}
        return replace(self, fingerprint=name, inputs=inputs, variation=variation, before=self, rejection=rejection)

    def uri_in(self, bucket_name: str) -> str:
        """Return the address of its first video."""
        return f"gs://{bucket_name}/{self.object_name}"

    def result(self, outcome: Outcome, **more: Any) -> ImageResult:
        """Return its result."""
        return ImageResult(
            self.source.shown,
            outcome,
            self.fingerprint,
            row=self.row or None,
            takes=tuple(_line_of(take.rejection) for take in self.takes if take.rejection) or None,
            **more,
        )

    def result_of(self, outcome: Outcome, known: RecordSummary) -> ImageResult:
        """Return its result, from the journal's summary of a record that has landed."""
        return self.result(
            outcome,
            request_id=known.request_id,
            uri=known.uri,
            size_bytes=known.size_bytes,
            cost_usd=known.cost_usd,
            verdict=known.verdict,
            reasons=known.reasons or None,
            error=", ".join(known.reasons) if known.is_rejected else None,
        )


def _line_of(rejection: ImageResult) -> dict[str, Any]:
    """Return the result of an earlier take, without what it shares with the later ones."""
    line = rejection.as_dict()
    return {name: value for name, value in line.items() if name not in ("image", "row", "takes")}


@dataclass(slots=True)
class Plan:
    """All videos to generate, in the order of the dataset.

    :param refused: rows that can't be used.
    :param known: what the journal knew about the items at the start, by fingerprint.
    :param former: the same for images of an earlier plan of this task instance that are not in this one.
    :param there: fingerprints whose video landed before, at its planned name, and is still there.
    """

    items: dict[str, Item] = field(default_factory=dict)
    refused: list[ImageResult] = field(default_factory=list)
    known: dict[str, RecordSummary] = field(default_factory=dict)
    former: dict[str, RecordSummary] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """The number of images."""
        return len(self.items) + len(self.refused)

    def replace(self, items: Mapping[str, Item]) -> None:
        """Replace items by other takes of the same videos, in their places.

        :param items: the new ones, by the fingerprints of the old ones.
        """
        latest = (items.get(fingerprint, item) for fingerprint, item in self.items.items())
        self.items = {item.fingerprint: item for item in latest}

    def on_names(self, bucket_name: str, taken: Collection[str], *, may_replace: bool) -> None:
        """Apply the state of the destination: refuse an item that would be bought but could not land there.

        :param taken: the object names of the plan that are taken.
        :param may_replace: whether another object with the name is replaced.
        """
        for fingerprint, item in list(self.items.items()):
            if item.object_name not in taken:
                continue
            known = self.known.get(fingerprint)
            if known is not None and known.stage is Stage.LANDED and known.uri == item.uri_in(bucket_name):
                self.there.add(fingerprint)
            elif not may_replace and not self.is_in_journal(fingerprint):
                del self.items[fingerprint]
                self.refused.append(item.result(Outcome.REFUSED, error=_TAKEN.format(item.uri_in(bucket_name))))

    def is_in_journal(self, fingerprint: str) -> bool:
        """Return whether the journal has a request or a claim for it that has not failed: then none is bought."""
        known = self.known.get(fingerprint)
        return known is not None and not known.has_failed

    def to_do(self) -> list[Item]:
        """Return the items whose video is not there yet."""
        return [item for fingerprint, item in self.items.items() if fingerprint not in self.there]


def plan_rows(
    rows: Iterable[SourcedRow],
    *,
    model: LazyModel,
    object_name: str,
    columns: Iterable[str] = (),
) -> Plan:
    """Plan a batch without sending anything. A row that can't be used is refused, and the others continue.

    :param object_name: a prefix that ends with ``/`` (or is empty), or a pattern with ``{name}`` (of the image's
        file), ``{fingerprint}`` and the manifest's passthrough columns.
    :param columns: the passthrough columns; prepared rows may have others.
    :raises WanInputError: the pattern can't be used for any row, or gives two videos one name.
    """
    plan = Plan()
    names: dict[str, str] = {}
    pattern = object_name + _NAME if not object_name or object_name.endswith("/") else object_name
    available = {*_BUILT_IN, *columns}
    for row in rows:
        if isinstance(row, RowError):
            plan.refused.append(ImageResult(row.where, Outcome.REFUSED, error=row.message, row=row.where))
            continue
        available.update(row.row.passthrough)
        try:
            item = _item(row, model)
            same = plan.items.get(item.fingerprint)
            if same is not None:
                plan.items[item.fingerprint] = replace(same, copies=same.copies + 1)
                continue
            item = replace(item, object_name=_object_name(pattern, row.row, item))
        except (WanRefusedError, ValueError, TypeError) as error:
            place = row.row.where if row.row.line else None
            plan.refused.append(ImageResult(row.shown, Outcome.REFUSED, error=str(error), row=place))
            continue
        if item.object_name in names:
            raise WanInputError(
                f"object_name={object_name!r} gives {item.object_name!r} to {names[item.object_name]} and to "
                f"{item.source.shown}. Put {{fingerprint}} into it."
            )
        names[item.object_name] = item.source.shown
        plan.items[item.fingerprint] = item
    if plan.refused:
        _check_pattern(pattern, available)
    return plan


def _item(source: ImageSource, model: LazyModel) -> Item:
    row = source.row
    inputs = {name: value for name, value in row.inputs.items() if value is not None}
    if inputs.get("duration") and model.known.schema is None and clip_seconds(model.known, inputs) is None:
        raise WanInputError(f"duration={str(inputs['duration'])[:80]!r} is not a number of seconds.")
    place = row.where if row.line else ""
    return Item(source.spec().fingerprint, source.without_row(), inputs, "", row.variation, place)


def _check_pattern(pattern: str, available: Iterable[str]) -> None:
    """Refuse a pattern that no row can satisfy."""
    try:
        example = pattern.format_map(dict.fromkeys(available, "x"))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(available))
        raise WanInputError(f"object_name={pattern!r} can't be filled in ({error}); known are {known}.") from None
    check_object_name(example)


def _object_name(pattern: str, row: DatasetRow, item: Item) -> str:
    values = {
        **{name: _for_name(value) for name, value in row.passthrough.items() if value not in (None, "")},
        "name": _for_name(_stem(item.source.shown)) or "image" if item.source.images else "video",
        "fingerprint": item.fingerprint[:_SHOWN_HEX],
        "variation": _for_name(row.variation or ""),
    }
    try:
        return check_object_name(pattern.format_map(values))
    except KeyError as error:
        raise WanInputError(f"object_name={pattern!r} needs {error}, and the row has no value for it.") from None


def _stem(address: str) -> str:
    path = urlsplit(address).path if address.startswith(("http://", "https://")) else address
    return posixpath.splitext(posixpath.basename(unquote(path)))[0]


def _for_name(value: Any) -> str:
    return _NOT_IN_NAMES.sub("_", str(value))[:100]
