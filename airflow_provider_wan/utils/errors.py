# SPDX-License-Identifier: Apache-2.0
"""This provider's errors as Airflow's: the one place that decides about retries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.utils.link_state import on_error


@contextmanager
def as_airflow_errors(context: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn this provider's errors into Airflow's: the one place that decides about retries.

    What a retry can't help is raised as an ``AirflowFailException``, the rest as an ``AirflowException``; both
    stay the error that they were, so that ``except WanTimeoutError`` works and the log shows its name.

    :param context: of the task; given, the error is counted, and the XCom ``failed`` tells it to the gallery.
    """
    try:
        yield
    except WanError as error:
        if isinstance(error, AirflowException):
            raise
        if context is not None:
            with suppress(Exception):  # telling about an error must not take its place
                on_error(context, error)
        raise _as_airflow(error) from error


def _as_airflow(error: WanError) -> Exception:
    family = _family(type(error), AirflowException if error.retry_helps else AirflowFailException)
    both: Exception = family.__new__(family, *error.args)
    both.args = error.args
    both.__dict__.update(error.__dict__)
    return both


_families: dict[tuple[type, type], type[Exception]] = {}


def _family(own: type[WanError], airflow: type[Exception]) -> type[Exception]:
    """Make, once, the exception class that is both."""
    if (own, airflow) not in _families:
        body = {"__module__": own.__module__, "__doc__": own.__doc__}
        _families[own, airflow] = type(own.__name__, (own, airflow), body)
    return _families[own, airflow]
