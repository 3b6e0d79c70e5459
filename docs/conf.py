# SPDX-License-Identifier: Apache-2.0
"""How the documentation is built: ``make docs``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

# Autodoc imports the operators, and with them Airflow, which writes its configuration where this points.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="wan-docs-"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")

from airflow_provider_wan import __version__

ROOT = Path(__file__).resolve().parent.parent

project = "airflow-provider-wan"
author = "the authors of airflow-provider-wan"
project_copyright = author
version = release = __version__

sys.path.insert(0, str(ROOT / "docs"))
extensions = ["myst_parser", "sphinx.ext.autodoc", "parameter_tables"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"airflow-provider-wan {release}"
html_static_path = ["_static"]
html_logo = "_static/logo.svg"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
