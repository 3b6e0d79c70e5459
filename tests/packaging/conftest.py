# SPDX-License-Identifier: Apache-2.0
"""The built wheels, and an environment with only Airflow that the provider is installed into."""

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

#: Runs commands of the `airflow` program one after the other in one process, which imports Airflow once.
_COMMANDS = """
import contextlib, io, json, sys
from airflow.__main__ import main
answers = []
for command in json.loads(sys.argv[1]):
    printed = io.StringIO()
    sys.argv = ["airflow", *command]
    with contextlib.redirect_stdout(printed):
        main()
    answers.append(printed.getvalue())
from airflow.api_fastapi.core_api.routes.ui.connections import hook_meta_data
forms = [meta.model_dump(mode="json", by_alias=True) for meta in hook_meta_data()]
print("ANSWERS" + json.dumps({"answers": answers, "forms": forms}))
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
    """A virtual environment with Airflow, outside the source tree."""

    directory: Path
    env: Mapping[str, str]

    @property
    def python(self) -> Path:
        return self.directory / "venv" / "bin" / "python"

    def run(self, *command: str | Path) -> str:
        return _run(*command, cwd=self.directory, env=self.env)

    def install(self, *what: str | Path) -> None:
        uv_pip(self.directory / "venv", "install", "-c", ROOT / "constraints.txt", *what)

    def airflow(self, *commands: tuple[str, ...]) -> dict[str, Any]:
        """Run commands of the ``airflow`` program; return the output of each, and the UI's connection forms."""
        printed = self.run(self.python, "-c", _COMMANDS, json.dumps(commands))
        found: dict[str, Any] = json.loads(printed[printed.index("ANSWERS") + len("ANSWERS") :])
        return found

    def discover(self) -> Discovered:
        """Return the providers, hooks and connection forms that Airflow finds."""
        as_json = ("--output", "json")
        found = self.airflow(("providers", "list", *as_json), ("providers", "hooks", *as_json))
        providers, hooks = (rows(answer) for answer in found["answers"])
        return Discovered(
            {row["package_name"]: row["version"].strip() for row in providers},
            {row["connection_type"]: row for row in hooks},
            {form["connection_type"]: form for form in found["forms"]},
        )


def rows(printed: str) -> list[dict[str, Any]]:
    """Parse the table that a command printed as JSON."""
    found: list[dict[str, Any]] = json.loads(printed[printed.index("[{") :])
    return found


@dataclass(frozen=True, slots=True)
class Discovered:
    """A snapshot of what Airflow discovers: versions by provider, hooks and forms by connection type."""

    providers: dict[str, str]
    hooks: dict[str, Any]
    forms: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Installed:
    """An installation, and the snapshots before and after the wheel was installed."""

    airflow: AirflowInstallation
    before: Discovered
    after: Discovered


def uv_pip(venv: Path, *arguments: str | Path) -> str:
    """Run ``uv pip`` on a virtual environment, which is created if it does not exist."""
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    uv = Path(sys.executable).with_name("uv")
    if not venv.exists():
        _run(uv, "venv", "--python", sys.executable, venv, cwd=venv.parent, env=env)
    command, *rest = arguments
    return _run(uv, "pip", command, "--python", venv / "bin" / "python", *rest, cwd=venv.parent, env=env)


def build(source: Path, out: Path) -> Path:
    """Build a wheel from the source distribution, as for a release."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=ROOT, env=os.environ)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the provider."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def sandbox_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sandbox."""
    return build(ROOT / "sandbox", tmp_path_factory.mktemp("dist-sandbox"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with Airflow, inspected before and after the wheel is installed."""
    directory = tmp_path_factory.mktemp("installed")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    # Wide and without colour, since the tests parse the output of the command line.
    env |= {"NO_COLOR": "1", "COLUMNS": "300", "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env |= {"AIRFLOW_HOME": str(directory / "airflow")}
    airflow = AirflowInstallation(directory, env)
    airflow.install("apache-airflow")
    before = airflow.discover()
    airflow.install(wheel)
    return Installed(airflow, before, airflow.discover())
