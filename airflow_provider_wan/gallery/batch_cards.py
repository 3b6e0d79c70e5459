# SPDX-License-Identifier: Apache-2.0
"""The cards of a batch: its XComs name a file in the bucket that has a line for each of its images. Pure.

While a batch is under way that is what it last wrote about where each image stands, once it is over its manifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from airflow_provider_wan.batch.report import Progress
from airflow_provider_wan.gallery.cards import Card, Entry, Film, Look, Notes, Place

#: In a :class:`Place`, of a line in the file that a batch names.
MANIFEST = "manifest"
#: XCom keys that name one, the later over the earlier.
FILE_KEYS = ("progress", "summary")

_NAME_OF_FILE = {"progress": "standing", "summary": "manifest"}
_LOOK_OF_OUTCOME = {
    "landed": Look.LANDED,
    "reused": Look.LANDED,
    "cancelled": Look.CANCELLED,
    "refused": Look.REFUSED,
    "in_flight": Look.OPEN,
    "to_do": Look.WAITING,
    "left": Look.LEFT,
}
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where the images of a batch are told.

    :param uri: of the file with a line for each of them; None: it has not written any yet.
    :param journal: ``gs://bucket/prefix`` of the records; None: not told.
    :param figures: how far it is, for people; empty once it is over, when its cards say it all.
    """

    task_id: str
    map_index: int
    uri: str | None
    journal: str | None
    figures: str = ""

    @property
    def task(self) -> tuple[str, int]:
        """The task instance."""
        return self.task_id, self.map_index


def file_of(key: str, value: Any) -> str | None:
    """Give the address of the file that an XCom of a batch names, if it is one."""
    uri = value.get(_NAME_OF_FILE.get(key, "")) if isinstance(value, Mapping) else None
    return uri if isinstance(uri, str) and uri.startswith("gs://") else None


def sheets_of(entries: Iterable[Entry]) -> list[Sheet]:
    """Find the batches of a run."""
    found: dict[tuple[str, int], Sheet] = {}
    for entry in sorted(
        entries, key=lambda entry: FILE_KEYS.index(entry.key) if entry.key in FILE_KEYS else -1
    ):
        if entry.key not in FILE_KEYS or not _is_of_batch(entry):
            continue
        journal = entry.value.get("journal")
        found[entry.task_id, entry.map_index] = Sheet(
            entry.task_id,
            entry.map_index,
            file_of(entry.key, entry.value),
            journal if isinstance(journal, str) and journal.startswith("gs://") else None,
            figures_of(entry.value) if entry.key == "progress" else "",
        )
    return [found[one] for one in sorted(found)]


def _is_of_batch(entry: Entry) -> bool:
    if file_of(entry.key, entry.value):
        return True
    return entry.key == "progress" and bool(figures_of(entry.value))


def figures_of(progress: Any) -> str:
    """Say how far a batch is, from what it pushed as ``progress``; empty where that is something else."""
    if not isinstance(progress, Mapping):
        return ""
    given: dict[str, Any] = {field.name: progress.get(field.name) for field in fields(Progress)}
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in given.values()):
        return ""
    return Progress(**given).line()


def notes_of(sheets: Sequence[Sheet], entries: Iterable[Entry], unread: Iterable[Sheet] = ()) -> Notes:
    """Say how far the batches of a run are, and why any has failed.

    :param unread: those whose file could not be read, or is empty.
    """
    names = {sheet.task: _name(*sheet.task) for sheet in sheets}
    figures = [f"{names[sheet.task]}: {sheet.figures}" for sheet in sheets if sheet.figures]
    troubles = [
        f"{names[task]}: {entry.value.get('error') or 'failed'}"
        for entry in entries
        if entry.key == "failed"
        and isinstance(entry.value, Mapping)
        and (task := (entry.task_id, entry.map_index)) in names
    ]
    troubles += [f"{names[sheet.task]}: nothing could be read in {sheet.uri}." for sheet in unread]
    return Notes("\n".join(figures), tuple(sorted(troubles)))


def _name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id} [{map_index}]"


def cards_of_lines(sheet: Sheet, lines: Iterable[Any]) -> list[Card]:
    """Make the cards of a batch.

    :param lines: of its file, as JSON values.
    """
    cards = []
    for number, line in enumerate(lines):
        if not isinstance(line, Mapping):
            continue
        place = Place(sheet.task_id, sheet.map_index, MANIFEST, number)
        uri = line.get("uri")
        cards.append(
            Card(
                _LOOK_OF_OUTCOME.get(str(line.get("outcome")), Look.FAILED),
                place,
                request_id=_text(line.get("request_id")),
                image=_text(line.get("image")),
                cost_usd=_number(line.get("cost_usd")),
                error=_text(line.get("error")),
                films=(Film(str(uri), _number(line.get("size_bytes")), place),) if uri else (),
                record=_record_of(sheet, line.get("fingerprint")),
            )
        )
    return cards


def _record_of(sheet: Sheet, fingerprint: Any) -> str | None:
    is_one = sheet.journal and isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)
    return f"{str(sheet.journal).rstrip('/')}/{fingerprint}.json" if is_one else None


def with_record(card: Card, record: Mapping[str, Any] | None) -> Card:
    """Add what the journal knows of a card's request: inputs, model and times.

    :param record: as JSON; None: there is none, as of an image that nothing was bought for.
    """
    if record is None or record.get("request_id") != card.request_id:
        return card
    inputs = record.get("inputs")
    return replace(
        card,
        inputs=dict(inputs) if isinstance(inputs, Mapping) else {},
        model_id=_text(record.get("model_id")),
        variation=_text(record.get("variation")),
        cost_usd=card.cost_usd if card.cost_usd is not None else _number(record.get("cost_usd")),
        submitted_at=_text(record.get("submitted_at")),
        created_at=_text(record.get("created_at")),
        finished_at=_text(record.get("finished_at")),
    )


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else None
