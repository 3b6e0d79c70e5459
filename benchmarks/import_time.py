# SPDX-License-Identifier: Apache-2.0
"""Measure what a DAG file pays for importing this provider, over ``import airflow.sdk``.

Each module is imported in new processes, interleaved with the baseline, and the medians are compared:
``python benchmarks/import_time.py [--runs 7] [--json file]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AIRFLOW_ROOMS = ("operators", "sensors", "transfers", "triggers", "links")
# The names that every DAG file imports anyway; airflow.sdk alone loads them lazily.
BASELINE = "from airflow.sdk import DAG, BaseOperator, BaseSensorOperator"

_TIMER = """
import sys, time
began = time.perf_counter()
{baseline}
middle = time.perf_counter()
{statement}
print("MS", (middle - began) * 1000, (time.perf_counter() - middle) * 1000)
"""


def airflow_modules() -> list[str]:
    files = [file for room in AIRFLOW_ROOMS for file in sorted((ROOT / "airflow_provider_wan" / room).glob("*.py"))]
    return [f"airflow_provider_wan.{file.parent.name}.{file.stem}" for file in files if file.stem != "__init__"]


def measure(statement: str, env: dict[str, str]) -> tuple[float, float]:
    """Return the milliseconds of the baseline, and of the statement after it, in a new process."""
    code = _TIMER.format(baseline=BASELINE, statement=statement)
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    _, baseline_ms, statement_ms = printed[printed.index("MS") :].split()
    return float(baseline_ms), float(statement_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="processes for each module (default 7)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    arguments = parser.parse_args()
    modules = airflow_modules()
    baselines: list[float] = []
    added: dict[str, list[float]] = {module: [] for module in modules}
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "AIRFLOW_HOME": home, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        measure("pass", env)  # Writes the configuration file and warms the file cache.
        for _ in range(arguments.runs):
            for module in modules:
                baseline_ms, module_ms = measure(f"import {module}", env)
                baselines.append(baseline_ms)
                added[module].append(module_ms)
    report(statistics.median(baselines), {m: statistics.median(ms) for m, ms in added.items()}, arguments.json)


def report(baseline_ms: float, added_ms: dict[str, float], file: Path | None) -> None:
    width = max(map(len, [*added_ms, "airflow.sdk"]))
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs; medians\n")
    print(f"{'module':<{width}}  {'ms':>8}  over airflow.sdk")
    print(f"{'airflow.sdk':<{width}}  {baseline_ms:8.1f}")
    for module, ms in added_ms.items():
        print(f"{module:<{width}}  {ms:+8.1f}  x{(baseline_ms + ms) / baseline_ms:.3f}")
    if file:
        file.write_text(json.dumps({"baseline_ms": baseline_ms, "added_ms": added_ms}, indent=2) + "\n")


if __name__ == "__main__":
    main()
