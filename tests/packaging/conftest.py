# SPDX-License-Identifier: Apache-2.0
"""The built wheel, and an environment with nothing but Airflow that it is installed into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

_HOOK_META = """
import json
from airflow.api_fastapi.core_api.routes.ui.connections import hook_meta_data
print("HOOKS" + json.dumps([meta.model_dump(mode="json", by_alias=True) for meta in hook_meta_data()]))
"""


def _run(*command: str | Path, cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class AirflowInstallation:
    """A virtual environment with Airflow, away from the source tree."""

    directory: Path
    env: Mapping[str, str]

    @property
    def python(self) -> Path:
        return self.directory / "venv" / "bin" / "python"

    def run(self, *command: str | Path) -> str:
        return _run(*command, cwd=self.directory, env=self.env)

    def pip_install(self, *what: str | Path) -> None:
        options = ("--progress-bar", "off", "--disable-pip-version-check")
        self.run(self.python, "-m", "pip", "install", *options, "-c", ROOT / "constraints.txt", *what)

    def airflow(self, *arguments: str) -> str:
        return self.run(self.python, "-m", "airflow", *arguments)

    def providers(self) -> dict[str, str]:
        """Version of each provider that Airflow discovers."""
        printed = self.airflow("providers", "list", "--output", "json")
        rows = json.loads(printed[printed.index("[{") :])
        return {row["package_name"]: row["version"].strip() for row in rows}

    def connection_forms(self) -> dict[str, Any]:
        """What the API server gives the UI's connection form, by connection type."""
        printed = self.run(self.python, "-c", _HOOK_META)
        metas = json.loads(printed[printed.index("HOOKS") + len("HOOKS") :])
        return {meta["connection_type"]: meta for meta in metas}


@dataclass(frozen=True, slots=True)
class LinkState:
    """What Airflow discovers at one moment."""

    providers: dict[str, str]
    forms: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Installed:
    """An installation, and what it showed before and after the wheel came in."""

    airflow: AirflowInstallation
    before: LinkState
    after: LinkState


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, as a release is."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=ROOT, env=os.environ)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An empty environment with Airflow, looked at, given the wheel, and looked at again."""
    directory = tmp_path_factory.mktemp("installed")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    # Wide and without colour: what the command line prints is read here.
    env |= {"NO_COLOR": "1", "COLUMNS": "300", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env |= {"AIRFLOW_HOME": str(directory / "airflow")}
    airflow = AirflowInstallation(directory, env)
    _run(sys.executable, "-m", "venv", directory / "venv", cwd=directory, env=env)
    airflow.pip_install("apache-airflow")
    before = LinkState(airflow.providers(), airflow.connection_forms())
    airflow.pip_install(wheel)
    return Installed(airflow, before, LinkState(airflow.providers(), airflow.connection_forms()))
