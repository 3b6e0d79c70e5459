# SPDX-License-Identifier: Apache-2.0
"""A run with as many videos as wanted, written into the database: making them would take an hour."""

from __future__ import annotations

import json
import uuid
from typing import Any

from sqlalchemy import MetaData, Table, create_engine, func, select

from tests.browser.browser_support import DAG_ID, LinkState

TASKS = ("make_video.submit", "make_video.wait", "make_video.land")


def multiply(seen: LinkState, count: int) -> str:
    """Copy one landed video of the first run as often as wanted into a new run, and give that run's id."""
    run_id = f"crowd_{count}"
    engine = create_engine(seen.database)
    tables = MetaData()
    tables.reflect(engine, only=["dag_run", "task_instance", "xcom"])
    runs, instances, xcoms = (tables.tables[name] for name in ("dag_run", "task_instance", "xcom"))
    with engine.begin() as database:

        def rows(table: Table, *conditions: Any) -> list[dict[str, Any]]:
            of_run = (table.c.dag_id == DAG_ID, table.c.run_id == seen.run_id)
            return [
                dict(row) for row in database.execute(select(table).where(*of_run, *conditions)).mappings()
            ]

        (run,) = rows(runs)
        number = database.scalar(select(func.max(runs.c.id))) + 1000
        moment = run["logical_date"].replace(year=2025, microsecond=count)
        more = {"id": number, "run_id": run_id, "logical_date": moment, "run_after": moment}
        database.execute(runs.insert(), [{**run, **more}])
        landed = rows(instances, instances.c.task_id == TASKS[-1], instances.c.state == "success")
        place = landed[0]["map_index"]
        for task in TASKS:
            (instance,) = rows(instances, instances.c.task_id == task, instances.c.map_index == place)
            database.execute(
                instances.insert(),
                [{**instance, "id": uuid.uuid4(), "run_id": run_id, "map_index": n} for n in range(count)],
            )
            for xcom in rows(xcoms, xcoms.c.task_id == task, xcoms.c.map_index == place):
                copies = [
                    {
                        **xcom,
                        "run_id": run_id,
                        "dag_run_id": number,
                        "map_index": n,
                        "value": _of_another_request(xcom["value"], n),
                    }
                    for n in range(count)
                ]
                database.execute(xcoms.insert(), copies)
    engine.dispose()
    return run_id


def _of_another_request(stored: Any, number: int) -> Any:
    """Give a stored XCom the request id of another request; a worker stores JSON text."""
    is_text = isinstance(stored, str) and stored[:1] in ("[", "{")
    plain = json.loads(stored if is_text else json.dumps(stored))
    for one in plain if isinstance(plain, list) else [plain]:
        if isinstance(one, dict) and "request_id" in one:
            one["request_id"] = f"00000000-0000-4000-8000-{number:012d}"
    return json.dumps(plain) if is_text else plain
