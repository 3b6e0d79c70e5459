# SPDX-License-Identifier: Apache-2.0
"""This provider's errors as Airflow's: the one place that decides about retries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_wan.exceptions import WanError
from airflow_provider_wan.utils.task import on_error


@contextmanager
def as_airflow_errors(context: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Raise this provider's errors as Airflow's.

    An error that a retry can't help becomes an ``AirflowFailException``, the others an ``AirflowException``. Both keep
    their own class, so that ``except WanTimeoutError`` works. The log shows the error once: the original, and errors
    of this provider that it was made from, are not chained.

    :param context: of the task. With it the error is counted and kept as the XCom ``failed`` for the gallery.
    """
    try:
        yield
    except WanError as error:
        if isinstance(error, AirflowException):
            raise
        if context is not None:
            with suppress(Exception):  # reporting must not replace the error
                on_error(context, error)
        cause = error.__cause__
        while isinstance(cause, WanError):
            cause = cause.__cause__
        raise _as_airflow(error).with_traceback(error.__traceback__) from cause


def _as_airflow(error: WanError) -> Exception:
    family = _family(type(error), AirflowException if error.retry_helps else AirflowFailException)
    both: Exception = family.__new__(family, *error.args)
    both.args = error.args
    both.__dict__.update(error.__dict__)
    return both


_families: dict[tuple[type, type], type[Exception]] = {}


def _family(own: type[WanError], airflow: type[Exception]) -> type[Exception]:
    """Return the exception class that is both; made once."""
    if (own, airflow) not in _families:
        body = {"__module__": own.__module__, "__doc__": own.__doc__}
        _families[own, airflow] = type(own.__name__, (own, airflow), body)
    return _families[own, airflow]
