# SPDX-License-Identifier: Apache-2.0
"""The table that the demo prints at its end."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One photograph: its video, or the rule that it broke."""

    image: str
    uri: str = ""
    size_bytes: int | None = None
    length_s: float | None = None
    cost_usd: float | None = None
    seconds: float | None = None
    refused: str = ""
    problem: str = ""

    @property
    def landed(self) -> bool:
        """Whether the video is in the bucket and was verified."""
        return bool(self.uri) and not self.problem


def render(rows: list[Row]) -> str:
    """Return the table as text, with refused images and the rules that they broke below it."""
    heads = ("image", "video", "size", "length", "cost", "took")
    lines = [heads, *(_cells(row) for row in rows if row.uri)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    shown = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    shown.insert(1, "  ".join("-" * width for width in widths))
    notes = [("refused, nothing paid", row.image, row.refused) for row in rows if row.refused]
    notes += [("FAILED", row.image, row.problem) for row in rows if row.problem]
    for word, image, text in notes:
        shown += ["", *textwrap.wrap(f"{image}: {word}. {text}", width=110, subsequent_indent="    ")]
    return "\n".join(shown)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.image,
        row.uri,
        "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f} MB",
        "" if row.length_s is None else f"{row.length_s:.1f} s",
        "" if row.cost_usd is None else f"{row.cost_usd:.2f} USD",
        "" if row.seconds is None else f"{row.seconds:.0f} s",
    )
