# SPDX-License-Identifier: Apache-2.0
"""Killable workers that run a batch: one process imports everything, and forks a worker for each line of its
input.

A line is ``IMAGES OWNER REBUYS``; with rebuys, the first take of each image is rejected. The process prints the
worker's id, and ``over`` when the worker has ended.
"""

from __future__ import annotations

import os
import sys

from airflow_provider_wan.landing.checks import VideoChecks
from tests.batch.batch_support import addresses, bad_first_take, run

if __name__ == "__main__":
    for line in sys.stdin:
        images, owner, rebuys = line.split()
        worker = os.fork()
        if worker == 0:
            sys.stdin.close()
            checks = VideoChecks((bad_first_take,), "reject") if int(rebuys) else VideoChecks()
            run(addresses(int(images)), owner=owner, checks=checks, rebuy_rejected=int(rebuys))
            os._exit(0)
        print(worker, flush=True)
        os.waitpid(worker, 0)
        print("over", flush=True)
