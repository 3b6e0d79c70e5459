# SPDX-License-Identifier: Apache-2.0
"""A dags folder for tests that run a task in Airflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dag_runs import DagFolder


@pytest.fixture
def dags(airflow_db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DagFolder:
    folder = tmp_path / "dags"
    folder.mkdir()
    return DagFolder(folder, monkeypatch)
