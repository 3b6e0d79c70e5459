# SPDX-License-Identifier: Apache-2.0
"""The videos of a run as a page: a tab in Airflow, or a file next to the videos."""

#: Operators that submit requests, by the names of their classes.
SUBMITTERS = frozenset({"WanSubmitOperator", "WanDecoratedOperator", "WanBatchOperator", "WanBatchDecoratedOperator"})
LANDERS = frozenset({"WanToGCSOperator"})
#: Operators that buy nothing: their failures are never refusals of an image.
BUYS_NOTHING = LANDERS | {
    "WanRequestSensor",
    "WanCancelOperator",
    "WanContactSheetOperator",
    "WanExportRecordsOperator",
    "WanPrepareImagesOperator",
}
OPERATORS = SUBMITTERS | BUYS_NOTHING
