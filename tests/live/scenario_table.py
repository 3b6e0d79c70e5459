# SPDX-License-Identifier: Apache-2.0
"""The measurements of the live scenarios as a table: printed at the end, and written to
``.work/live-table.md``.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE_FILE = Path(__file__).resolve().parents[2] / ".work" / "live-table.md"
HEAD = (
    "scenario",
    "bought",
    "charged",
    "cancelled on purpose",
    "cancelled falsely",
    "videos landed",
    "seconds to recover",
    "as promised",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one scenario.

    :param bought: requests that the sandbox's ledger shows for its images, canceled and failed ones included.
    :param wrong_cancels: requests that were cancelled and should not have been.
    :param landed: whole videos, each written once.
    :param recovered_s: from the harm to the promised end; None where nothing had to recover.
    :param fine: whether all of that is as promised.
    """

    scenario: str
    bought: int
    charged: int
    right_cancels: int
    wrong_cancels: int
    landed: int
    recovered_s: float | None
    fine: bool

    def cells(self) -> tuple[str, ...]:
        """Return the cells as text."""
        recovered = "-" if self.recovered_s is None else f"{self.recovered_s:.1f}"
        numbers = (self.bought, self.charged, self.right_cancels, self.wrong_cancels, self.landed)
        return (self.scenario, *map(str, numbers), recovered, "yes" if self.fine else "NO")


_rows: list[Row] = []
_lock = threading.Lock()


def add(row: Row) -> None:
    """Add a row; scenarios run in threads."""
    with _lock:
        _rows.append(row)


def render(rows: list[Row]) -> str:
    """Return the rows as a Markdown table that is readable as text."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table and write it, where there is one."""
    if not _rows:
        return
    text = render(sorted(_rows, key=lambda row: row.scenario))
    terminalreporter.section("what the ledger says of each live scenario")
    terminalreporter.write_line(text)
    TABLE_FILE.parent.mkdir(exist_ok=True)
    TABLE_FILE.write_text(text + "\n")
