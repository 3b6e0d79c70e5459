# SPDX-License-Identifier: Apache-2.0
"""What a batch wants: each row's fingerprint and object name, and what the journal knows of it already."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_provider_wan.batch.results import ImageResult, Outcome
from airflow_provider_wan.batch.sources import BatchSource, SourcedRow
from airflow_provider_wan.durable.journal import RecordSummary
from airflow_provider_wan.durable.record import Stage
from airflow_provider_wan.exceptions import WanInputError, WanRefusedError
from airflow_provider_wan.hooks.gcs import check_object_name
from airflow_provider_wan.images.dataset import DatasetRow, RowError
from airflow_provider_wan.model_api.inputs import clip_seconds, validate_inputs
from airflow_provider_wan.model_api.video_spec import SourceImage, make_video_spec

_NAME = "{name}-{fingerprint}.mp4"
_TAKEN = (
    "{} holds another object, and nothing was bought. Choose another object_name, such as one with {{fingerprint}} in "
    'it, or if_exists="overwrite"; if it is this very video, give the journal that it was bought with.'
)
_BUILT_IN = ("name", "fingerprint", "variation")
_ODD = re.compile(r"[^\w.()@+=-]+")
_SHOWN_HEX = 12


@dataclass(frozen=True, slots=True)
class Item:
    """One wanted video.

    :param inputs: all but the image.
    :param copies: how many rows want exactly this.
    """

    fingerprint: str
    source: BatchSource
    inputs: Mapping[str, Any]
    object_name: str
    variation: str | None = None
    row: str = ""
    copies: int = 1

    def uri_in(self, bucket_name: str) -> str:
        """Give the address that its first video is to have."""
        return f"gs://{bucket_name}/{self.object_name}"

    def ending(self, outcome: Outcome, **more: Any) -> ImageResult:
        """Say how it ended."""
        return ImageResult(self.source.shown, outcome, self.fingerprint, row=self.row or None, **more)


@dataclass(slots=True)
class Plan:
    """All that is wanted, in order.

    :param refused: rows that nothing can be made of.
    :param known: what the journal knew at the start, by fingerprint; all of it that is about ``items``.
    :param former: the same of images that the task instance wanted earlier, and wants no more.
    :param there: whose video has landed before, and stands where it is wanted.
    """

    items: dict[str, Item] = field(default_factory=dict)
    refused: list[ImageResult] = field(default_factory=list)
    known: dict[str, RecordSummary] = field(default_factory=dict)
    former: dict[str, RecordSummary] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        """How many images."""
        return len(self.items) + len(self.refused)

    def is_done(self, one: str) -> bool:
        """Whether its video has landed before, and is there."""
        return one in self.there

    def on_names(self, bucket_name: str, taken: Collection[str], *, may_replace: bool) -> None:
        """Take in what stands at the destination; what would be bought and could not land there is refused.

        :param taken: of the names that are wanted.
        :param may_replace: whether another object of that name is replaced.
        """
        landed = set(self.landed_in(bucket_name))
        for one, item in list(self.items.items()):
            if item.object_name not in taken:
                continue
            if one in landed:
                self.there.add(one)
            elif not may_replace and not self.is_taken_over(one):
                del self.items[one]
                self.refused.append(
                    item.ending(Outcome.REFUSED, error=_TAKEN.format(item.uri_in(bucket_name)))
                )

    def landed_in(self, bucket_name: str) -> Iterator[str]:
        """Give those whose record says that they have landed under the name that is wanted."""
        for one, item in self.items.items():
            listed = self.known.get(one)
            if listed is not None and listed.stage is Stage.LANDED and listed.uri == item.uri_in(bucket_name):
                yield one

    def missing(self) -> list[str]:
        """Give those whose record says that they have landed, and whose video is not where it is wanted."""
        known = self.known.items()
        return [one for one, listed in known if listed.stage is Stage.LANDED and one not in self.there]

    def is_taken_over(self, one: str) -> bool:
        """Whether the journal knows a request for it, or a claim of one, that has not failed: none is bought."""
        listed = self.known.get(one)
        return listed is not None and listed.stage not in (Stage.FAILED, Stage.CANCELLED)

    def to_do(self) -> list[Item]:
        """Give what is not there yet."""
        return [item for one, item in self.items.items() if not self.is_done(one)]


def plan_rows(
    rows: Iterable[SourcedRow],
    *,
    model_id: str,
    image_field: str,
    object_name: str,
    columns: Iterable[str] = (),
) -> Plan:
    """Plan a batch; nothing is sent. A row that nothing can be made of is refused, and the others go on.

    :param image_field: the input that takes the image's address.
    :param object_name: a prefix that ends with ``/`` (or is empty), or a pattern with ``{name}`` (of the image's
        file), ``{fingerprint}`` and the manifest's carried columns.
    :param columns: the carried columns; prepared rows may have others.
    :raises WanInputError: the pattern can't be used for any row, or gives two videos one name.
    """
    plan = Plan()
    names: dict[str, str] = {}
    pattern = object_name + _NAME if not object_name or object_name.endswith("/") else object_name
    carried = {*_BUILT_IN, *columns}
    for row in rows:
        if isinstance(row, RowError):
            where = f"{row.origin}, line {row.line}"
            plan.refused.append(ImageResult(where, Outcome.REFUSED, error=row.message, row=where))
            continue
        carried.update(row[0].passthrough)
        try:
            item = _item(*row, model_id, image_field)
            before = plan.items.get(item.fingerprint)
            if before is not None:
                plan.items[item.fingerprint] = replace(before, copies=before.copies + 1)
                continue
            item = replace(item, object_name=_object_name(pattern, row[0], item))
        except (WanRefusedError, ValueError, TypeError) as error:
            place = row[0].where if row[0].line else None
            plan.refused.append(ImageResult(row[1].shown, Outcome.REFUSED, error=str(error), row=place))
            continue
        if item.object_name in names:
            raise WanInputError(
                f"object_name={object_name!r} gives {item.object_name!r} to {names[item.object_name]} and to "
                f"{item.source.shown}. Put {{fingerprint}} into it."
            )
        names[item.object_name] = item.source.shown
        plan.items[item.fingerprint] = item
    if plan.refused:
        _check_pattern(pattern, carried)
    return plan


def _item(row: DatasetRow, source: BatchSource, model_id: str, image_field: str) -> Item:
    inputs = {name: value for name, value in row.inputs.items() if value is not None and name != image_field}
    if inputs.get("duration") and clip_seconds(model_id, inputs) is None:
        raise WanInputError(f"duration={str(inputs['duration'])[:80]!r} is no number of seconds.")
    image = SourceImage(image_field, source.shown, source.identity)
    spec = make_video_spec(model_id, inputs, image=image, variation=row.variation, validate=False)
    return Item(spec.fingerprint, source, inputs, "", row.variation, row.where if row.line else "")


def _check_pattern(pattern: str, carried: Iterable[str]) -> None:
    """Refuse a pattern that works for no row, whatever stands in its columns."""
    try:
        example = pattern.format_map(dict.fromkeys(carried, "x"))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in sorted(carried))
        raise WanInputError(
            f"object_name={pattern!r} can't be filled in ({error}); known are {known}."
        ) from None
    check_object_name(example)


def _object_name(pattern: str, row: DatasetRow, item: Item) -> str:
    given = {
        **{name: _plain(value) for name, value in row.passthrough.items() if value not in (None, "")},
        "name": _plain(_stem(item.source.shown)) or "image",
        "fingerprint": item.fingerprint[:_SHOWN_HEX],
        "variation": _plain(row.variation or ""),
    }
    try:
        return check_object_name(pattern.format_map(given))
    except KeyError as error:
        raise WanInputError(
            f"object_name={pattern!r} needs {error}, of which the row has no value."
        ) from None


def _stem(address: str) -> str:
    path = urlsplit(address).path if address.startswith(("http://", "https://")) else address
    return posixpath.splitext(posixpath.basename(unquote(path)))[0]


def _plain(value: Any) -> str:
    return _ODD.sub("_", str(value))[:100]


class InputCheck:
    """Validates inputs, once for each different set of them: most rows differ in the image alone."""

    def __init__(self, model_id: str, image_field: str) -> None:
        self._model_id = model_id
        self._image_field = image_field
        self._seen: dict[str, WanRefusedError | None] = {}

    def problem(self, item: Item) -> WanRefusedError | None:
        """Say what is wrong with the inputs of an item besides its image, if anything is."""
        key = json.dumps(item.inputs, sort_keys=True, default=str)
        if key not in self._seen:
            try:
                self.validated(item, "https://example.com/image.jpg")
            except WanRefusedError as error:
                self._seen[key] = error
            else:
                self._seen[key] = None
        return self._seen[key]

    def validated(self, item: Item, address: str) -> dict[str, Any]:
        """Give what is sent.

        :raises WanInputError: an input breaks a rule.
        """
        return validate_inputs(self._model_id, {**item.inputs, self._image_field: address})
