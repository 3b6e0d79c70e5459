# SPDX-License-Identifier: Apache-2.0
"""``@task.wan``: a function that says what to film."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_wan.exceptions import WanInputError
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.utils.errors import as_airflow_errors
from airflow_provider_wan.utils.params import INPUT_PARAMETERS


class WanDecoratedOperator(DecoratedOperator, WanSubmitOperator):
    """Calls a function, and submits what it returns as :class:`WanSubmitOperator` would.

    A text is the prompt; a mapping holds inputs of the model by name. The options of the decorator are those of
    :class:`WanSubmitOperator`, and inputs given there stand for all calls. What the function returns is taken as it
    is: braces in a prompt are not rendered as a template.

    :param python_callable: the function.
    :param op_args: its arguments. (templated)
    :param op_kwargs: its arguments by name. (templated)
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *WanSubmitOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **WanSubmitOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.wan"
    #: What the function returned is shown as the rendered inputs.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Airflow infers it from a function's "-> dict", but what the task returns is one request.
        kwargs["multiple_outputs"] = False
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def execute(self, context: Any) -> Any:
        """Call the function, and submit what it returned."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        wanted = self.python_callable(*self.op_args, **kwargs)
        with as_airflow_errors(context):
            self._take(wanted)
        # Not DecoratedOperator.execute, which would call the function again.
        return WanSubmitOperator.execute(self, context)

    def _take(self, wanted: Any) -> None:
        """Make what the function returned the inputs of this task."""
        if isinstance(wanted, str):
            wanted = {"prompt": wanted}
        if not isinstance(wanted, Mapping) or not wanted:
            raise WanInputError(
                f"The function of {self.task_id} returned {type(wanted).__name__}; it must return a prompt or a "
                "mapping of inputs, such as {'prompt': ..., 'img_url': ...}."
            )
        more = dict(self.inputs) if isinstance(self.inputs, Mapping) else {}
        for name, value in wanted.items():
            if name in INPUT_PARAMETERS:
                setattr(self, name, value)
            else:
                more[str(name)] = value
        self.inputs = more or self.inputs


def wan_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Wrap a function into a task that submits what it returns; used as ``@task.wan``.

    :param python_callable: the function.
    :param kwargs: the options of :class:`WanSubmitOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=WanDecoratedOperator, **kwargs
    )
