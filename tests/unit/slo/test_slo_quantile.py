from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from llm_replicas.slo.quantile import (
    at_least,
    at_most,
    decide,
    fewest_to_fail,
    more_requests,
    most_to_pass,
    quantile_bounds,
    share_lower_bound,
    share_upper_bound,
    smallest_n_to_pass,
    zero_bound,
)

ALPHA = 0.05
P99 = 0.01

sizes = st.integers(1, 20_000)
budgets = st.sampled_from([0.5, 0.1, 0.05, 0.01, 0.001])
alphas = st.sampled_from([0.1, 0.05, 0.01])


class TestPublishedNumbers:
    @pytest.mark.parametrize(
        ("budget", "alpha", "expected"),
        [
            (P99, 0.10, {0: 230, 1: 388, 2: 531, 5: 926, 10: 1538}),
            (P99, 0.05, {0: 299, 1: 473, 2: 628, 5: 1049, 10: 1693, 20: 2902, 50: 6323, 100: 11799}),
            (P99, 0.01, {0: 459, 1: 662, 2: 838, 5: 1307, 10: 2010, 20: 3304, 50: 6898, 100: 12571}),
            (0.05, 0.05, {0: 59, 1: 93, 2: 124}),
            (0.001, 0.05, {0: 2995, 1: 4742}),
        ],
    )
    def test_smallest_number_of_requests_to_pass(self, budget: float, alpha: float, expected: dict[int, int]) -> None:
        assert {t: smallest_n_to_pass(t, budget, alpha) for t in expected} == expected

    @pytest.mark.parametrize(
        ("n", "passes", "fails"), [(300, 0, 7), (500, 1, 10), (1000, 4, 16), (3000, 20, 40), (10000, 83, 118)]
    )
    def test_most_exceedances_to_pass_and_fewest_to_fail(self, n: int, passes: int, fails: int) -> None:
        assert most_to_pass(n, P99, ALPHA) == passes
        assert fewest_to_fail(n, P99, ALPHA) == fails

    @pytest.mark.parametrize(
        ("n", "lower", "upper"), [(500, 491, 499), (1000, 985, 996), (5000, 4938, 4962), (10000, 9883, 9917)]
    )
    def test_ranks_that_bound_p99(self, n: int, lower: int, upper: int) -> None:
        bounds = quantile_bounds(np.arange(1.0, n + 1), 0.99, ALPHA)

        assert bounds is not None
        assert (bounds.lower, bounds.upper) == (lower, upper)

    def test_below_299_requests_nothing_bounds_p99_from_above(self) -> None:
        bounds = quantile_bounds(np.arange(298.0), 0.99, ALPHA)

        assert bounds is not None
        assert bounds.upper is None
        assert decide(0, 298, P99, ALPHA) == "inconclusive"
        assert decide(0, 299, P99, ALPHA) == "pass"


class TestDecide:
    @given(n=sizes, q=budgets, alpha=alphas, data=st.data())
    def test_agrees_with_the_exact_binomial(self, n: int, q: float, alpha: float, data: st.DataObject) -> None:
        t = data.draw(st.integers(0, n))

        assert at_most(t, n, q) == pytest.approx(binom.cdf(t, n, q), rel=1e-6, abs=1e-12)
        assert at_least(t, n, q) == pytest.approx(binom.sf(t - 1, n, q), rel=1e-6, abs=1e-12)

    @given(n=sizes, q=budgets, alpha=alphas, data=st.data())
    def test_never_passes_and_fails_together(self, n: int, q: float, alpha: float, data: st.DataObject) -> None:
        t = data.draw(st.integers(0, n))

        assert not (at_most(t, n, q) <= alpha and at_least(t, n, q) <= alpha)

    @given(n=sizes, q=budgets, alpha=alphas, data=st.data())
    def test_one_more_exceedance_never_makes_it_better(
        self, n: int, q: float, alpha: float, data: st.DataObject
    ) -> None:
        t = data.draw(st.integers(0, n - 1))
        order = ["pass", "inconclusive", "fail"]

        assert order.index(decide(t, n, q, alpha)) <= order.index(decide(t + 1, n, q, alpha))

    @given(n=sizes, q=budgets, alpha=alphas, data=st.data())
    def test_one_more_good_request_never_makes_it_worse(
        self, n: int, q: float, alpha: float, data: st.DataObject
    ) -> None:
        t = data.draw(st.integers(0, n))
        order = ["pass", "inconclusive", "fail"]

        assert order.index(decide(t, n + 1, q, alpha)) <= order.index(decide(t, n, q, alpha))

    @given(n=sizes, q=budgets, alpha=alphas, scale=st.floats(0.01, 1), data=st.data())
    def test_fewer_effective_requests_never_turn_a_fail_into_a_pass(
        self, n: int, q: float, alpha: float, scale: float, data: st.DataObject
    ) -> None:
        t = data.draw(st.integers(0, n))
        whole = decide(t, n, q, alpha)
        shrunk = decide(t, n, q, alpha, n * scale)

        assert {whole, shrunk} != {"pass", "fail"}

    def test_no_request_is_never_a_pass(self) -> None:
        assert decide(0, 0, P99, ALPHA) == "inconclusive"
        assert quantile_bounds(np.array([]), 0.99, ALPHA) is None

    def test_more_effective_requests_than_requests_do_not_help(self) -> None:
        assert decide(0, 200, P99, ALPHA, n_eff=5000) == "inconclusive"

    def test_without_a_budget_one_exceedance_refutes(self) -> None:
        assert decide(0, 10, 0.0, ALPHA) == "pass"
        assert decide(1, 10, 0.0, ALPHA) == "fail"


class TestBounds:
    @settings(max_examples=60)
    @given(
        values=st.lists(st.floats(0, 100) | st.just(math.inf), min_size=1, max_size=700),
        limit=st.floats(0, 100),
        share=st.floats(0.2, 1),
    )
    def test_the_bounds_and_the_decision_say_the_same(self, values: list[float], limit: float, share: float) -> None:
        ordered = np.sort(np.array(values))
        n_eff = ordered.size * share
        bounds = quantile_bounds(ordered, 0.9, ALPHA, n_eff)
        decision = decide(int((ordered > limit).sum()), ordered.size, 0.1, ALPHA, n_eff)

        assert bounds is not None
        assert (decision == "pass") == (bounds.upper is not None and bounds.upper <= limit)
        assert (decision == "fail") == (bounds.lower is not None and bounds.lower > limit)

    def test_the_value_is_a_measured_one_and_may_be_infinite(self) -> None:
        values = np.array([1.0] * 98 + [math.inf] * 2)

        assert quantile_bounds(values, 0.98, ALPHA).value == 1.0  # type: ignore[union-attr]
        assert math.isinf(quantile_bounds(values, 0.99, ALPHA).value)  # type: ignore[union-attr]

    @given(n=st.integers(1, 5000), confidence=st.sampled_from([0.9, 0.95, 0.99]), data=st.data())
    def test_share_bounds_are_those_of_clopper_and_pearson(
        self, n: int, confidence: float, data: st.DataObject
    ) -> None:
        count = data.draw(st.integers(0, n))
        upper = binomtest(count, n, alternative="less").proportion_ci(confidence, "exact").high
        lower = binomtest(count, n, alternative="greater").proportion_ci(confidence, "exact").low

        assert share_upper_bound(count, n, confidence) == pytest.approx(upper, abs=1e-9)
        assert share_lower_bound(count, n, confidence) == pytest.approx(lower, abs=1e-9)

    def test_zero_of_n_leaves_three_of_n(self) -> None:
        assert zero_bound(300) == pytest.approx(3 / 300, rel=2e-3)
        assert zero_bound(300) >= share_upper_bound(0, 300, 0.95)
        assert zero_bound(0) == 1.0


class TestMoreRequests:
    def test_says_how_many_more_would_pass(self) -> None:
        more = more_requests(0, 100, P99, ALPHA)

        assert more == 199

    def test_what_it_says_would_decide(self) -> None:
        more = more_requests(35, 4500, P99, ALPHA)

        assert more is not None
        grown = 35 / 4500 * (4500 + more)
        assert decide(35, 4500, P99, ALPHA) == "inconclusive"
        assert decide(grown, 4500 + more, P99, ALPHA) == "pass"

    def test_nothing_decides_a_share_that_equals_the_budget(self) -> None:
        assert more_requests(10, 1000, P99, ALPHA) is None

    def test_correlated_requests_need_more(self) -> None:
        assert (more_requests(0, 100, P99, ALPHA, n_eff=50) or 0) > (more_requests(0, 100, P99, ALPHA) or 0)

    def test_from_nothing_it_is_the_smallest_number_that_can_pass(self) -> None:
        assert more_requests(0, 0, P99, ALPHA) == 299
