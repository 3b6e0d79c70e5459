# SPDX-License-Identifier: Apache-2.0
"""A local RunComfy and a local bucket, to build and test DAGs for free. Start: ``python -m`` this package."""
