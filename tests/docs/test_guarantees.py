# SPDX-License-Identifier: Apache-2.0
"""Every test that the guarantees page names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`((?:sandbox/)?tests/[\w/]+\.py)::(test_\w+)`")


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_test_that_proves_a_guarantee_exists() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = NAMED.findall(page)
    assert len(named) > 30
    assert [f"{path}::{name}" for path, name in named if name not in functions(ROOT / path)] == []


def test_each_live_scenario_proves_a_guarantee() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    there = {
        f"{path.name}::{name}"
        for path in (ROOT / "tests" / "live").glob("test_scenarios_*.py")
        for name in functions(path)
        if name.startswith("test_")
    }
    assert sorted(one for one in there if one not in page) == []
