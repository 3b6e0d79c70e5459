# SPDX-License-Identifier: Apache-2.0
"""A Sphinx extension that shows the parameters of a class as a table, with the types and defaults of its signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

_HEAD = ["", ".. list-table::", "   :header-rows: 1", "   :widths: 20 22 13 45", ""]


def setup(app: Any) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", put_table)
    return {"parallel_read_safe": True}


def put_table(app: Any, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """Replace the ``:param`` fields of a class by a table."""
    described, others = split(lines)
    if what != "class" or not described:
        return
    parameters = inspect.signature(documented).parameters
    table = [*_HEAD, *row("parameter", "type", "default", ["meaning"])]
    for parameter, text in described.items():
        found = parameters.get(parameter)
        kind = f"``{found.annotation}``" if found and found.annotation is not found.empty else ""
        default = "required" if found and found.default is found.empty else ""
        if found and found.default is not found.empty:
            default = f"``{found.default!r}``" if len(repr(found.default)) < 40 else ""
        table += row(f"``{parameter}``", kind, default, text)
    fields = next((at for at, line in enumerate(others) if line.startswith(":")), len(others))
    lines[:] = [*others[:fields], *table, "", *others[fields:]]


def row(first: str, second: str, third: str, text: list[str]) -> Iterator[str]:
    """Yield the lines of one row."""
    yield from (f"   * - {first}", f"     - {second}", f"     - {third}", f"     - {text[0]}")
    yield from (f"       {line}" for line in text[1:])


def split(lines: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the text of each ``:param`` field, and all other lines."""
    described: dict[str, list[str]] = {}
    others: list[str] = []
    now: list[str] | None = None
    for line in lines:
        if line.startswith(":param "):
            name, _, text = line.removeprefix(":param ").partition(":")
            now = described.setdefault(name.split()[-1], [])
            now.append(text.strip())
        elif now is not None and line.startswith(" "):
            now.append(line.strip())
        else:
            now = None
            others.append(line)
    return described, others
