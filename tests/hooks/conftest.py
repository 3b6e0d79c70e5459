# SPDX-License-Identifier: Apache-2.0
"""Each test of the hooks runs on both."""

from __future__ import annotations

import pytest

from tests.hooks.either_hook import KINDS, EitherHook


@pytest.fixture(params=KINDS)
def hook(request: pytest.FixtureRequest, sandbox: object) -> EitherHook:
    return EitherHook(request.param)
