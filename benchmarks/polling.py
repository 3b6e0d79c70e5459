# SPDX-License-Identifier: Apache-2.0
"""How many polls waits need, and how late they notice an end; fails where a goal is missed.

    python benchmarks/polling.py [--seeds 5] [--requests 5000] [--seconds 240]

* A table of simulated accounts (100 s a generation, spread 0.25), for a batch and for the same requests as single
  waits. Delays are shares of a generation; figures are means of the seeds.
* 60 new requests, 10 at a time, after an outage of the process that waited.
* Accounts with requests of others, with requests that are submitted while others run, and with fast generations.
* 5,000 single waits that are all running, over real sockets, beside a fixed poll every 5 s over one shared session:
  see ``benchmarks/triggers.py``. It takes as long as ``--seconds``; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.polling.simulation import (
    GOALS,
    OTHER_ACCOUNTS,
    OUTAGE_GOAL_S,
    OUTAGES_S,
    Account,
    Outcome,
    poll_after_outage,
    poll_all,
)


def mean(values: list[float]) -> float:
    return statistics.fmean(values)


def shown(outcomes: list[Outcome]) -> str:
    return (
        f"{mean([one.polls_a_request for one in outcomes]):6.1f} polls"
        f"{100 * mean([one.median_delay for one in outcomes]):6.1f} %"
        f"{100 * mean([one.delay_95 for one in outcomes]):6.1f} %"
    )


def compare_accounts(seeds: int) -> bool:
    print("requests, concurrency, order      goal                     batch                       single waits")
    all_met = True
    for goal in GOALS:
        found = []
        for single_waits in (False, True):
            outcomes = [poll_all(goal.account(seed), single_waits=single_waits) for seed in range(seeds)]
            is_met = goal.is_met(*outcomes)
            all_met = all_met and is_met
            found.append(f"{shown(outcomes)} {'' if is_met else 'MISSED'}")
        name = f"{goal.requests} at {goal.concurrency}, {goal.order}"
        limits = f"{goal.polls:g} polls {100 * goal.median:.0f} % {100 * goal.delay_95:.0f} %"
        print(f"{name:34}{limits:25}{found[0]:28}{found[1]}")
    return all_met


def show_other_accounts(seeds: int) -> None:
    print("other accounts, as a batch, and the longest time that a running request was not polled")
    for name, options in OTHER_ACCOUNTS.items():
        outcomes = [poll_all(Account(**options, seed=seed)) for seed in range(seeds)]
        unpolled_s = max(one.unpolled_s for one in outcomes)
        print(f"  {name:57}{shown(outcomes)}{unpolled_s:6.0f} s")


def compare_outages(seeds: int) -> bool:
    all_met = True
    print(f"60 new requests, 10 at a time, after an outage (goal: {OUTAGE_GOAL_S:.0f} s)")
    for outage_s in OUTAGES_S:
        for single_waits in (False, True):
            outcomes = [poll_after_outage(outage_s, single_waits=single_waits, seed=seed) for seed in range(seeds)]
            longest_s = max(one.total_s for one in outcomes)
            is_met = longest_s <= OUTAGE_GOAL_S
            all_met = all_met and is_met
            kind = "single waits" if single_waits else "batch"
            print(f"  after {outage_s:6.0f} s, {kind:13}{longest_s:6.0f} s {'' if is_met else 'MISSED'}")
    return all_met


def compare_sockets(requests: int, seconds: float) -> bool:
    script = str(Path(__file__).parent / "triggers.py")
    given = [f"--requests={requests}", f"--concurrency={requests}", f"--seconds={seconds}", "--check"]
    return subprocess.run([sys.executable, script, *given], check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="simulations of each account")
    parser.add_argument("--requests", type=int, default=5000, help="single waits over sockets")
    parser.add_argument("--seconds", type=float, default=240.0, help="how long these are measured; 0: not at all")
    options = parser.parse_args()
    met = [compare_accounts(options.seeds), compare_outages(options.seeds)]
    show_other_accounts(options.seeds)
    if options.seconds:
        met.append(compare_sockets(options.requests, options.seconds))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
