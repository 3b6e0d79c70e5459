# SPDX-License-Identifier: Apache-2.0
"""Cancel a request that is still queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.params import given_or_none, request_of
from airflow_provider_wan.utils.task import LinkState, TaskRequest, has_other_owners


class WanCancelOperator(BaseOperator):
    """Cancel a request that is still queued; usable as a teardown.

    Returns ``{"request_id", "cancelled", "outcome"}``. A running request can't be cancelled: it continues and is
    charged. Without a request (nothing was submitted) it does nothing. A request that other tasks depend on, as its
    journal says, is left alone; ``outcome`` is then ``wanted_by_others``.

    :param request: a request id, or the return value of a :class:`WanSubmitOperator`. (templated)
    :param wan_conn_id: the connection, default ``wan_default``. (templated)
    :param gcp_conn_id: for the journal that the request came with, if it did. (templated)
    :param impersonation_chain: a service account to act as, for that journal. (templated)
    """

    template_fields: Sequence[str] = ("request", "wan_conn_id", "gcp_conn_id", "impersonation_chain")
    ui_color = "#efe4fb"

    def __init__(
        self,
        *,
        request: str | Mapping[str, Any] | None,
        wan_conn_id: str = "wan_default",
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.request = request
        self.wan_conn_id = wan_conn_id
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.link_state = LinkState()

    def execute(self, context: Any) -> dict[str, Any] | None:
        """Cancel the request if it is still queued."""
        if given_or_none(self.request) is None:
            self.log.info("There is no request to cancel: nothing was submitted.")
            return None
        with as_airflow_errors(context):
            ref = request_of(self.request)
            request_id = ref.request_id
            task = TaskRequest.of(self, context)
            if ref.journal and has_other_owners(task.open_journal(ref.journal), ref.fingerprint, task.owners(ref)):
                self.log.info("Request %s is left alone: other tasks depend on it.", request_id)
                return {"request_id": request_id, "cancelled": False, "outcome": "wanted_by_others"}
            outcome = task.hook.cancel(request_id)
            self.log.info("Request %s: %s", request_id, outcome.sentence)
            return {"request_id": request_id, "cancelled": outcome.cancelled, "outcome": outcome.word}
