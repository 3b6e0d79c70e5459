# SPDX-License-Identifier: Apache-2.0
"""The budget of a batch, as tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from airflow_provider_wan.batch.budget import Budget, BudgetLimits
from airflow_provider_wan.batch.prices import check_given
from airflow_provider_wan.exceptions import WanBudgetError, WanInputError


def buy(budget: Budget, count: int, price_usd: float | None = 0.1, first: int = 0) -> int:
    """Buy until a limit says no; return how many."""
    for number in range(first, first + count):
        try:
            budget.reserve(str(number), price_usd or 0.0)
        except WanBudgetError:
            return number - first
        budget.made(str(number))
    return count


@pytest.mark.parametrize(
    ("limits", "price", "bought"),
    [
        (BudgetLimits(), None, 100),
        (BudgetLimits(max_requests=7), None, 7),
        (BudgetLimits(max_requests=0), None, 0),
        (BudgetLimits(max_cost_usd=1.0), 0.1, 10),
        (BudgetLimits(max_cost_usd=0.3), 0.1, 3),
        (BudgetLimits(max_cost_usd=0.29), 0.1, 2),
        (BudgetLimits(max_cost_usd=0.05), 0.1, 0),
        (BudgetLimits(max_cost_usd=0), 0.1, 0),
        (BudgetLimits(max_cost_usd=5, max_requests=3), 0.1, 3),
        (BudgetLimits(max_cost_usd=0.2, max_requests=3), 0.1, 2),
    ],
)
def test_a_limit_is_reached_and_never_passed(limits: BudgetLimits, price: float | None, bought: int) -> None:
    assert buy(Budget(limits), 100, price) == bought


def test_a_refused_purchase_costs_nothing() -> None:
    budget = Budget(BudgetLimits(max_cost_usd=0.2))
    budget.reserve("a", 0.1)
    budget.release("a")
    assert buy(budget, 5) == 2


def test_purchase_fits_later_also_if_the_reserved_one_was_refused_meanwhile() -> None:
    """A thread of a submit releases it, between the engine's two questions."""
    budget = Budget(BudgetLimits(max_requests=1))
    budget.reserve("a", 0.1)
    assert budget.why_not(0.1)
    assert budget.may_fit_later(0.1)
    budget.release("a")
    assert budget.may_fit_later(0.1)
    buy(budget, 1)
    assert not budget.may_fit_later(0.1)


def test_reserving_again_before_the_purchase_counts_once() -> None:
    budget = Budget(BudgetLimits(max_requests=2))
    budget.reserve("a", 0.1)
    budget.reserve("a", 0.1)
    assert budget.bought == 1


def test_a_second_request_for_the_same_image_counts_again() -> None:
    budget = Budget(BudgetLimits(max_cost_usd=0.25))
    for _ in range(2):
        budget.reserve("a", 0.1)
        budget.made("a")
    assert budget.spent_usd == pytest.approx(0.2)
    with pytest.raises(WanBudgetError):
        budget.reserve("a", 0.1)


def test_a_real_cost_takes_the_place_of_the_price() -> None:
    budget = Budget(BudgetLimits(max_cost_usd=1.0))
    buy(budget, 1, 0.5)
    budget.settle("0", 0.1)
    assert budget.spent_usd == pytest.approx(0.1)
    assert budget.unpriced == 0
    assert buy(budget, 5, 0.5, first=1) == 1  # 0.1 + 0.5; another 0.5 would pass the limit


@pytest.mark.parametrize("seed", range(200))
def test_reported_cost_equals_the_ledger_or_says_how_many_costs_are_unknown(seed: int) -> None:
    """Random prices, refusals, late and missing costs, in any order of events."""
    random = Random(seed)
    budget = Budget(BudgetLimits(max_cost_usd=random.choice([None, 30.0])))
    open_reservations: list[str] = []
    unsettled: list[str] = []
    asked: dict[str, float] = {}
    charged: dict[str, int] = {}  # in thousandths of a dollar
    names = iter(range(10_000))
    for _ in range(200):
        match random.randrange(4):
            case 0:
                name = str(next(names))
                asked[name] = random.choice([0.1, 0.2, 0.5])
                try:
                    budget.reserve(name, asked[name])
                except WanBudgetError:
                    continue
                open_reservations.append(name)
            case 1 if open_reservations:
                budget.release(open_reservations.pop(random.randrange(len(open_reservations))))
            case 2 if open_reservations:
                name = open_reservations.pop(random.randrange(len(open_reservations)))
                budget.made(name)
                charged[name] = random.randrange(0, 1500)
                unsettled.append(name)
            case 3 if unsettled:
                name = unsettled.pop(random.randrange(len(unsettled)))
                budget.settle(name, charged[name] / 1000)
    for name in open_reservations:
        budget.release(name)
    missing = random.randrange(len(unsettled) + 1)
    for name in unsettled[missing:]:
        budget.settle(name, charged[name] / 1000)
    assert budget.bought == len(charged)
    assert budget.unpriced == missing
    settled = sum(charged[name] for name in charged if name not in unsettled[:missing])
    assert budget.spent_usd == pytest.approx(settled / 1000 + sum(asked[name] for name in unsettled[:missing]))


def test_a_real_cost_that_arrives_between_reservation_and_purchase_is_counted() -> None:
    budget = Budget(BudgetLimits(max_cost_usd=100.0))
    for name in ("a", "b"):
        budget.reserve(name, 0.1)
    budget.made("a")
    budget.settle("a", 0.6)
    budget.made("b")
    budget.settle("b", 0.6)
    assert budget.spent_usd == pytest.approx(1.2)
    assert budget.unpriced == 0


def test_purchases_before_a_kill_count() -> None:
    budget = Budget(BudgetLimits(max_cost_usd=1.0))
    budget.bought_before("b", purchases=1, cost_usd=None, price_usd=0.1)
    budget.bought_before("a", purchases=2, cost_usd=0.3, price_usd=0.1)
    assert budget.spent_usd == pytest.approx(0.5)
    assert budget.bought == 3


def test_purchases_of_others_are_not_settled() -> None:
    budget = Budget(BudgetLimits(max_cost_usd=1.0))
    budget.settle("theirs", 0.7)
    assert budget.spent_usd == 0


@pytest.mark.parametrize("price", [None, 0.0, 0.2, 0.3])
@pytest.mark.parametrize("of", [1, 3, 7, 100])
def test_shares_add_up_exactly_to_the_limit(of: int, price: float | None) -> None:
    shares = [BudgetLimits(max_cost_usd=10.0, max_requests=23, index=index, of=of).part(price) for index in range(of)]
    assert sum(share.max_requests or 0 for share in shares) == 23
    assert sum(round((share.max_cost_usd or 0) * 1e6) for share in shares) == 10_000_000


def shared(limits: BudgetLimits, price_usd: float) -> Budget:
    """A budget whose share is cut at this price."""
    budget = Budget(limits)
    if limits.max_cost_usd is not None:
        budget.set_share(limits, price_usd, 0.0, is_first=False)
    return budget


@pytest.mark.parametrize("learner", range(7))
def test_shares_and_the_price_learning_clip_add_up_to_the_limit(learner: int) -> None:
    bought = 0
    for index in range(7):
        limits = BudgetLimits(max_cost_usd=3.0, index=index, of=7)
        budget = Budget(limits)
        if index == learner:
            budget.reserve("first", 0.1)
            budget.made("first")
            budget.settle("first", 0.5)
        budget.set_share(limits, 0.5, 0.5, is_first=index == learner)
        bought += buy(budget, 5, 0.5) + (index == learner)
    assert bought == 6


@pytest.mark.parametrize(
    ("whole", "bought"),
    [({"max_cost_usd": 2.1}, 10), ({"max_requests": 7}, 7), ({"max_cost_usd": 2.1, "max_requests": 4}, 4)],
)
def test_many_tasks_together_spend_the_whole_limit(whole: dict[str, Any], bought: int) -> None:
    parts = [shared(BudgetLimits(**whole, index=index, of=100), 0.2) for index in range(100)]
    assert sum(buy(part, 5, 0.2) for part in parts) == bought


def test_used_up_share_names_the_whole_limit() -> None:
    budget = shared(BudgetLimits(max_cost_usd=2.0, index=1, of=4), 0.5)
    assert buy(budget, 5, 0.5) == 1
    assert "max_cost_usd=2 (of which 0.5 is this mapped task's share)" in str(budget.why_not(0.5))


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf"), {"": 0.0}, {"resolution=480P": -1.0}])
def test_a_price_that_is_not_positive_is_refused(price: Any) -> None:
    with pytest.raises(WanInputError, match="price_usd"):
        check_given(price)


@pytest.mark.parametrize(("index", "of"), [(0, 0), (3, 3), (-1, 3), (0, -1)])
def test_an_invalid_share_is_refused(index: int, of: int) -> None:
    with pytest.raises(WanInputError, match="share_of"):
        BudgetLimits(max_requests=5, index=index, of=of)


@pytest.mark.parametrize("limits", [{"max_cost_usd": -1}, {"max_requests": -1}, {"max_cost_usd": float("nan")}])
def test_a_negative_limit_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(WanInputError):
        BudgetLimits(**limits)  # type: ignore[arg-type]


def test_threads_together_stay_below_a_limit() -> None:
    budget = Budget(BudgetLimits(max_requests=50))
    with ThreadPoolExecutor(8) as pool:
        counts = pool.map(lambda worker: buy(budget, 20, first=1000 * worker), range(8))
    assert sum(counts) == 50
