from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import lfilter
from scipy.stats import norm

from llm_replicas.slo.dependence import MAX_CORRELATION, dependence, design_effect, neighbour_correlation
from llm_replicas.slo.quantile import decide, share_lower_bound

ALPHA = 0.05
BUDGET = 0.01
RUNS = 400


def correlated(rng: np.random.Generator, n: int, rho: float) -> npt.NDArray[np.float64]:
    """Normal scores whose neighbours correlate by rho (AR(1)), from the stationary law on."""
    shocks = rng.standard_normal(n) * np.sqrt(1 - rho**2)
    shocks[0] = rng.standard_normal()
    values: npt.NDArray[np.float64] = lfilter([1], [1, -rho], shocks)
    return values


def rates(rho: float, exceed: float, *, n: int = 3000, corrected: bool = True, seed: int = 5) -> dict[str, float]:
    """Shares of the verdicts over many runs in which requests truly exceed with probability `exceed`."""
    rng = np.random.default_rng(seed)
    limit = float(norm.isf(exceed))
    counts = {"pass": 0, "fail": 0, "inconclusive": 0}
    for _ in range(RUNS):
        values = correlated(rng, n, rho)
        n_eff = dependence(values, limit, 1 - BUDGET).n_eff if corrected else n
        counts[decide(int((values > limit).sum()), n, BUDGET, ALPHA, n_eff)] += 1
    return {word: count / RUNS for word, count in counts.items()}


class TestKnownLaws:
    """At an exceedance of exactly the budget neither pass nor fail may come more often than one in twenty.

    The assertion is on the lower 99 % bound of the simulated share, so that it fails for a wrong rule only.
    """

    @pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
    def test_false_verdicts_are_rare_although_neighbours_are_alike(self, rho: float) -> None:
        found = rates(rho, BUDGET)

        assert share_lower_bound(found["pass"] * RUNS, RUNS, 0.99) <= ALPHA
        assert share_lower_bound(found["fail"] * RUNS, RUNS, 0.99) <= ALPHA

    def test_small_samples_without_one_exceedance_do_not_pass_by_their_likeness(self) -> None:
        found = rates(0.8, BUDGET, n=500)

        assert share_lower_bound(found["pass"] * RUNS, RUNS, 0.99) <= ALPHA

    def test_without_the_correction_false_passes_are_common(self) -> None:
        found = rates(0.8, BUDGET, corrected=False)

        assert found["pass"] > 2 * ALPHA

    def test_twice_the_budget_is_refuted(self) -> None:
        assert rates(0.0, 2 * BUDGET)["fail"] > 0.95

    def test_half_the_budget_is_proved_with_the_planned_number_of_requests(self) -> None:
        assert rates(0.0, BUDGET / 2, n=6100)["pass"] > 0.95


class TestDesignEffect:
    @pytest.mark.parametrize(("rho", "low", "high"), [(0.0, 1.0, 1.3), (0.5, 1.2, 2.2), (0.8, 2.0, 5.5)])
    def test_grows_with_the_correlation(self, rho: float, low: float, high: float) -> None:
        rng = np.random.default_rng(3)
        effects = [dependence(correlated(rng, 6000, rho), float(norm.isf(0.01)), 0.99).design_effect for _ in range(20)]

        assert low <= float(np.mean(effects)) <= high

    def test_of_exceedances_that_come_in_blocks_is_the_length_of_a_block(self) -> None:
        rng = np.random.default_rng(4)
        block = 10
        exceeds = np.repeat(rng.random(2000) < 0.01, block)

        assert design_effect(exceeds) == pytest.approx(block, rel=0.3)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_is_one_where_nothing_varies(self, share: float) -> None:
        assert design_effect(np.full(100, share == 1.0)) == 1.0

    def test_never_makes_more_of_the_requests_than_there_are(self) -> None:
        alternating = np.tile([True, False], 500)

        assert design_effect(alternating) == 1.0


class TestNeighbours:
    @pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
    def test_correlation_is_read_back(self, rho: float) -> None:
        values = correlated(np.random.default_rng(1), 20_000, rho)

        assert neighbour_correlation(np.exp(values)) == pytest.approx(rho, abs=0.03)

    def test_lost_requests_do_not_break_it(self) -> None:
        values = np.array([1.0, 2.0, np.inf, np.inf, 1.5, 2.5] * 50)

        assert -1 <= neighbour_correlation(values) <= 1
        assert neighbour_correlation(np.full(10, np.inf)) == 0.0

    def test_beyond_what_was_calibrated_it_says_so(self) -> None:
        values = correlated(np.random.default_rng(2), 5000, MAX_CORRELATION + 0.08)

        assert dependence(values, 3.0, 0.99).too_strong
