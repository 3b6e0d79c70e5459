# SPDX-License-Identifier: Apache-2.0
"""Killable workers that run a batch: one process imports everything, and forks a worker for each line of its
input.

A line is ``IMAGES OWNER``. The process prints the worker's id, and ``over`` when the worker has ended.
"""

from __future__ import annotations

import os
import sys

from tests.batch.batch_support import addresses, run

if __name__ == "__main__":
    for line in sys.stdin:
        images, owner = line.split()
        worker = os.fork()
        if worker == 0:
            sys.stdin.close()
            run(addresses(int(images)), owner=owner)
            os._exit(0)
        print(worker, flush=True)
        os.waitpid(worker, 0)
        print("over", flush=True)
