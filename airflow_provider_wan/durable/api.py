# SPDX-License-Identifier: Apache-2.0
"""The hook that ``durable`` and ``landing`` need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from airflow_provider_wan.model_api.calls import (
    CancelOutcome,
    RequestResult,
    RequestStatus,
    SubmittedRequest,
)


class Api(Protocol):
    """The Model API, as :class:`~airflow_provider_wan.hooks.wan.WanHook` offers it."""

    @property
    def api_origin(self) -> str:
        """Scheme, host and port of the API."""

    @property
    def submit_takes_at_most_s(self) -> float:
        """The most that one attempt at a submit can take, in seconds."""

    @property
    def not_found_patience_s(self) -> float:
        """For how long a request must be answered 404001 before it counts as gone, in seconds."""

    def take_turn(self) -> None:
        """Wait until the connection's rate limit allows one more call."""

    def submit(
        self,
        model_id: str,
        inputs: Mapping[str, Any],
        *,
        retry: bool = True,
        send_by: float | None = None,
    ) -> SubmittedRequest:
        """Buy one generation; not sent at all after ``send_by`` (``time.monotonic()``)."""

    def get_status(self, request_id: str, *, retry: bool = True) -> RequestStatus:
        """Ask for the status."""

    def get_result(self, request_id: str, *, retry: bool = True) -> RequestResult:
        """Ask for the result."""

    def cancel(self, request_id: str, *, retry: bool = True) -> CancelOutcome:
        """Cancel, if it is still queued."""
