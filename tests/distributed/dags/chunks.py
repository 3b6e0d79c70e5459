# SPDX-License-Identifier: Apache-2.0
"""The Airflow Dag of the backfill example with an image in each chunk, quick retries and no scheduled runs."""

from __future__ import annotations

from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "dags" / "wan_backfill_dataset.py"
CHANGES = {
    '"wan_backfill_dataset"': '"backfill_chunks"',
    "catchup=False,": 'catchup=False, end_date=pendulum.datetime(2026, 3, 31, tz="UTC"),',
    '"retries": 2, "retry_delay": pendulum.duration(seconds=30)': '"retries": 3, "retry_delay": 0',
    "chunk_size=300": "chunk_size=1",
    "resume_after=60": "resume_after=2, price_usd=0.2",  # with an unknown price, one clip is bought first
}

source = EXAMPLE.read_text()
for old, new in CHANGES.items():
    assert source.count(old) == 1, old
    source = source.replace(old, new)
exec(compile(source, __file__, "exec"))
