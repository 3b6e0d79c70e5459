# SPDX-License-Identifier: Apache-2.0
"""Killable workers that run a batch: one process imports everything, and forks a worker for each line of its
input.

A line is ``IMAGES OWNER REBUYS``; with rebuys, the first take of each image is rejected. The process prints the
worker's id, and ``over`` when the worker has ended. A worker handles SIGTERM as the operator does, whose ``on_kill``
Airflow calls then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from airflow_provider_wan.landing.checks import VideoChecks
from tests.batch.batch_support import addresses, bad_first_take, run


def work(images: int, owner: str, rebuys: int) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    checks = VideoChecks((bad_first_take,), "reject") if rebuys else VideoChecks()
    run(addresses(images), owner=owner, stop=stop, checks=checks, rebuy_rejected=rebuys)


if __name__ == "__main__":
    for line in sys.stdin:
        images, owner, rebuys = line.split()
        worker = os.fork()
        if worker == 0:
            sys.stdin.close()
            work(int(images), owner, int(rebuys))
            os._exit(0)
        print(worker, flush=True)
        os.waitpid(worker, 0)
        print("over", flush=True)
