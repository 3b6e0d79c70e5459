# SPDX-License-Identifier: Apache-2.0
"""Export a journal as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_wan.utils.errors import as_airflow_errors


class WanExportRecordsOperator(BaseOperator):
    """Export the records of a journal as newline-delimited JSON, partitioned by day, ready for BigQuery or DuckDB.

    An export reads only the records that have changed since the last one, and writes only their days, so it can run
    after every batch or once a day. The schema is written to ``_schema.json``.

    Returns ``{"records", "changed", "removed", "unreadable", "days", "destination"}``.

    :param journal: ``gs://bucket/prefix`` of the records, as the submit or batch operator has it. (templated)
    :param destination: ``gs://bucket/prefix`` of the table; the day of the submit is in the names of the files, as
        ``dt=2026-01-31/records.jsonl``. (templated)
    :param gcp_conn_id: a Google Cloud connection, which needs the extra ``[google]``; None (default): Application
        Default Credentials. (templated)
    :param impersonation_chain: a service account to act as. (templated)
    :raises WanConflictError: another export writes the same table.
    :raises WanStorageError: the bucket refused, or did not answer.
    """

    template_fields: Sequence[str] = ("journal", "destination", "gcp_conn_id", "impersonation_chain")
    ui_color = "#e8f0d8"

    def __init__(
        self,
        *,
        journal: str,
        destination: str,
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.journal = journal
        self.destination = destination
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain

    def execute(self, context: Any) -> dict[str, Any]:
        """Export the records that have changed."""
        from airflow_provider_wan.hooks.gcs import storage_client
        from airflow_provider_wan.landing.export import JournalExport

        with as_airflow_errors(context):
            client = storage_client(self.gcp_conn_id, self.impersonation_chain, pool_size=24)
            done = JournalExport(client, self.journal, self.destination, self.log).run()
            self.log.info(
                "%d records, %d of them new or changed; %d days were written.",
                done["records"],
                done["changed"],
                len(done["days"]),
            )
            return done | {"destination": self.destination}
