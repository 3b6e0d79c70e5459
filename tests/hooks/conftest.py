# SPDX-License-Identifier: Apache-2.0
"""Run each test of the hooks on both hooks."""

from __future__ import annotations

import pytest

from tests.hooks.either_hook import KINDS, EitherHook


@pytest.fixture(params=KINDS)
def hook(request: pytest.FixtureRequest, sandbox: object) -> EitherHook:
    return EitherHook(request.param)
