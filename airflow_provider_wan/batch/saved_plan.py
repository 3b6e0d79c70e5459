# SPDX-License-Identifier: Apache-2.0
"""The plan of a batch as it is noted down: after a wait a batch goes on with what it began with, whatever the dataset
has become meanwhile, and the limits of a task instance count what an earlier plan of it has bought.

Signed addresses are secrets, and are not noted down: those rows are looked for in the dataset again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from airflow_provider_wan.batch.plan import Item, Plan
from airflow_provider_wan.batch.results import ImageResult
from airflow_provider_wan.batch.sources import BatchSource
from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.images.dataset import DatasetRow, ObjectFacts
from airflow_provider_wan.images.rows import PreparedRow
from airflow_provider_wan.images.source import ImageSources
from airflow_provider_wan.model_api.inputs import without_signatures

_OF_ITEM = ("fingerprint", "inputs", "object_name", "variation", "row", "copies")


def lines_of(plan: Plan, watcher: str) -> Iterator[dict[str, Any]]:
    """Write a plan down as plain JSON values: a line of what else to look after, and then one for each image.

    :param watcher: how records name the task instance.
    """
    former = [one for one, listed in plan.former.items() if listed.bought_by(watcher)]
    yield {"former": former, "missing": plan.missing()}
    for item in plan.items.values():
        yield _line(item)
    for ending in plan.refused:
        yield {"refused": ending.as_dict()}


class SavedPlan:
    """A plan that was noted down.

    :param lines: as :func:`lines_of` gave them.
    :raises ValueError, KeyError, TypeError: they are something else.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        #: Whose video had landed, and was not where it is wanted.
        self.missing: frozenset[str] = frozenset()
        self._former: list[str] = []
        self._refused: list[ImageResult] = []
        self._items: dict[str, Mapping[str, Any]] = {}
        for line in lines:
            if "fingerprint" in line:
                self._items[str(line["fingerprint"])] = line
            elif "refused" in line:
                self._refused.append(ImageResult.from_dict(line["refused"]))
            else:
                self._former = [str(one) for one in line["former"]]
                self.missing = frozenset(line["missing"])

    @property
    def has_gaps(self) -> bool:
        """Whether there are images whose address was signed."""
        return any(line["image"] is None for line in self._items.values())

    def fingerprints(self) -> set[str]:
        """Tell what was wanted, and what was bought before that."""
        return {*self._items, *self._former}

    def plan(self, sources: ImageSources, wanted_now: Mapping[str, Item]) -> Plan:
        """Give the plan, before anything is known of it.

        :param sources: opens source images.
        :param wanted_now: where images are found whose address was signed.
        """
        items = {
            one: _item(line, sources)
            if line["image"] is not None
            else wanted_now.get(one) or _gone(line, sources)
            for one, line in self._items.items()
        }
        return Plan(items, self._refused)


class _GoneSource(BatchSource):
    """An image whose address was signed, and that is not in the dataset any more."""

    def make_address(self) -> str:
        raise WanInputError(
            f"{self.shown} is not in the dataset any more, and its address was signed, so that it was not noted down. "
            "Nothing was bought for it."
        )


def _line(item: Item) -> dict[str, Any]:
    source = item.source
    row = source.row
    prepared = row.prepared and replace(row.prepared, inputs={}, passthrough={}).as_dict()
    known = row.known and asdict(row.known)
    image = {"image": row.image, "origin": row.origin, "line": row.line, "known": known, "prepared": prepared}
    noted = {name: getattr(item, name) for name in _OF_ITEM}
    line = {**noted, "shown": source.shown, "identity": source.identity, "image": image}
    # Only here may be more than can be shown anyway.
    given = {"inputs": item.inputs, "image": image}
    unsigned = without_signatures(given)
    return line if unsigned == given else {**line, "inputs": unsigned["inputs"], "image": None}


def _item(line: Mapping[str, Any], sources: ImageSources) -> Item:
    image = dict(line["image"])
    known, prepared = image.pop("known"), image.pop("prepared")
    row = DatasetRow(
        **image,
        known=known and ObjectFacts(**known),
        prepared=prepared and PreparedRow.from_dict(prepared),
    )
    return _with(line, BatchSource(line["shown"], line["identity"], row, sources))


def _gone(line: Mapping[str, Any], sources: ImageSources) -> Item:
    return _with(line, _GoneSource(line["shown"], line["identity"], DatasetRow(""), sources))


def _with(line: Mapping[str, Any], source: BatchSource) -> Item:
    return Item(source=source, **{name: line[name] for name in _OF_ITEM})
