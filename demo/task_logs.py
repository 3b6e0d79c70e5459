# SPDX-License-Identifier: Apache-2.0
"""Task logs as text: Airflow writes a JSON object per line."""

from __future__ import annotations

import json
from typing import Any

_WHERE = ("ti_id", "run_id", "dag_id", "task_id", "map_index", "try_number", "logger", "filename", "lineno")
"""Shown once above the log, not on each line."""
_FRAMEWORK = ("/airflow/sdk/", "/airflow/providers/standard/")


def plain_log(log: str) -> str:
    """Return a task's log as text, without the group markers of the UI."""
    lines = [_plain_line(line) for line in log.splitlines()]
    return "\n".join(line for line in lines if "::group::" not in line and "::endgroup::" not in line)


def _plain_line(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    shown = f"{entry.pop('timestamp', '')} {entry.pop('level', ''):<8} {entry.pop('event', '')}"
    details = entry.pop("error_detail", None)
    extra = "".join(f" {name}={value}" for name, value in entry.items() if name not in _WHERE)
    return f"{shown}{extra}{_traceback(details)}"


def _traceback(details: Any) -> str:
    """Return the frames of a logged exception below Airflow's own, innermost last, as Python prints them."""
    text = ""
    for error in details if isinstance(details, list) else []:
        frames = [frame for frame in error.get("frames", []) if isinstance(frame, dict)]
        own = [frame for frame in frames if not any(part in frame["filename"] for part in _FRAMEWORK)]
        for frame in own or frames:
            text += f"\n  File {frame.get('filename')}, line {frame.get('lineno')}, in {frame.get('name')}"
        text += f"\n{error.get('exc_type')}: {error.get('exc_value')}"
    return text
