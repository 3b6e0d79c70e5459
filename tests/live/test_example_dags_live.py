# SPDX-License-Identifier: Apache-2.0
"""The example Dags on a real scheduler and triggerer."""

from __future__ import annotations

from tests.live.harness_live import VIDEOS_BUCKET, Live
from tests.live.harness_scenarios import scenario


@scenario
def test_the_daily_dag_lands_what_is_usable_and_pays_for_nothing_else(live: Live) -> None:
    good, small = live.image("daily"), live.image("daily-small", photo="chelsea.jpg")
    images = [{"img_url": url, "prompt": "A slow move closer"} for url in (good, small)]

    conf = {"bucket": VIDEOS_BUCKET, "images": images}
    run_id = live.start("wan_daily_content", conf, logical_date="2026-02-03T00:00:00+00:00")
    live.assert_ends("wan_daily_content", run_id)

    assert len(live.purchases(good)) == 1
    assert live.purchases(small) == []
    [video] = live.videos("2026/02/03/daily-")
    assert (video["size_bytes"], video["writes"]) == (300_000, 1)
