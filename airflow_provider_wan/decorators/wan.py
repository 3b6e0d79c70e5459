# SPDX-License-Identifier: Apache-2.0
"""``@task.wan``: a function that returns the inputs of a request."""

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
from airflow_provider_wan.model_api import INPUT_PARAMETERS
from airflow_provider_wan.operators.wan import WanSubmitOperator
from airflow_provider_wan.utils.errors import as_airflow_errors


class WanDecoratedOperator(DecoratedOperator, WanSubmitOperator):
    """Call a function, and submit the inputs that it returns, as :class:`WanSubmitOperator` does.

    A text is the prompt; a mapping holds inputs of the model by name. The decorator takes the options of
    :class:`WanSubmitOperator`; inputs given there apply to all calls. Returned values are not rendered as templates.

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
    #: Airflow shows the returned inputs as the rendered fields.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Airflow infers multiple_outputs from a function's "-> dict", but the task returns one request.
        kwargs["multiple_outputs"] = False
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def execute(self, context: Any) -> Any:
        """Call the function, and submit the inputs that it returned."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        returned = self.python_callable(*self.op_args, **kwargs)
        with as_airflow_errors(context):
            self._set_inputs(returned)
        # Not DecoratedOperator.execute, which would call the function again.
        return WanSubmitOperator.execute(self, context)

    def _set_inputs(self, returned: Any) -> None:
        """Set the inputs of this task to what the function returned."""
        if isinstance(returned, str):
            returned = {"prompt": returned}
        if not isinstance(returned, Mapping) or not returned:
            raise WanInputError(
                f"The function of {self.task_id} returned {type(returned).__name__}; it must return a prompt or a "
                "mapping of inputs, such as {'prompt': ..., 'img_url': ...}."
            )
        more = dict(self.inputs) if isinstance(self.inputs, Mapping) else {}
        for name, value in returned.items():
            if name in INPUT_PARAMETERS:
                setattr(self, name, value)
            else:
                more[str(name)] = value
        self.inputs = more or self.inputs


def wan_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Wrap a function into a task that submits the inputs that it returns; used as ``@task.wan``.

    :param python_callable: the function.
    :param kwargs: the options of :class:`WanSubmitOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=WanDecoratedOperator, **kwargs
    )
