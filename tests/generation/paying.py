# SPDX-License-Identifier: Apache-2.0
"""What the tests about paying once share: a wanted video, a journal, a submission, and the ledger that judges."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from sandboxes import INPUTS, MODEL

from airflow_provider_wan.generation.journal import BucketJournal
from airflow_provider_wan.generation.records import Record, Stage, new_claim, utc_text
from airflow_provider_wan.generation.submission import Submission, Wanted
from airflow_provider_wan.hooks.gcs import storage_client
from airflow_provider_wan.model_api.faults import RetryPolicy
from airflow_provider_wan.model_api.inputs import fingerprint

if TYPE_CHECKING:
    import pytest

    from airflow_provider_wan.sandbox.server import Sandbox

JOURNAL = "gs://videos/_journal"
LOG = logging.getLogger("tests.paying")
#: Tries again at once what was certainly not bought.
AT_ONCE = RetryPolicy(tries=3, first_s=0.001)
#: Does not try again at all.
ONE_TRY = RetryPolicy(tries=1)


def connect(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, **extra: Any) -> None:
    """Point ``wan_default`` at the sandbox with more in its extra, such as ``timeout``."""
    connection = json.loads(sandbox.env()["AIRFLOW_CONN_WAN_DEFAULT"])
    connection["extra"] |= extra
    monkeypatch.setenv("AIRFLOW_CONN_WAN_DEFAULT", json.dumps(connection))


def wanted(prompt: str = "a slow wave", *, watcher: str | None = None, **changes: Any) -> Wanted:
    """Want a video of this prompt."""
    inputs = {**INPUTS, "prompt": prompt}
    fields: dict[str, Any] = {
        "model_id": MODEL,
        "make_inputs": lambda: inputs,
        "recorded_inputs": inputs,
        "fingerprint": fingerprint(MODEL, inputs),
        "image": inputs["img_url"],
        "watcher": watcher,
    }
    return Wanted(**{**fields, **changes})


def bucket_journal(uri: str = JOURNAL) -> BucketJournal:
    """Open a journal with a client of its own, as another worker would."""
    return BucketJournal(storage_client(), uri)


def submission(journal: Any, **options: Any) -> Submission:
    """Make what a worker makes: a hook of its own, and a submission on it."""
    from airflow_provider_wan.hooks.wan import WanHook

    return Submission(WanHook(), journal, LOG, **{"retry": ONE_TRY, **options})


def an_intent(video: Wanted, **changes: Any) -> Record:
    """Give the record that a worker leaves that died between its claim and the id."""
    fields: dict[str, Any] = {
        "fingerprint": video.fingerprint,
        "model_id": video.model_id,
        "stage": Stage.INTENT,
        "inputs": dict(video.recorded_inputs),
        "image": video.image,
        "claim": new_claim(),
        "claimed_at": utc_text(),
    }
    return Record(**{**fields, **changes})


def purchases(sandbox: Sandbox) -> list[str]:
    """Give the ids of all that was bought, as the sandbox's ledger has them."""
    return [bought["request_id"] for bought in sandbox.ledger()["purchases"]]


def posts(sandbox: Sandbox) -> int:
    """Tell how many POSTs came in, whatever became of them."""
    return int(sandbox.ledger()["submits_seen"])


class StoreInMemory:
    """Airflow's task state store as a task sees it, for one task; survives its tries."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.trouble: Exception | None = None

    def get(self, key: str, default: Any = None) -> Any:
        self._check()
        return json.loads(self.values[key]) if key in self.values else default

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self._check()
        self.values[key] = json.dumps(value)

    def delete(self, key: str) -> None:
        self._check()
        self.values.pop(key, None)

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble
