# SPDX-License-Identifier: Apache-2.0
"""Measure whole backfills on a real Airflow: whether the cost of an image depends on how many there are.

    python benchmarks/scale.py backfill --images 5000 --results scale.jsonl   can be stopped; goes on where it stopped
    python benchmarks/scale.py backfill --images 1000 --before 99000          as if 99,000 videos had landed before
    python benchmarks/scale.py rerun --images 100000                          all of them have landed before

Starts PostgreSQL, the sandbox, and Airflow with its scheduler (LocalExecutor), triggerer, Dag processor and API
server. ``backfill`` makes videos of 100 kB in parts of ``--part`` images: a run of a Dag that maps one batch over
chunks of ``--chunk`` images, all with one journal. Of each part it prints images a second, CPU time an image by process
(``scheduler`` includes the tasks; that of an idle Airflow is not subtracted), objects and storage calls an image, and
the peaks of memory and of database connections, and adds them to ``--results`` as a line of JSON. Parts whose lines
are there already are not run again: their records and videos are put into the bucket instead.

``rerun`` runs ``WanPrepareImagesOperator(skip_landed=True)`` over a manifest of which every video has landed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from airflow_cost import cpu_now  # noqa: E402
from batch import addresses, seed_landed  # noqa: E402

from demo.local_airflow import LocalAirflow  # noqa: E402
from demo.sandbox_process import SandboxProcess  # noqa: E402
from tests.live.postgres import Postgres  # noqa: E402

SAMPLE_EVERY_S = 1.0
PREFIX = "scale"


class Peaks:
    """The largest memory of each kind of process, in MB, and number of database connections, while it samples."""

    def __init__(self, airflow: LocalAirflow, database_url: str) -> None:
        self._airflow = airflow
        self._database_url = database_url.replace("+psycopg2", "")
        self._stop = threading.Event()
        self.found: dict[str, float] = {}

    def __enter__(self) -> Peaks:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        with contextlib.closing(psycopg2.connect(self._database_url)) as database:
            database.autocommit = True
            cursor = database.cursor()
            while not self._stop.wait(SAMPLE_EVERY_S):
                cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
                row = cursor.fetchone()
                self._add("connections", row[0] - 1 if row else 0)
                for process in list(self._airflow.processes):
                    for pid in process.pids():
                        with contextlib.suppress(psutil.Error):
                            memory = psutil.Process(pid).memory_info()
                            # Forked processes share most of their memory; what a task adds is its own.
                            own = memory.rss - memory.shared
                            self._add(f"{process.name} MB", memory.rss / 2**20)
                            self._add(f"{process.name} own MB", own / 2**20)

    def _add(self, name: str, value: float) -> None:
        self.found[name] = max(self.found.get(name, 0.0), round(value, 1))


class Bench:
    """A real Airflow with the Dags of ``benchmarks/scale_dags``, and the sandbox that they use."""

    def __init__(self, stack: contextlib.ExitStack, home: Path, options: argparse.Namespace) -> None:
        arguments = [
            "--bucket",
            "videos",
            "--no-check-images",
            "--generation-seconds",
            "5",
            "--spread",
            "0.25",
        ]
        arguments += ["--concurrency", "400", "--video-bytes", "100000"]
        self.sandbox = stack.enter_context(SandboxProcess(home / "sandbox", arguments))
        self._database_url = stack.enter_context(Postgres()).url
        self.airflow = stack.enter_context(
            LocalAirflow(
                home / "airflow",
                dags_folders=[ROOT / "benchmarks" / "scale_dags"],
                database=self._database_url,
                env=self.sandbox.env,
                parallelism=options.tasks,
            )
        )
        for dag_id in ("scale_backfill", "scale_rerun"):
            self.airflow.wait_for_dags(dag_id)
            self.airflow.client.unpause(dag_id)

    def manifest(self, name: str, images: list[str]) -> str:
        """Write a manifest of images, and return its address."""
        body = "".join(f"{json.dumps({'image': image})}\n" for image in images)
        upload = f"{self.sandbox.bucket_url}/upload/storage/v1/b/videos/o"
        query = {"uploadType": "media", "name": f"manifests/{name}.jsonl"}
        requests.post(upload, params=query, data=body.encode(), timeout=60).raise_for_status()
        return f"gs://videos/manifests/{name}.jsonl"

    def objects(self) -> int:
        """Return the number of objects in the bucket."""
        return len(self.sandbox.bucket_control("objects?bucket=videos")["objects"])

    def run(self, dag_id: str, conf: dict[str, Any]) -> dict[str, Any]:
        """Run a Dag to its end, and return what it took in all."""
        client, before, objects = self.airflow.client, cpu_now(self.airflow), self.objects()
        calls = Counter(self.sandbox.bucket_control("calls")["calls"])
        began = time.time()
        with Peaks(self.airflow, self._database_url) as peaks:
            run_id = client.trigger(dag_id, conf)
            while (state := client.run_state(dag_id, run_id)) not in ("success", "failed"):
                time.sleep(1.0)
            if state != "success":
                raise SystemExit(client.why_failed(dag_id, run_id))
            took_s = time.time() - began
            time.sleep(2.0)  # until the last task's process is counted to its parent
        calls = Counter(self.sandbox.bucket_control("calls")["calls"]) - calls
        cpu = {name: cpu - before.get(name, 0.0) for name, cpu in cpu_now(self.airflow).items()}
        states = client.task_states(dag_id, run_id)
        return {
            "took_s": took_s,
            "cpu_s": cpu,
            "calls": calls,
            "objects": self.objects() - objects,
            "states": states,
        } | {"peaks": peaks.found}


def parts_of(options: argparse.Namespace, bench: Bench) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of images before each part that is still to be run, and its images."""
    images = addresses(options.before + options.images)
    rows = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    done = max((row["before"] + row["images"] for row in map(json.loads, rows)), default=options.before)
    seed_landed(bench.sandbox.bucket_url, images[:done], PREFIX)
    for start in range(done, len(images), options.part):
        yield start, images[start : start + options.part]


def backfill(bench: Bench, options: argparse.Namespace) -> None:
    for before, images in parts_of(options, bench):
        chunks = [
            bench.manifest(f"{before + start:07}", images[start : start + options.chunk])
            for start in range(0, len(images), options.chunk)
        ]
        run = bench.run("scale_backfill", {"chunks": chunks})
        count = len(images)
        row = {
            "before": before,
            "images": count,
            "images_per_s": round(count / run["took_s"], 2),
            "cpu_ms": {name: round(1000 * cpu / count, 1) for name, cpu in sorted(run["cpu_s"].items())},
            "cpu_ms_in_all": round(1000 * sum(run["cpu_s"].values()) / count, 1),
            "calls": {name: round(calls / count, 2) for name, calls in sorted(run["calls"].items())},
            "calls_in_all": round(sum(run["calls"].values()) / count, 2),
            "objects": round(run["objects"] / count, 2),
            "peaks": run["peaks"],
        }
        print(json.dumps(row), flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def rerun(bench: Bench, options: argparse.Namespace) -> None:
    images = addresses(options.images)
    seed_landed(bench.sandbox.bucket_url, images, PREFIX)
    run = bench.run("scale_rerun", {"dataset": bench.manifest("all", images)})
    print(
        f"{options.images} images, all done before: {run['took_s']:.1f} s in Airflow (goal: 30 s at most), "
        f"{sum(run['calls'].values())} storage calls, {run['objects']} new objects, tasks: {run['states']}; "
        f"CPU {run['cpu_s']}; peaks {run['peaks']} (goal: 300 MB at most for a task)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("backfill", "rerun"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--before", type=int, default=0, help="images that have landed before")
    parser.add_argument("--part", type=int, default=1000, help="images of a run")
    parser.add_argument("--chunk", type=int, default=250, help="images of a mapped task")
    parser.add_argument("--tasks", type=int, default=4, help="tasks at the same time")
    parser.add_argument("--results", type=Path, help="file of JSON lines, a line for each part")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wan-scale-") as home, contextlib.ExitStack() as stack:
        bench = Bench(stack, Path(home), options)
        try:
            (backfill if options.what == "backfill" else rerun)(bench, options)
        except KeyboardInterrupt:
            raise SystemExit("Stopped. The same command runs the parts that --results does not have.") from None


if __name__ == "__main__":
    main()
