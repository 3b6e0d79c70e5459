# SPDX-License-Identifier: Apache-2.0
"""One JSON file a model, the only copy of its rules; the file name is the model id with ``--`` for ``/``."""
