# SPDX-License-Identifier: Apache-2.0
"""``make demo``: turn photographs into videos in a bucket, on a real Airflow, free of charge.

Starts the sandbox (RunComfy's API and a bucket) and Airflow on free ports, runs the example Dag
``wan_daily_content`` over the photographs beside this file, shows what happens, and checks every video.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo import contact_sheet, daily_content  # noqa: E402
from demo.airflow_client import OVER  # noqa: E402
from demo.gallery import PHOTOS, PHOTOS_BUCKET, VIDEOS_BUCKET, Gallery, Landed  # noqa: E402
from demo.local_airflow import LocalAirflow  # noqa: E402
from demo.progress import Progress, request_states  # noqa: E402
from demo.sandbox_process import SandboxProcess  # noqa: E402
from demo.table import Row, render  # noqa: E402
from demo.videos import BadVideoError, decode  # noqa: E402

HOME = ROOT / ".work" / "demo"
OUTPUT = ROOT / "demo-output"
REFUSED = frozenset({"chelsea.jpg", "horse_rgba.png"})
"""Photographs that break the API's rules: too small, and one with an alpha channel."""
RUN_TIMEOUT_S = 240
SPEED = 30
"""A real generation takes one to three minutes; here 2 to 6 seconds."""


class DemoError(RuntimeError):
    """The demo failed; the message says why."""


class Demo:
    """One run of the demo; an exit stack stops the processes that it starts."""

    def __init__(self, stack: ExitStack) -> None:
        self._progress = Progress(names=[path.name for path in PHOTOS.glob("*.*g")])
        self._progress.say("starting the sandbox: RunComfy's API and a bucket, on this machine")
        arguments = ["--speed", str(SPEED), "--bucket", PHOTOS_BUCKET, "--bucket", VIDEOS_BUCKET]
        self.sandbox = stack.enter_context(SandboxProcess(HOME / "sandbox", arguments))
        self._gallery = Gallery(self.sandbox.bucket_url)
        self._urls = self._gallery.publish_photos()
        self._names = {url: name for name, url in self._urls.items()}
        self._progress.say(f"published {len(self._urls)} photographs; starting Airflow")
        self.airflow = LocalAirflow(
            HOME / "airflow",
            dags_folders=[ROOT / "dags"],
            # Polls are more frequent by the factor by which generations are shorter.
            env={**self.sandbox.env, "WAN_POLL_INTERVAL_SCALE": str(1 / SPEED)},
        )
        stack.enter_context(self.airflow)
        self.airflow.wait_for_dags(daily_content.DAG_ID)
        self._progress.say(f"Airflow is up at {self.airflow.url}")
        self._run_id = ""

    def show(self) -> bool:
        """Run the Dag, print the table, and return whether every usable image has a verified video."""
        self._run_id = daily_content.start(self.airflow.client, self._urls)
        self._progress.say(f"{daily_content.DAG_ID} for {daily_content.LOGICAL_DATE[:10]} started")
        self._wait()
        rows = [self._row(name) for name in self._urls]
        print(f"\n{render(rows)}\n", flush=True)
        bought = self.sandbox.ledger()["purchases_count"]
        usable = len(self._urls) - len(REFUSED)
        if bought != usable:
            print(f"FAILED: {bought} videos were bought, not {usable}.")
        good = bought == usable and all(row.landed or row.refused for row in rows)
        if good:
            where = OUTPUT.relative_to(ROOT)
            print(f"{usable} videos, each bought once and verified, are in {where}/.", end=" ")
            print(f"Total: {self._progress.elapsed_s:.0f} s.")
            print(f"Watch them: {contact_sheet.write(OUTPUT, rows).as_uri()}", flush=True)
        return good

    def _wait(self) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        client = self.airflow.client
        while True:
            self.airflow.check()
            over = client.run_state(daily_content.DAG_ID, self._run_id) in OVER
            states = request_states(self.sandbox.ledger()["purchases"], self._names)
            for landed in self._gallery.landed():
                states[self._names.get(landed.image_url, landed.image_url)] = f"landed: {landed.uri}"
            for name in daily_content.refused_so_far(client, self._run_id):
                states[name] = "refused before anything was paid"
            self._progress.show(states)
            if over:
                self._progress.say("the run is over")
                return
            if time.monotonic() > deadline:
                raise DemoError(f"the run was not over within {RUN_TIMEOUT_S} s")
            self._progress.tick("waiting")
            time.sleep(0.4)

    def _row(self, name: str) -> Row:
        landed = next((one for one in self._gallery.landed() if one.image_url == self._urls[name]), None)
        if landed is not None:
            return self._checked(name, landed)
        refused = daily_content.refusals(self.airflow.client, self._run_id).get(name, "")
        if name in REFUSED and refused:
            return Row(name, refused=refused)
        missing = "refused, although the API would take it" if refused else "no video landed"
        return Row(name, problem=f"{missing} {refused}".strip())

    def _checked(self, name: str, landed: Landed) -> Row:
        path = self._gallery.download(landed, OUTPUT)
        length_s, problem = None, ""
        try:
            length_s = decode(path).length_s
        except BadVideoError as error:
            problem = str(error)
        return Row(
            name,
            uri=landed.uri,
            size_bytes=landed.size_bytes,
            length_s=length_s,
            cost_usd=landed.cost_usd,
            seconds=landed.seconds,
            problem=problem,
        )

    def why_failed(self) -> str:
        """Return the states of the tasks and the end of a failed task's log."""
        if not self._run_id:
            return ""
        return self.airflow.client.why_failed(daily_content.DAG_ID, self._run_id, at_most=1)

    def keep(self) -> None:
        """Keep everything running until Ctrl-C."""
        print(
            f"\nLeft running:\n"
            f"  Airflow   {self.airflow.url}/dags/{daily_content.DAG_ID} (no password)\n"
            f"  Sandbox   {self.sandbox.url}/_sandbox/ledger\n"
            f"  Bucket    {self.sandbox.bucket_url}/_sandbox/objects?bucket={VIDEOS_BUCKET}\n"
            f"  Logs      {HOME.relative_to(ROOT)}/\n"
            f"Stop with Ctrl-C.",
            flush=True,
        )
        while True:
            self.airflow.check()
            time.sleep(1)


@contextmanager
def only_one() -> Iterator[None]:
    """Empty the demo's folders, unless another demo is using them."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME.parent / "demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another demo is running in this folder: stop it with Ctrl-C first") from None
        shutil.rmtree(HOME)
        HOME.mkdir()
        OUTPUT.mkdir(exist_ok=True)
        for old in (*OUTPUT.glob("*.mp4"), *OUTPUT.glob("*.html")):
            old.unlink()
        yield


def stop_on_signals() -> None:
    """End the demo on SIGINT, SIGTERM and SIGHUP; only the first signal counts."""

    def interrupt(number: int, frame: object) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Ignore further signals while everything is stopped, which takes seconds."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN: Python prints an error for a signal that is pending when it is set.
        signal.signal(number, lambda number, frame: None)


def run(*, keep: bool) -> tuple[int, str]:
    """Run the demo and stop everything; return the exit code, and the error text if it is not 0."""
    demo: Demo | None = None
    code, report = 1, ""
    with only_one(), ExitStack() as stack:
        try:
            demo = Demo(stack)
            code = 0 if demo.show() else 1
            report = demo.why_failed() if code else ""
            if keep:
                demo.keep()
        except KeyboardInterrupt:
            if not (keep and code == 0):
                code, report = 130, "Stopped before the end."
        # Print any error only after everything has been stopped.
        except Exception as error:
            code, report = 1, f"{type(error).__name__}: {error}"
            with suppress(Exception):
                report += f"\n\n{demo.why_failed() if demo else ''}"
        finally:
            ignore_signals()
            print("\nStopping everything that was started ...", flush=True)
    return code, report


def main() -> int:
    """Run the demo; return 0 if every usable image has a verified video."""
    parser = argparse.ArgumentParser(description="Images to videos in a bucket, on a real local Airflow.")
    parser.add_argument("--keep", action="store_true", help="leave everything running for a look")
    options = parser.parse_args()
    stop_on_signals()
    try:
        code, report = run(keep=options.keep)
    except DemoError as error:
        code, report = 1, str(error)
    if code:
        print(f"\n{report.strip()}\nThe logs are in {HOME.relative_to(ROOT)}/.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
