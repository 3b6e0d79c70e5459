# SPDX-License-Identifier: Apache-2.0
"""The files of a release: the same source gives the same bytes, wherever and whenever they are built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .conftest import ROOT, build

#: What each distribution is built from.
SOURCES = {
    "wheel": ("airflow_provider_wan", "README.md", "CHANGELOG.md", ".airflow-registry.yaml"),
    "sandbox_wheel": ("sandbox/wan_sandbox", "sandbox/README.md"),
}


@pytest.mark.parametrize("built", SOURCES)
def test_another_build_gives_the_same_bytes(built: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    first: Path = request.getfixturevalue(built)
    folder = "sandbox/" if built == "sandbox_wheel" else ""
    copy = tmp_path / "elsewhere"
    for name in (".gitignore", f"{folder}LICENSE", f"{folder}pyproject.toml", *SOURCES[built]):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    for file in copy.rglob("*"):
        os.utime(file, (1_700_000_000, 1_700_000_000))
    second = build(copy / folder, tmp_path / "dist")
    files = {file.name: file.read_bytes() for file in first.parent.iterdir()}
    assert sorted(name.rpartition(".")[2] for name in files) == ["gz", "whl"]
    assert {file.name: file.read_bytes() for file in second.parent.iterdir()} == files
