# SPDX-License-Identifier: Apache-2.0
"""Prepared rows: one image that was checked, fixed and published, with what is wanted of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_wan.exceptions import WanInputError

_TEXTS = ("source", "staged_uri")
_NUMBERS = ("width", "height", "size_bytes")


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """One image as it can be submitted.

    :param source: address of the image that it came from, without signature.
    :param staged_uri: address of what is submitted: a staged copy (``gs://``), or the source where it fits as it is.
    :param width: in px.
    :param size_bytes: size of the file.
    :param sha256: of the file, in hex.
    :param changes: what was done to the source, in words; empty where nothing was.
    :param identity: what the image counts as in a fingerprint (``md5:...`` of the source's content); None: its
        address.
    :param inputs: the row's own inputs of the model.
    :param variation: as in :class:`~airflow_provider_wan.operators.wan.WanSubmitOperator`.
    """

    source: str
    staged_uri: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    changes: tuple[str, ...] = ()
    identity: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain JSON values: one line of a chunk manifest."""
        plain = {
            "source": self.source,
            "staged_uri": self.staged_uri,
            "width": self.width,
            "height": self.height,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "changes": list(self.changes),
            "identity": self.identity,
            "inputs": dict(self.inputs),
            "variation": self.variation,
        }
        return plain | ({"passthrough": dict(self.passthrough)} if self.passthrough else {})

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> PreparedRow:
        """Read what :meth:`as_dict` wrote; other columns are passed over.

        :raises WanInputError: it is no prepared row.
        """
        row = cls(
            source=plain.get("source", ""),
            staged_uri=plain.get("staged_uri", ""),
            width=plain.get("width", 0),
            height=plain.get("height", 0),
            size_bytes=plain.get("size_bytes", 0),
            sha256=str(plain.get("sha256") or ""),
            changes=tuple(plain.get("changes") or ()),
            identity=plain.get("identity"),
            inputs=plain.get("inputs") or {},
            variation=plain.get("variation"),
            passthrough=plain.get("passthrough") or {},
        )
        wrong = [name for name in _TEXTS if not isinstance(getattr(row, name), str) or not getattr(row, name)]
        wrong += [name for name in _NUMBERS if not isinstance(getattr(row, name), int)]
        wrong += [name for name in ("inputs", "passthrough") if not isinstance(getattr(row, name), Mapping)]
        if wrong:
            raise WanInputError(
                f"This is no prepared row: {', '.join(wrong)} is missing or of another kind. Give what "
                "WanPrepareImagesOperator wrote, or the address of an image."
            )
        return row


def is_prepared_row(plain: Mapping[str, Any]) -> bool:
    """Tell a prepared row from a row of a user's manifest."""
    return "staged_uri" in plain
