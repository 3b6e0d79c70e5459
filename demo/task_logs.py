# SPDX-License-Identifier: Apache-2.0
"""Airflow writes a task's log as a JSON object a line; people read text."""

from __future__ import annotations

import json
from typing import Any


def plain_log(log: str) -> str:
    """A task's log, which is a JSON object a line, as text."""
    return "\n".join(_plain_line(line) for line in log.splitlines())


def _plain_line(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    shown = f"{entry.pop('timestamp', '')} {entry.pop('level', ''):<8}{entry.pop('event', '')}"
    details = entry.pop("error_detail", None)
    for name in ("logger", "filename", "lineno"):
        entry.pop(name, None)
    extra = "".join(f" {name}={value}" for name, value in entry.items())
    return f"{shown}{extra}{_traceback(details)}"


def _traceback(details: Any) -> str:
    """The frames of a logged exception, innermost last, as Python prints them."""
    text = ""
    for error in details if isinstance(details, list) else []:
        for frame in error.get("frames", []):
            text += f"\n  File {frame.get('filename')}, line {frame.get('lineno')}, in {frame.get('name')}"
        text += f"\n{error.get('exc_type')}: {error.get('exc_value')}"
    return text
