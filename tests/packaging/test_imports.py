# SPDX-License-Identifier: Apache-2.0
"""DAG parsing stays light: an import from this package in a DAG file imports nothing heavy.

The DAG processor imports a DAG file again and again, so each parse pays for every module that a DAG imports.
Modules that Airflow has already imported cost nothing and are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent.parent / "airflow_provider_wan"
#: What the operators import only in a task.
LINEAGE = "airflow_provider_wan.lineage.assets"
AIRFLOW_ROOMS = ("operators", "sensors", "triggers", "transfers", "links", "decorators", "plugins")
HEAVY = (
    "requests",
    "aiohttp",
    "PIL",
    "jsonschema",
    "google.cloud",
    "google.auth",
    "google.api_core",
    "av",
    "openlineage",
)

#: Imports what every DAG file imports anyway once, then each module in a process forked from there.
_PROBE = """
import importlib, json, os, sys
from airflow.sdk import DAG, Asset, BaseHook, BaseOperator, BaseOperatorLink, BaseSensorOperator, Param, task
import airflow.triggers.base
before = set(sys.modules)
for module in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        print("NEW" + json.dumps([module, sorted(set(sys.modules) - before)]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


def _airflow_modules() -> list[str]:
    files = [file for room in AIRFLOW_ROOMS for file in sorted((PACKAGE / room).glob("*.py"))]
    found = [f"airflow_provider_wan.{file.parent.name}.{file.stem}" for file in files if file.stem != "__init__"]
    return [*found, LINEAGE, "airflow_provider_wan.get_provider_info"]


@pytest.fixture(scope="module")
def newly_imported() -> dict[str, list[str]]:
    """Return, by module, the modules that its import adds."""
    command = [sys.executable, "-c", _PROBE, *_airflow_modules()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.removeprefix("NEW") for line in done.stdout.splitlines() if line.startswith("NEW")]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("module", _airflow_modules())
def test_importing_an_airflow_class_imports_nothing_heavy(module: str, newly_imported: dict[str, list[str]]) -> None:
    new = newly_imported[module]
    heavy = [name for name in new if any(name == h or name.startswith(f"{h}.") for h in HEAVY)]
    assert not heavy, f"{module} makes every DAG parse import {heavy[:5]}; import it where it is used"


def test_a_batch_in_a_worker_does_not_import_aiohttp() -> None:
    code = "import sys, airflow_provider_wan.batch.batch as batch; print('aiohttp' in sys.modules, batch.WanHook)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"


def test_the_provider_info_imports_nothing_else() -> None:
    code = "import sys, airflow_provider_wan.get_provider_info; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    ours = [name for name in modules if name.startswith("airflow_provider_wan")]
    assert ours == ["airflow_provider_wan", "airflow_provider_wan.get_provider_info"]
    assert not [name for name in modules if name == "airflow" or name.startswith("airflow.")]
