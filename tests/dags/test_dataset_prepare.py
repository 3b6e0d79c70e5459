# SPDX-License-Identifier: Apache-2.0
"""The example DAGs that prepare a mixed dataset, run by Airflow against the sandbox."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import airflow
import pytest

from tests.dags.people import person
from tests.image_samples import encoded, exif_with, photo, quadrants
from tests.sandboxes import Bucket

if TYPE_CHECKING:
    from airflow.sdk.definitions.dag import DAG

DAGS = Path(__file__).resolve().parents[2] / "dags"
CONF = {
    "dataset": "gs://videos/photos/",
    "staging": "gs://videos/_staged",
    "prompt": "waves",
    "bucket": "videos",
}


@pytest.fixture
def dataset(bucket: Bucket) -> None:
    bucket.put("photos/1 fits.jpg", encoded(photo(640, 480), "JPEG"))
    bucket.put(
        "photos/2 from a phone.jpg",
        encoded(photo(3000, 2000), "JPEG", exif=exif_with(orientation=6, gps=True)),
    )
    bucket.put("photos/3 transparent.png", encoded(quadrants().convert("RGBA"), "PNG"))
    bucket.put("photos/4 no image.jpg", b"<!DOCTYPE html><html></html>")


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DAGS)
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def rows(bucket: Bucket) -> list[dict[str, Any]]:
    names = [name for name in bucket.objects("_staged/manifests/") if "chunk-" in name]
    return [json.loads(line) for name in names for line in bucket.read(name).splitlines()]


@pytest.mark.usefixtures("airflow_db", "dataset")
def test_a_mixed_dataset_is_planned_and_prepared(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    dag: DAG = load("wan_dataset_prepare", monkeypatch).dag
    run = dag.test(run_conf=CONF)
    assert states(run) == {"plan": "success", "prepare": "success"}
    tasks = {ti.task_id: ti for ti in run.get_task_instances()}
    plan = tasks["plan"].xcom_pull(task_ids="plan")
    assert (plan["usable_as_they_are"], plan["fixable"], plan["unusable"]) == (1, 2, 1)
    assert plan["videos_to_buy"] == 3
    [chunk] = tasks["prepare"].xcom_pull(task_ids="prepare")
    assert chunk.startswith("gs://videos/_staged/manifests/wan_dataset_prepare/")
    assert [row["source"].rpartition("/")[2][0] for row in rows(bucket)] == ["1", "2", "3"]
    assert rows(bucket)[1]["changes"][:2] == [
        "turned upright (orientation 6)",
        "scaled from 2000x3000 to 1333x1999",
    ]


@pytest.mark.skipif(
    airflow.__version__.startswith(("3.1.", "3.2.")), reason="dag.test() runs no approval before Airflow 3.3"
)
@pytest.mark.usefixtures("airflow_db", "dataset")
@pytest.mark.parametrize(("option", "prepared"), [("Approve", "success"), ("Reject", "skipped")])
def test_person_approves_or_rejects_the_cost(
    option: str, prepared: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    dag: DAG = load("wan_dataset_prepare_approved", monkeypatch).dag
    with person(lambda *_: [option]) as asked:
        run = dag.test(run_conf=CONF)
    assert "Buy 3 videos for" in asked[0]["subject"]
    assert states(run) == {"plan": "success", "approve": "success", "prepare": prepared, "generate": prepared}
    bought = 3 if option == "Approve" else 0
    assert len(rows(bucket)) == len(bucket.sandbox.ledger()["purchases"]) == bought
    assert len([name for name in bucket.objects("videos/") if name.endswith(".mp4")]) == bought
