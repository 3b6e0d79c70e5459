# SPDX-License-Identifier: Apache-2.0
"""``@task.wan`` and ``@task.wan_batch``: functions that return the inputs of a request, or the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from airflow_provider_wan.operators.wan_batch import WanBatchOperator
from airflow_provider_wan.utils.errors import as_airflow_errors


class _FunctionOperator(DecoratedOperator):
    """An operator that calls a function for its parameters; returned values are not rendered as templates.

    :param python_callable: the function.
    :param op_args: its arguments. (templated)
    :param op_kwargs: its arguments by name. (templated)
    """

    #: Airflow shows the returned values as the rendered fields.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Airflow infers multiple_outputs from a function's "-> dict", but the task returns one request or summary.
        kwargs["multiple_outputs"] = False
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def call_function(self, context: Any) -> Any:
        """Call the function, with what it takes from the context."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        return self.python_callable(*self.op_args, **kwargs)


class WanDecoratedOperator(_FunctionOperator, WanSubmitOperator):
    """Call a function, and submit the inputs that it returns, as :class:`WanSubmitOperator` does.

    A text is the prompt; a mapping holds inputs of the model by name, and may hold ``image`` and ``images``. The
    decorator takes the options of :class:`WanSubmitOperator`; inputs given there apply to all calls.

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

    def execute(self, context: Any) -> Any:
        """Call the function, and submit the inputs that it returned."""
        returned = self.call_function(context)
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
                "mapping of inputs, such as {'prompt': ..., 'image': ...}."
            )
        more = dict(self.inputs) if isinstance(self.inputs, Mapping) else {}
        for name, value in returned.items():
            if name in INPUT_PARAMETERS or self._is_image_parameter(name, value):
                setattr(self, name, value)
            else:
                more[str(name)] = value
        self.inputs = more or self.inputs

    def _is_image_parameter(self, name: Any, value: Any) -> bool:
        """Return whether this is ``image`` or ``images`` of the operator, and not the model's input of that name."""
        if name == "images":
            return isinstance(value, Mapping)
        return bool(name == "image")


@dataclass(frozen=True, slots=True)
class _RowsOfFunction(Iterable[Any]):
    """The rows that a function returns, called again where a resumed batch can't continue from its saved plan."""

    call: Callable[[], Any]

    def __iter__(self) -> Iterator[Any]:
        """Call the function, and yield its rows."""
        yield from self.call()


class WanBatchDecoratedOperator(_FunctionOperator, WanBatchOperator):
    """Call a function, and generate a video for each row that it returns, as :class:`WanBatchOperator` does.

    The function returns what ``images`` of that operator takes: a list of addresses and rows, or the address of a
    prefix or a manifest. The decorator takes the other options of :class:`WanBatchOperator`.

    :param python_callable: the function.
    :param op_args: its arguments. (templated)
    :param op_kwargs: its arguments by name. (templated)
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *WanBatchOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **WanBatchOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.wan_batch"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(images=None, **kwargs)

    def execute(self, context: Any) -> Any:
        """Call the function, and run the batch of the rows that it returned."""
        returned = self.call_function(context)
        with as_airflow_errors(context):
            self.images = self._rows(returned)
        return WanBatchOperator.execute(self, context)

    def execute_complete(self, context: Any, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after a wait in the triggerer, with the plan that was made before it."""
        self.images = _RowsOfFunction(lambda: self._rows(self.call_function(context)))
        return super().execute_complete(context, event)

    def _rows(self, returned: Any) -> list[Any]:
        if isinstance(returned, str | Mapping):
            return [returned]
        if not isinstance(returned, Iterable):
            raise WanInputError(
                f"The function of {self.task_id} returned {type(returned).__name__}; it must return rows, such as "
                "[{'image': 'gs://...', 'prompt': ...}], or the address of images or of a manifest."
            )
        return list(returned)


def wan_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Wrap a function into a task that submits the inputs that it returns; used as ``@task.wan``.

    :param python_callable: the function.
    :param kwargs: the options of :class:`WanSubmitOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=WanDecoratedOperator, **kwargs
    )


def wan_batch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Wrap a function into a task that generates a video for each row that it returns; used as ``@task.wan_batch``.

    :param python_callable: the function.
    :param kwargs: the options of :class:`WanBatchOperator`, and of every task.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=WanBatchDecoratedOperator, **kwargs
    )
