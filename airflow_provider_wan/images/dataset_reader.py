# SPDX-License-Identifier: Apache-2.0
"""A dataset's rows, one at a time: of a prefix in a bucket, of addresses, of manifests, or of all of these.

Nothing is held but the page or the megabyte that is being read, however long the dataset is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.hooks.gcs import TIMEOUT_S, retry_policy, split_gs_uri, storage_errors
from airflow_provider_wan.images.dataset import Columns, DatasetRow, RowError, read_manifest, row_of_cells
from airflow_provider_wan.images.origins import facts_of, look_up_object
from airflow_provider_wan.images.readers import shown_name
from airflow_provider_wan.images.rows import is_prepared_row

if TYPE_CHECKING:
    from google.cloud import storage

#: What a prefix is filtered by: images that can be used or made usable, and such as people take for images, so
#: that they are in the report and not silently left out.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".svg", ".pdf"),
)
_MANIFESTS = (".csv", ".jsonl", ".ndjson")
_BLOCK_BYTES = 1024 * 1024
#: A manifest with longer lines is another kind of file.
_LONGEST_LINE_BYTES = 8 * 1024 * 1024

Row = DatasetRow | RowError


@dataclass(frozen=True, slots=True)
class DatasetReader:
    """Gives the rows of whatever a user calls a dataset.

    :param client: gives the Cloud Storage client; asked only where one is needed.
    :param columns: what a manifest's columns may be, and the task's defaults for what a row does not say.
    :param suffixes: which objects of a prefix are images, in lower case with their dot.
    :param may_be_empty: whether a prefix without any image has no rows, rather than being wrong.
    """

    client: Callable[[], storage.Client]
    columns: Columns = field(default_factory=Columns)
    suffixes: Sequence[str] = IMAGE_SUFFIXES
    may_be_empty: bool = False

    def rows(self, dataset: Any) -> Iterator[Row]:
        """Give the rows in order; one that can't be used is given as an error, and the rest goes on.

        :param dataset: ``gs://bucket/prefix/`` (all images under it), the address or path of a manifest
            (``.csv``, ``.jsonl``, ``.ndjson``, also what a ``WanPrepareImagesOperator`` wrote), the address of an
            image, a row as a mapping, or a list of any of these, also as JSON text.
        :raises WanInputError: it is none of these, or a manifest as a whole is wrong.
        :raises WanStorageError: the bucket can't be read.
        """
        dataset = _plain(dataset)
        entries = [dataset] if isinstance(dataset, str | Mapping) else dataset
        if not isinstance(entries, Iterable):
            raise WanInputError(
                f"{str(dataset)[:80]!r} is neither the address of images or a manifest, nor a list of them."
            )
        is_many = entries is dataset
        for number, entry in enumerate(entries, 1):
            where = f"dataset[{number - 1}]" if is_many else "dataset"
            if isinstance(entry, Mapping):
                yield self._given_row(entry, where, number)
            elif isinstance(entry, str):
                yield from self._of_address(entry.strip(), where, number)
            else:
                yield RowError(
                    where, number, f"it is of type {type(entry).__name__}, not an address or a row"
                )

    def _of_address(self, address: str, where: str, number: int) -> Iterator[Row]:
        try:
            shown = shown_name(address).lower()
        except ValueError:  # no URL: its row says so
            shown = address.lower()
        if shown.endswith(_MANIFESTS):
            yield from self._manifest(address)
        elif address.startswith("gs://") and not shown.endswith(tuple(self.suffixes)):
            yield from self._prefix(address)
        else:
            yield self._given_row({"image": address}, where, number)

    def _given_row(self, entry: Mapping[str, Any], where: str, number: int) -> Row:
        try:
            broken = () if is_prepared_row(entry) else self.columns.unknown(str(name) for name in entry)
            if broken:
                return RowError(where, number, "; ".join(broken))
            return row_of_cells(entry, origin=where, line=number, columns=self.columns)
        except ValueError as error:
            return RowError(where, number, str(error))

    def _prefix(self, uri: str) -> Iterator[Row]:
        """List a prefix page by page."""
        bucket, prefix = split_gs_uri(uri, name="dataset")
        with storage_errors(f"Listing {uri}"):
            blobs = iter(
                self.client().list_blobs(
                    bucket,
                    prefix=prefix,
                    fields="items(name,bucket,generation,size,md5Hash),nextPageToken",
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            )
        seen = 0
        for number in range(1, 2**63):
            with storage_errors(f"Listing {uri}"):
                blob = next(blobs, None)
            if blob is None:
                break
            if not blob.name.lower().endswith(tuple(self.suffixes)):
                continue
            seen += 1
            known = facts_of(blob)
            yield DatasetRow(
                image=known.uri,
                inputs=dict(self.columns.defaults),
                variation=self.columns.variation,
                origin=uri,
                line=number,
                known=known,
            )
        if not seen and not self.may_be_empty:
            raise WanInputError(
                f"There is no image under {uri}: no object's name starts so and ends with one of "
                f"{', '.join(self.suffixes)}."
            )

    def _manifest(self, address: str) -> Iterator[Row]:
        if address.startswith("gs://"):
            yield from read_manifest(self._lines(address), origin=address, columns=self.columns)
        elif "://" in address:
            raise WanInputError(
                f"The manifest {shown_name(address)} must lie in a bucket (gs://...) or on disk; images in it may be "
                "anywhere."
            )
        else:
            try:
                with open(address, "rb") as file:
                    yield from read_manifest(file, origin=address, columns=self.columns)
            except OSError as error:
                raise WanInputError(
                    f"The manifest {address} can't be read: {error.strerror or error}."
                ) from error

    def _lines(self, uri: str) -> Iterator[bytes]:
        """Read an object line by line, a megabyte at a time, all of one generation."""
        client = self.client()
        facts = look_up_object(client, uri)
        blob = client.bucket(facts.bucket).blob(facts.name)
        rest = b""
        for start in range(0, facts.size_bytes, _BLOCK_BYTES):
            with storage_errors(f"Reading {uri}"):
                block = blob.download_as_bytes(
                    start=start,
                    end=start + _BLOCK_BYTES - 1,
                    raw_download=True,
                    if_generation_match=facts.generation,
                    checksum=None,
                    timeout=TIMEOUT_S,
                    retry=retry_policy(),
                )
            *lines, rest = (rest + block).split(b"\n")
            yield from (line + b"\n" for line in lines)
            if len(rest) > _LONGEST_LINE_BYTES:
                raise WanInputError(
                    f"{uri} has a line of more than {_LONGEST_LINE_BYTES:,} bytes: it is no manifest."
                )
        if rest:
            yield rest


def _plain(dataset: Any) -> Any:
    """Read a list that Jinja has made text of."""
    if not isinstance(dataset, str) or not dataset.lstrip().startswith(("[", "{")):
        return dataset
    try:
        return json.loads(dataset)
    except ValueError:
        import ast

        try:
            return ast.literal_eval(dataset)
        except (ValueError, SyntaxError):
            raise WanInputError(
                f"dataset={dataset[:80]!r} is neither an address nor a list in JSON."
            ) from None
