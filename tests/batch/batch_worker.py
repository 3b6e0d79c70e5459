# SPDX-License-Identifier: Apache-2.0
"""Killable workers that run a batch: one process imports everything, and forks a worker for each line of its
input.

A line is JSON: ``images``, ``owner``, ``rebuys`` and ``env``, the environment variables of the worker; with rebuys, the
first take of each image is rejected. The process prints the worker's id, and ``over`` when the worker has ended. A
worker handles SIGTERM as the operator does, whose ``on_kill`` Airflow calls then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading

from airflow_provider_wan.landing.checks import VideoChecks
from tests.batch.batch_support import addresses, bad_first_take, run


def work(images: int, owner: str, rebuys: int, env: dict[str, str]) -> None:
    os.environ.update(env)
    tempfile.tempdir = None  # look it up again
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    checks = VideoChecks((bad_first_take,), "reject") if rebuys else VideoChecks()
    run(addresses(images), owner=owner, stop=stop, checks=checks, rebuy_rejected=rebuys)


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        worker = os.fork()
        if worker == 0:
            sys.stdin.close()
            work(**order)
            os._exit(0)
        print(worker, flush=True)
        os.waitpid(worker, 0)
        print("over", flush=True)
