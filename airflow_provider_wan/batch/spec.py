# SPDX-License-Identifier: Apache-2.0
"""The specification of a batch, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_wan.batch.budget import BudgetLimits, GivenPrice
from airflow_provider_wan.batch.results import MaxFailures
from airflow_provider_wan.durable.decide import OnUnknownSubmission
from airflow_provider_wan.landing.checks import VideoChecks
from airflow_provider_wan.landing.landing import IfExists


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much a batch does at once, and for how long.

    :param deadline: the absolute end, in unix seconds.
    :param max_in_flight: requests submitted and not finished, at most.
    :param retries_per_image: how many further requests may follow a failed one.
    :param submit_threads: submits at the same time.
    :param landing_threads: landings at the same time; each holds up to one chunk of its video in memory.
    :param poll_threads: status calls at the same time, while the batch waits in a worker.
    :param progress_every_s: seconds between two lines of progress.
    :param price_check_s: seconds between two reads of a price that another task is learning.
    :param cost_wait_s: how long to wait for the cost of a finished request before giving up on learning it.
    :param outage_s: how long submits may fail with outages only before the batch gives up.
    """

    deadline: float
    max_in_flight: int = 100
    retries_per_image: int = 0
    submit_threads: int = 8
    landing_threads: int = 4
    poll_threads: int = 6
    progress_every_s: float = 30.0
    outage_s: float = 600.0
    price_check_s: float = 30.0
    cost_wait_s: float = 600.0


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """The specification of a batch.

    :param images: any form that :class:`~airflow_provider_wan.images.dataset.DatasetReader` accepts.
    :param object_name: see :func:`~airflow_provider_wan.batch.plan.plan_rows`.
    :param journal: ``gs://bucket/prefix``.
    :param limits: how much at once, and for how long.
    :param inputs: the inputs of all rows; the columns of a row override them.
    :param budget: how much may be bought.
    :param checks: how videos are checked, and where bad ones go.
    :param rebuy_rejected: how many further takes of an image are bought, at most, while its video is rejected.
    :param records: ``gs://bucket/prefix`` of a table, where the records of purchases are left; None: nowhere.
    :param price_usd: of one request, or of each combination of inputs; None: learned, or what the model's page states.
    """

    images: Any
    bucket_name: str
    object_name: str
    journal: str
    model_id: str
    limits: BatchLimits
    inputs: Mapping[str, Any] = field(default_factory=dict)
    variation: str | None = None
    passthrough: tuple[str, ...] = ()
    budget: BudgetLimits = field(default_factory=BudgetLimits)
    price_usd: GivenPrice = None
    max_failures: MaxFailures = field(default_factory=lambda: MaxFailures(count=0))
    on_unknown_submission: OnUnknownSubmission = "fail"
    resolve: Mapping[str, str] = field(default_factory=dict)
    if_exists: IfExists = "skip"
    max_size_bytes: int = 2 * 1024**3
    checks: VideoChecks = field(default_factory=VideoChecks)
    rebuy_rejected: int = 0
    records: str | None = None
