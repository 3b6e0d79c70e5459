# SPDX-License-Identifier: Apache-2.0
"""The texts that the troubleshooting page quotes are in the messages of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def texts_of(path: Path) -> list[str]:
    """Return every text of a module, an f-string as one text with its values left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_each_quoted_message_is_one_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    package = (ROOT / "airflow_provider_wan").rglob("*.py")
    texts = "\n".join(text for path in package for text in texts_of(path))
    assert len(quoted) > 10
    assert [text for text in quoted if text.casefold() not in texts.casefold()] == []
