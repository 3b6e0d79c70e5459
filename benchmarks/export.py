# SPDX-License-Identifier: Apache-2.0
"""Export a journal as a table: seconds, peak memory and storage calls, for all records and for one in a hundred.

    python benchmarks/export.py [--records 1000 100000] [--days 30]

The bucket and each export run in processes of their own. The records are as a landed batch leaves them, spread over
days. Each export is the operator's; ``listing`` is what the least possible export costs: to list the journal and
write nothing. The last line compares the cost of a record at the first and the last size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from batch import BUCKET, MODEL, control, sandbox

JOURNAL, TABLE = f"gs://{BUCKET}/_journal", f"gs://{BUCKET}/tables/clips"


def records(count: int, days: int, *, take: int = 1) -> Iterator[Any]:
    """Yield landed records.

    :param take: part of the request id, so that another take has another content.
    """
    from airflow_provider_wan.durable.record import LandedVideo, Record, Stage

    for number in range(count):
        day = date(2026, 1, 1) + timedelta(days=number * days // count)
        at, name = f"{day}T12:00:00.000+00:00", f"videos/{number:06d}.mp4"
        facts = {"width": 848, "height": 480, "duration_s": 5.0, "frame_rate": 30.0, "codec": "h264"}
        yield Record(
            f"{number:064x}",
            MODEL,
            Stage.LANDED,
            inputs={"prompt": "A slow move closer " * 5, "resolution": "480P", "duration": 5},
            image=f"gs://my-images/photos/{number:06d}.jpg",
            request_id=f"request-{number}-{take}",
            submitted_at=at,
            created_at=at,
            finished_at=at,
            landed_at=at,
            cost_usd=0.2,
            videos=(
                LandedVideo(
                    f"gs://{BUCKET}/{name}",
                    BUCKET,
                    name,
                    3_000_000,
                    "AAAAAA==",
                    1,
                    "video/mp4",
                    f"request-{number}-{take}",
                    facts,
                    {"status": "good", "reasons": [], "detail": ""},
                ),
            ),
        )


def fill(base: str, count: int, days: int) -> None:
    """Put the journal into the bucket, without the calls that a batch would make."""
    from airflow_provider_wan.durable.journal import _listing_metadata

    remaining = records(count, days)
    while some := list(islice(remaining, 5000)):
        names = {f"_journal/{one.fingerprint}.json": one for one in some}
        body = {
            "bucket": BUCKET,
            "objects": {name: _listing_metadata(one) for name, one in names.items()},
            "texts": {name: one.to_json() for name, one in names.items()},
        }
        control(base, "seed", body)


def change(count: int, days: int) -> None:
    """Change one record in a hundred."""
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client

    journal = BucketJournal(storage_client(), JOURNAL)
    for number, record in enumerate(records(count, days, take=2)):
        if number % 100 == 0:
            journal.write(record, replaces=journal.read(record.fingerprint))


def run_way(way: str) -> dict[str, float]:
    from airflow_provider_wan.durable.journal import BucketJournal
    from airflow_provider_wan.hooks.gcs import storage_client
    from airflow_provider_wan.operators.wan_export import WanExportRecordsOperator

    operator = WanExportRecordsOperator(task_id="export", journal=JOURNAL, destination=TABLE)
    client = storage_client()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.monotonic(), time.process_time()
    if way == "listing":
        done = {"changed": 0, "records": sum(1 for _ in BucketJournal(client, JOURNAL).generations())}
    else:
        done = operator.execute({})
    return {
        "records": done["records"],
        "changed": done["changed"],
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu,
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def measure(count: int, days: int) -> float:
    """Print the cost of each kind of export; return the CPU seconds of a record of the full one."""
    with sandbox() as started:
        base, env = started["bucket_url"], {**os.environ, **started["env"]}
        os.environ.update(started["env"])
        fill(base, count, days)
        per_record = 0.0
        for name, way in (("listing", "listing"), ("all", "export"), ("none", "export"), ("1 %", "export")):
            if name == "1 %":
                change(count, days)
            calls = sum(control(base, "calls")["calls"].values())
            command = [sys.executable, __file__, "--way", way]
            found = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
            one = json.loads(found.splitlines()[-1])
            calls = sum(control(base, "calls")["calls"].values()) - calls
            print(
                f"  {name:8} {one['changed']:7,} of {one['records']:,} changed: {one['seconds']:6.1f} s, "
                f"{one['cpu_s']:6.1f} CPU-s, {one['memory_mb']:5.0f} MB, {calls:,} storage calls"
            )
            per_record = one["cpu_s"] / count if name == "all" else per_record
        return per_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run_way(options.way)))
        return
    costs = []
    for count in options.records:
        print(f"{count:,} records of {options.days} days, load {os.getloadavg()[0]:.1f}")
        costs.append(measure(count, options.days))
    print(f"a record of the last size costs {costs[-1] / costs[0]:.2f} times the CPU of one of the first")


if __name__ == "__main__":
    main()
