# SPDX-License-Identifier: Apache-2.0
"""Source images of a batch: what they count as is told at once, and cheaply; they are opened at a purchase only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.dataset import DatasetRow, RowError
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.model_api.inputs import canonical_url

_LOOK_UP_THREADS = 16
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class BatchSource:
    """A row's image, not opened yet.

    :param shown: its address without signature.
    :param identity: what it counts as in a fingerprint; None: its address.
    """

    shown: str
    identity: str | None
    row: DatasetRow = field(repr=False)
    sources: ImageSources = field(repr=False)

    def make_address(self) -> str:
        """Check, fix, stage and sign the image; gives the address that is sent."""
        return self.sources.open(self.row).make_address()


SourcedRow = tuple[DatasetRow, BatchSource] | RowError


def open_rows(rows: Iterable[DatasetRow | RowError], sources: ImageSources) -> Iterator[SourcedRow]:
    """Tell what each row's image counts as.

    An address on the web, a prepared row and an object from a listing tell it themselves; buckets are asked about
    the others, many at a time.
    """

    def open_row(row: DatasetRow | RowError) -> SourcedRow:
        if isinstance(row, RowError):
            return row
        try:
            return row, _source(row, sources)
        except (WanInputError, ValueError) as error:
            return RowError(row.origin, row.line, str(error))

    given = iter(rows)
    with ThreadPoolExecutor(_LOOK_UP_THREADS, "wan-look-up") as pool:
        while some := list(islice(given, _AT_ONCE)):
            is_far = any(isinstance(row, DatasetRow) and not _tells_itself(row) for row in some)
            yield from pool.map(open_row, some) if is_far else map(open_row, some)


def _tells_itself(row: DatasetRow) -> bool:
    if row.prepared is not None or row.image.startswith(("http://", "https://")):
        return True
    return row.known is not None and row.known.md5 is not None


def _source(row: DatasetRow, sources: ImageSources) -> BatchSource:
    if row.prepared is not None:
        return BatchSource(canonical_url(row.prepared.source), row.prepared.identity, row, sources)
    if row.image.startswith(("http://", "https://")):
        return BatchSource(canonical_url(row.image), None, row, sources)
    if row.known is not None and row.known.md5 is not None:
        return BatchSource(row.known.uri, f"md5:{row.known.md5}", row, sources)
    opened = sources.open(row)
    return BatchSource(opened.shown, opened.identity, row, sources)
