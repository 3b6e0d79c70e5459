# SPDX-License-Identifier: Apache-2.0
"""Measure the CPU time that Airflow spends per image, in a batch and in a chain of three mapped tasks.

    python benchmarks/airflow_cost.py [--chain 40] [--batch 300] [--generation-seconds 15]

Starts PostgreSQL, the sandbox, and Airflow with its scheduler (LocalExecutor), triggerer, Dag processor and
API server. Measures Airflow while nothing runs, then runs the chain (submit, deferrable sensor, transfer,
each mapped over the images) and the batch. CPU time is that of all Airflow processes and all their
descendants, from ``/proc``; the CPU time of an idle Airflow over the same period is subtracted, and printed.
The database is listed separately.

For the batch, it also prints how long Airflow takes to start the task, and to resume it each time: from the
trigger's event to the first line of the task's code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "live")]

from demo.local_airflow import LocalAirflow  # noqa: E402
from demo.sandbox_process import SandboxProcess  # noqa: E402
from tests.live.postgres import Postgres  # noqa: E402

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
POLL_EVERY_S = 2.0
PHOTO = ROOT / "demo" / "photos" / "coffee.jpg"


# -- processor time ----------------------------------------------------------------------------------------


def cpu_of(pids: list[int]) -> float:
    """Return the CPU time of processes and of all their children that have ended, in seconds."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            # The name, in brackets, may contain anything; utime, stime, cutime and cstime come 11 fields
            # later.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS_PER_S


def cpu_now(airflow: LocalAirflow) -> dict[str, float]:
    """Return the CPU time so far of each part of Airflow, and of the database."""
    seen = {process.name: cpu_of(process.pids()) for process in airflow.processes}
    for child in psutil.Process().children():
        if child.name() == "postgres":
            seen["database"] = cpu_of([child.pid, *(one.pid for one in child.children(recursive=True))])
    return seen


class Meter:
    """CPU time since the meter was created, less that of an idle Airflow."""

    def __init__(self, airflow: LocalAirflow, idle_per_s: dict[str, float] | None = None) -> None:
        self._airflow = airflow
        self._idle_per_s = idle_per_s or {}
        self._began, self._before = time.time(), cpu_now(airflow)

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the elapsed seconds, and the CPU seconds of each part."""
        passed, now = time.time() - self._began, cpu_now(self._airflow)
        return passed, {
            part: cpu - self._before.get(part, 0.0) - passed * self._idle_per_s.get(part, 0.0)
            for part, cpu in now.items()
        }


def format_cpu(parts: dict[str, float], count: int = 1, unit: str = "s") -> str:
    return ", ".join(f"{part} {cpu / count:.3f} {unit}" for part, cpu in sorted(parts.items()))


def airflow_total(parts: dict[str, float]) -> float:
    return sum(cpu for part, cpu in parts.items() if part != "database")


# -- the runs ----------------------------------------------------------------------------------------------


class Bench:
    """A real Airflow with the Dags of ``benchmarks/dags``, and the sandbox that they use."""

    def __init__(self, stack: contextlib.ExitStack, home: Path, options: argparse.Namespace) -> None:
        self.stamps_path = home / "stamps.jsonl"
        arguments = ["--bucket", "videos", "--bucket", "images", "--no-check-images", "--spread", "0.25"]
        arguments += ["--generation-seconds", str(options.generation_seconds)]
        arguments += ["--concurrency", str(options.concurrency), "--video-bytes", "2000000"]
        self.sandbox = stack.enter_context(SandboxProcess(home / "sandbox", arguments))
        images = {
            f"{size}_{way}": self._publish(f"{size}-{way}", count)
            for way, full in (("chain", options.chain), ("batch", options.batch))
            for size, count in (("warm", 2), ("full", full))
        }
        self.airflow = stack.enter_context(
            LocalAirflow(
                home / "airflow",
                dags_folders=[ROOT / "benchmarks" / "dags"],
                database=stack.enter_context(Postgres()).url,
                env={
                    **self.sandbox.env,
                    "BENCHMARK_IMAGES": json.dumps(images),
                    "BENCHMARK_BATCH": json.dumps({"max_in_flight": options.max_in_flight}),
                    "BENCHMARK_STAMPS": str(self.stamps_path),
                    "PYTHONPATH": str(ROOT / "benchmarks" / "dags"),  # for the triggerer, which knows no Dag
                },
            )
        )
        dags = list(images)
        self.airflow.wait_for_dags(*dags)
        for dag_id in dags:
            self.airflow.client.unpause(dag_id)

    def _publish(self, name: str, count: int) -> list[str]:
        """Put ``count`` photographs into the bucket, and return their URLs."""
        url, data = self.sandbox.bucket_url, PHOTO.read_bytes()
        with requests.Session() as http:
            http.trust_env = False
            for number in range(count):
                query = {"uploadType": "media", "name": f"{name}/{number}.jpg"}
                headers = {"Content-Type": "image/jpeg"}
                upload = f"{url}/upload/storage/v1/b/images/o"
                http.post(upload, params=query, headers=headers, data=data, timeout=30).raise_for_status()
        return [f"{url}/images/{name}/{number}.jpg" for number in range(count)]

    def idle(self, for_s: float) -> dict[str, float]:
        """Return the CPU seconds per second of each part while nothing runs."""
        meter = Meter(self.airflow)
        until = time.time() + for_s
        while time.time() < until:
            self.airflow.client.dags_seen()  # call the API as often as during a run, since that costs CPU too
            time.sleep(POLL_EVERY_S)
        passed, parts = meter.read()
        return {part: cpu / passed for part, cpu in parts.items()}

    def run(self, *dag_ids: str, timeout_s: float = 300) -> dict[str, str]:
        """Run Dags side by side to their ends, and return the run ids."""
        client = self.airflow.client
        runs = {dag_id: client.trigger(dag_id) for dag_id in dag_ids}
        deadline = time.time() + timeout_s
        for dag_id, run_id in runs.items():
            while (state := client.run_state(dag_id, run_id)) not in ("success", "failed"):
                if time.time() > deadline:
                    raise SystemExit(f"{dag_id} did not end: {client.task_states(dag_id, run_id)}")
                time.sleep(POLL_EVERY_S)
            if state != "success":
                raise SystemExit(client.why_failed(dag_id, run_id))
        time.sleep(POLL_EVERY_S)  # until the last task's process is counted to its parent
        return runs

    def waits(self, dag_id: str, task_id: str) -> int:
        """Return how many tasks waited in the triggerer, from the logs of their triggers."""
        folder = self.airflow.home / "logs" / f"dag_id={dag_id}"
        return len({log.parent for log in folder.glob(f"**/task_id={task_id}/**/*.trigger.*")})

    def stamps(self, dag_id: str) -> dict[str, list[float]]:
        """Return when the batch's code and its trigger started and ended, each time."""
        seen: dict[str, list[float]] = {"resumed": [], "waiting": [], "fired": []}
        for line in self.stamps_path.read_text().splitlines():
            row = json.loads(line)
            if row["dag"] == dag_id:
                seen.setdefault(row["event"], []).append(row["at"])
        return seen


# -- measurements --------------------------------------------------------------------------------------------


def cost(bench: Bench, way: str, count: int, idle: dict[str, float]) -> tuple[float, str]:
    """Run the chain or the batch; return Airflow's CPU seconds per image, and the run id."""
    meter = Meter(bench.airflow, idle)
    runs = bench.run(f"full_{way}")
    passed, parts = meter.read()
    landed = bench.sandbox.bucket_control(f"objects?bucket=videos&prefix=full-{way}/")["objects"]
    videos = sum(1 for one in landed if one["name"].endswith(".mp4"))
    each = airflow_total(parts) / count
    print(
        f"{way}: {count} images, {videos} landed in {passed:.0f} s: {1000 * each:.0f} CPU-ms an image\n"
        f"  of which {format_cpu({part: 1000 * cpu for part, cpu in parts.items()}, count, 'ms')}"
    )
    return each, runs[f"full_{way}"]


def print_airflow_overhead(bench: Bench, run_id: str) -> None:
    """Print how long Airflow took to start and to resume the batch, besides the total."""
    client = bench.airflow.client
    run: dict[str, Any] = client.api("GET", f"/dags/full_batch/dagRuns/{run_id}")
    asked, ended = (datetime.fromisoformat(run[name]).timestamp() for name in ("queued_at", "end_date"))
    stamps = bench.stamps("full_batch")
    begun, left = stamps["begun"][0], stamps["left"]
    if len(stamps["begun"]) > 1 or len(stamps["fired"]) != len(stamps["resumed"]):
        raise SystemExit(f"the batch was retried, so the stamps do not describe one run: {stamps}")
    images = "/images/full-batch/"
    first = min(one["at"] for one in bench.sandbox.ledger()["purchases"] if images in one["img_url"])
    back = [on - event for event, on in zip(stamps["fired"], stamps["resumed"], strict=True)]
    away = [waits_at - at for at, waits_at in zip(left, stamps["waiting"], strict=False)]
    whole, own = ended - asked, begun - asked + sum(back)
    print(
        f"batch, from the trigger of the run to its end: {whole:.1f} s\n"
        f"  the task's code begins after {begun - asked:.1f} s; the first submit is there after {first - asked:.1f} s\n"
        f"  {len(back)} resumes; from the event to the task's code {spread(back)}, {sum(back):.1f} s in all; "
        f"from the task's code to the trigger {spread(away)}\n"
        f"  in the worker {sum(at - on for on, at in zip([begun, *stamps['resumed']], left, strict=True)):.1f} s; "
        f"from the end of the task's code to that of the run {ended - left[-1]:.1f} s\n"
        f"  Airflow's start and resumes: {own:.1f} s, {100 * own / whole:.0f}% of the total"
    )


def spread(times: list[float]) -> str:
    if not times:
        return "-"
    return f"{statistics.median(times):.2f} s (median; {min(times):.2f} to {max(times):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", type=int, default=40, help="images of the chain")
    parser.add_argument("--batch", type=int, default=300, help="images of the batch")
    parser.add_argument("--generation-seconds", type=float, default=15)
    parser.add_argument("--concurrency", type=int, default=100, help="of the account")
    parser.add_argument("--max-in-flight", type=int, default=100)
    parser.add_argument("--idle-seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wan-cost-") as home, contextlib.ExitStack() as stack:
        bench = Bench(stack, Path(home), options)
        bench.run("warm_chain", "warm_batch")
        idle = bench.idle(options.idle_seconds)
        print(f"idle: {1000 * airflow_total(idle):.0f} CPU-ms a second ({format_cpu(idle)}); subtracted below")
        chain, _ = cost(bench, "chain", options.chain, idle)
        print(f"  {bench.waits('full_chain', 'wait')} of its sensors waited in the triggerer")
        batch, run_id = cost(bench, "batch", options.batch, idle)
        print(f"an image of the batch costs 1/{chain / batch:.1f} of one of the chain (goal: 1/20)")
        print_airflow_overhead(bench, run_id)


if __name__ == "__main__":
    main()
