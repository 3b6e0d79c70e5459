# SPDX-License-Identifier: Apache-2.0
"""``python -m wan_sandbox``."""

from __future__ import annotations

import sys

from wan_sandbox.cli import main

if __name__ == "__main__":
    sys.exit(main())
