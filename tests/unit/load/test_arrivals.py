import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from llm_replicas.load import arrivals
from llm_replicas.load.trace import Trace, load_trace


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_poisson_gaps_are_exponential() -> None:
    moments = arrivals.poisson(generator(), 29.0, seconds=600.0)

    assert stats.kstest(np.diff(moments), "expon", args=(0, 1 / 29)).pvalue > 0.01
    assert len(moments) == pytest.approx(29 * 600, abs=4 * np.sqrt(29 * 600))


def test_poisson_gaps_are_exponential_with_a_fixed_count_too() -> None:
    moments = arrivals.poisson(generator(), 29.0, seconds=6100 / 29, requests=6100)

    assert len(moments) == 6100
    assert stats.kstest(np.diff(moments), "expon", args=(0, 1 / 29)).pvalue > 0.01


def test_a_poisson_count_varies_as_poisson_counts_do() -> None:
    counts = [len(arrivals.poisson(generator(seed), 10.0, seconds=10.0)) for seed in range(400)]

    assert np.mean(counts) == pytest.approx(100, abs=2)
    assert np.var(counts) == pytest.approx(100, abs=25)


@settings(max_examples=100, deadline=None)
@given(st.floats(0.5, 500), st.floats(0.1, 20), st.integers(0, 2**32), st.booleans())
def test_all_moments_lie_in_order_inside_the_phase(rate: float, seconds: float, seed: int, counted: bool) -> None:
    requests = max(1, round(rate * seconds)) if counted else None
    trace = Trace(np.array([0.0, 0.0, 1.0, 5.0]), np.arange(4), np.arange(4))
    for moments in (
        arrivals.poisson(generator(seed), rate, seconds=seconds, requests=requests),
        arrivals.constant(rate, seconds=seconds, requests=requests),
        arrivals.from_trace(generator(seed), trace, rate, seconds=seconds, requests=requests)[0],
    ):
        assert (np.diff(moments) >= 0).all()
        assert ((moments >= 0) & (moments < seconds)).all()
        assert requests is None or len(moments) == requests


def test_the_trace_keeps_its_own_rhythm_at_another_rate() -> None:
    trace = load_trace("conv")
    moments, rows = arrivals.from_trace(generator(), trace, 14.5, seconds=60.0)

    gaps = trace.arrivals_s[rows][1:] - trace.arrivals_s[rows][:-1]
    squeeze = np.diff(moments)[0] / gaps[0]
    assert len(moments) == 14.5 * 60
    assert np.diff(moments) / gaps == pytest.approx(np.full(len(gaps), squeeze), rel=1e-6)


def test_a_trace_shorter_than_the_phase_goes_round() -> None:
    trace = Trace(np.array([0.0, 1.0, 3.0]), np.arange(3), np.arange(3))
    _, rows = arrivals.from_trace(generator(), trace, 1.0, seconds=7.0)

    assert set(np.diff(rows)) == {1, -2}


def test_a_trace_of_one_moment_is_spread_evenly() -> None:
    moments, _ = arrivals.from_trace(generator(), Trace(np.zeros(1), np.arange(1), np.arange(1)), 2.0, seconds=2.0)

    assert len(moments) == 4
    assert np.ptp(np.diff(moments)) < 1e-9 or np.diff(moments).min() > 0
