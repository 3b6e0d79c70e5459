# SPDX-License-Identifier: Apache-2.0
"""The cards of a batch: its XComs name a file in the bucket that has a line for each of its images.

While a batch runs that is the status file, which it writes at its waits; once it has ended its manifest.
A batch may have 200,000 images, so the lines stay on disk behind an index, and only those of a page are parsed.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import threading
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import IO, Any

from airflow_provider_wan.batch.results import Progress
from airflow_provider_wan.gallery.cards import (
    TASK_OVER,
    Card,
    CardState,
    CardVideo,
    Entry,
    OfTask,
    RunTask,
    TaskInstanceKey,
    Totals,
    XComRef,
    facts_of,
    file_name,
    task_name,
)

#: Key of a :class:`XComRef` to a line of the file that a batch names.
MANIFEST = "manifest"
#: XCom keys that name such a file, the later over the earlier.
FILE_KEYS = ("progress", "summary")

_NAME_OF_FILE = {"progress": "standing", "summary": "manifest"}
_STATE_OF_OUTCOME = {
    "landed": CardState.LANDED,
    "reused": CardState.LANDED,
    "rejected": CardState.REJECTED,
    "cancelled": CardState.CANCELLED,
    "refused": CardState.REFUSED,
    "unknown": CardState.UNKNOWN,
    "not_landed": CardState.NOT_LANDED,
    "no_output": CardState.NOT_LANDED,
    "in_flight": CardState.OPEN,
    "to_do": CardState.WAITING,
    "left": CardState.LEFT,
}
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
#: Smaller files stay in memory, larger ones in a temporary file.
_IN_MEMORY_BYTES = 256_000


@dataclass(frozen=True, slots=True)
class BatchStatus(OfTask):
    """Where the state of each image of a batch is written.

    :param uri: of the file with a line for each image; None: not written yet.
    :param journal: ``gs://bucket/prefix`` of the records; None: unknown.
    :param progress: how far it is, in words; empty once it has ended.
    :param is_over: whether its task has ended.
    :param model_id: the model of all its images; None: unknown.
    """

    task_id: str
    map_index: int
    uri: str | None
    journal: str | None
    progress: str = ""
    is_over: bool = False
    model_id: str | None = None


def file_of(key: str, value: Any) -> str | None:
    """Return the address of the file that an XCom of a batch names, or None."""
    uri = value.get(_NAME_OF_FILE.get(key, "")) if isinstance(value, Mapping) else None
    return uri if isinstance(uri, str) and uri.startswith("gs://") else None


def batches_of(entries: Iterable[Entry], tasks: Iterable[RunTask] = ()) -> list[BatchStatus]:
    """Find the batches of a run.

    :param tasks: its task instances of this provider.
    """
    over = {task.task for task in tasks if task.state in TASK_OVER}
    found: dict[TaskInstanceKey, BatchStatus] = {}
    of_batches = [entry for entry in entries if entry.key in FILE_KEYS and _is_of_batch(entry)]
    for entry in sorted(of_batches, key=lambda entry: FILE_KEYS.index(entry.key)):
        journal = entry.value.get("journal")
        found[entry.task] = BatchStatus(
            entry.task_id,
            entry.map_index,
            file_of(entry.key, entry.value),
            journal if isinstance(journal, str) and journal.startswith("gs://") else None,
            progress_of(entry.value) if entry.key == "progress" and entry.task not in over else "",
            entry.key == "summary" or entry.task in over,
        )
    return [found[task] for task in sorted(found)]


def _is_of_batch(entry: Entry) -> bool:
    return bool(file_of(entry.key, entry.value) or (entry.key == "progress" and progress_of(entry.value)))


def progress_of(value: Any) -> str:
    """Return how far a batch is, from its XCom ``progress``; empty if that has another form."""
    if not isinstance(value, Mapping):
        return ""
    given: dict[str, Any] = {field.name: value.get(field.name) for field in fields(Progress)}
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in given.values()):
        return ""
    return Progress(**given).line()


class BatchLines:
    """The lines of one file: states, costs and names in memory, the lines themselves on disk.

    :param file: with a JSON object on each line; other lines are skipped. It is read once, line by line.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._offsets = array("Q")
        self._kinds = array("H")
        self._kind_numbers: dict[tuple[str, bool], int] = {}
        #: Keys of the source images, see :func:`image_key`.
        self.images = array("q")
        self.cost_usd = 0.0
        #: Number of landed videos with a defect.
        self.flawed = 0
        names = []
        offset = 0
        for text in file:
            line = _parsed(text)
            if line is not None:
                self._offsets.append(offset)
                self._kinds.append(self._kind_number(line))
                rejected = line.get("takes") or ()  # those before this one were paid for too
                self.cost_usd += sum(_number(take.get("cost_usd")) or 0.0 for take in (line, *rejected))
                self.flawed += line.get("verdict") == "bad" and line.get("outcome") in ("landed", "reused")
                names.append(_names_of(line))
                self.images.append(hash(_text(line.get("image")) or (offset, "no image")))
            offset += len(text)
        self._names = "\n".join(names)

    def __len__(self) -> int:
        return len(self._offsets)

    @classmethod
    def temporary(cls, write: Any) -> BatchLines:
        """Read a file that is copied first.

        :param write: copies it into the file object that it is called with.
        """
        file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # closed with the index
        write(file)
        file.seek(0)
        return cls(file)

    def _kind_number(self, line: Mapping[str, Any]) -> int:
        kind = str(line.get("outcome"))[:40], bool(line.get("request_id"))
        # Odd files could have any number of outcomes: those beyond the known ones are all failures.
        kind = kind if kind[0] in _STATE_OF_OUTCOME else ("", kind[1])
        return self._kind_numbers.setdefault(kind, len(self._kind_numbers))

    def count(self) -> dict[tuple[str, bool], int]:
        """Return the number of lines of each outcome, with and without a request id."""
        counted = Counter(self._kinds)
        return {kind: counted[number] for kind, number in self._kind_numbers.items()}

    def find(self, kinds: Collection[tuple[str, bool]], name: str = "") -> Sequence[int]:
        """Return the numbers of the lines with one of these outcomes and a name that contains ``name``."""
        numbers = {number for kind, number in self._kind_numbers.items() if kind in kinds}
        if not name:
            if len(numbers) == len(self._kind_numbers):
                return range(len(self))
            return [n for n, kind in enumerate(self._kinds) if kind in numbers]
        name = name.casefold()
        names = enumerate(self._names.split("\n"))
        return [n for n, names_of_line in names if name in names_of_line and self._kinds[n] in numbers]

    def line(self, number: int) -> Mapping[str, Any]:
        """Return one line; an empty mapping if there is no such line."""
        if not 0 <= number < len(self):
            return {}
        with self._lock:
            self._file.seek(self._offsets[number])
            return _parsed(self._file.readline()) or {}


def _parsed(text: bytes) -> Mapping[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, Mapping) else None


def _names_of(line: Mapping[str, Any]) -> str:
    """Return the names of image and video that a search can find; a tab can't be typed into it."""
    names = dict.fromkeys(file_name(_text(line.get(field))) for field in ("image", "uri"))
    return "\t".join(names).casefold().replace("\n", " ")


class BatchCards:
    """The images of one batch as a source of a page."""

    def __init__(self, status: BatchStatus, lines: BatchLines) -> None:
        self._status = status
        self._lines = lines

    @property
    def totals(self) -> Totals:
        """The figures about its images."""
        counts: Counter[CardState] = Counter()
        requests = 0
        for (outcome, has_request), count in self._lines.count().items():
            counts[self._state(outcome, has_request)] += count
            requests += count if has_request else 0
        usable = counts[CardState.LANDED] - self._lines.flawed
        models = (self._status.model_id,) if self._status.model_id else ()
        return Totals(counts, self._lines.cost_usd, requests, usable, models)

    def find(self, states: Collection[CardState], name: str = "") -> Sequence[int]:
        """Return the numbers of the cards in these states whose image or video has a name that contains ``name``."""
        kinds = {kind for kind in self._lines.count() if self._state(*kind) in states}
        return self._lines.find(kinds, name)

    def cards(self, numbers: Iterable[int]) -> list[Card]:
        """Return cards by their numbers."""
        return [self._card(number, self._lines.line(number)) for number in numbers]

    def image_key(self, number: int) -> int:
        """Return a number that cards of the same source image share."""
        return self._lines.images[number]

    def _state(self, outcome: str, has_request: bool) -> CardState:
        state = _STATE_OF_OUTCOME.get(outcome, CardState.FAILED)
        if not self._status.is_over:
            return state
        if state in (CardState.LEFT, CardState.OPEN, CardState.WAITING):
            # The task has ended: its requests are paid for, and only a rerun lands them.
            return CardState.NOT_LANDED if has_request else CardState.LEFT
        return state

    def _card(self, number: int, line: Mapping[str, Any]) -> Card:
        status = self._status
        ref = XComRef(status.task_id, status.map_index, MANIFEST, number)
        uri, request_id = _text(line.get("uri")), _text(line.get("request_id"))
        return Card(
            self._state(str(line.get("outcome")), bool(request_id)),
            ref,
            request_id=request_id,
            image=_text(line.get("image")),
            model_id=self._status.model_id,
            cost_usd=_number(line.get("cost_usd")),
            error=_text(line.get("error")),
            videos=(CardVideo(uri, ref, defect=_defect_of(line)),) if uri else (),
            record=self._record(line.get("fingerprint")),
        )

    def _record(self, fingerprint: Any) -> str | None:
        journal = self._status.journal
        if not journal or not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
            return None
        return f"{journal.rstrip('/')}/{fingerprint}.json"


def with_record(card: Card, record: Mapping[str, Any] | None) -> Card:
    """Return a card completed from the journal's record: inputs, model and times.

    :param record: as JSON; None if there is none.
    """
    if record is None or record.get("request_id") != card.request_id:
        return card
    facts = facts_of(record)
    if card.cost_usd is not None:
        facts["cost_usd"] = card.cost_usd
    landed = {video.get("uri"): video for video in record.get("videos") or () if isinstance(video, Mapping)}
    videos = [
        CardVideo.of(landed[video.uri], video.ref) if video.uri in landed else video for video in card.videos
    ]
    return replace(card, videos=tuple(videos), **facts)


def problems_of(batches: Sequence[BatchStatus], entries: Iterable[Entry]) -> list[str]:
    """Return why batches of a run failed."""
    tasks = {batch.task for batch in batches}
    return sorted(
        f"{task_name(entry.task)}: {entry.value.get('error') or 'failed'}"
        for entry in entries
        if entry.key == "failed" and isinstance(entry.value, Mapping) and entry.task in tasks
    )


def _defect_of(line: Mapping[str, Any]) -> str:
    """Return the names of the checks that found something wrong; the record has more."""
    reasons = line.get("reasons")
    return ", ".join(map(str, reasons)) if line.get("verdict") == "bad" and isinstance(reasons, list) else ""


def _text(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None


def _number(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None
