# SPDX-License-Identifier: Apache-2.0
"""Measure the size of an environment with Airflow alone, with this provider, and with its sandbox.

Creates a virtual environment in a temporary directory, with the versions of ``constraints.txt``, and installs
the three one after the other: ``python benchmarks/installed_size.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    ("Airflow alone", ["apache-airflow"]),
    ("with airflow-provider-wan", [f"{ROOT}"]),
    ("with airflow-provider-wan[sandbox]", [f"{ROOT / 'sandbox'}", f"{ROOT}[sandbox]"]),
)


def size_mb(directory: Path) -> float:
    """Return the disk usage as ``du`` counts it: whole blocks, each file once."""
    seen: dict[int, int] = {}
    for folder, _, file_names in os.walk(directory):
        for file_name in file_names:
            stat = os.lstat(os.path.join(folder, file_name))
            seen[stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values()) / 2**20


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        venv = Path(temporary) / "venv"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        install = [venv / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        for name, requirements in STEPS:
            subprocess.run([*install, *requirements], check=True, stderr=subprocess.DEVNULL)
            print(f"{name:<36} {size_mb(venv):6.0f} MB", flush=True)


if __name__ == "__main__":
    main()
