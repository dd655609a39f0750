"""The numbers that are promised elsewhere follow from the engine's own defaults."""

from __future__ import annotations

import random

import pytest
from standin_engine.config import EngineConfig
from standin_engine.cost import CostModel
from standin_engine.simulation import poisson_arrivals, quantile, simulate, stable, unloaded_p99

# Shaped like the scaled Azure conversation trace: long-tailed prompts, answers up to about 110 tokens.
SOURCE = random.Random(7)
LENGTHS = [
    (min(414, max(1, round(SOURCE.lognormvariate(4.2, 1.1)))), SOURCE.choice([10, 25, 40, 60, 95, 105, 110]))
    for _ in range(2500)
]
BELOW_ONE = 0.97


def test_a_step_costs_base_plus_sequences_plus_prompt_tokens() -> None:
    assert CostModel(0.1, 0.001, 0.0002).step_seconds(10, 50) == pytest.approx(0.12)


def test_the_model_passes_through_the_published_points() -> None:
    cost = EngineConfig(time_scale=1.0).cost_model()

    assert cost.step_seconds(1, 0) == pytest.approx(0.02976)
    assert cost.step_seconds(64, 0) == pytest.approx(0.05016)
    assert cost.step_seconds(1, 2048) - cost.step_seconds(1, 512) == pytest.approx(0.13680 - 0.05339)


def test_a_lone_request_takes_exactly_what_the_cost_model_says() -> None:
    config = EngineConfig()
    cost = config.cost_model()
    outcome = simulate([0.0], [(200, 7)], config).outcomes[0]

    assert outcome.ttft == pytest.approx(
        2 * cost.step_seconds(1, config.chunk_tokens) + cost.step_seconds(1, 200 - 2 * config.chunk_tokens)
    )
    assert outcome.largest_gap == pytest.approx(config.stream_interval * cost.step_seconds(1, 0))


def test_loaded_percentiles_stay_within_one_and_a_half_times_the_unloaded_ones() -> None:
    config = EngineConfig()
    alone = unloaded_p99(LENGTHS, config)
    run = simulate(poisson_arrivals(9.7, len(LENGTHS), 3), LENGTHS, config)

    assert alone.ttft_seconds >= 0.3
    assert run.rejected == 0
    assert quantile((outcome.ttft for outcome in run.outcomes), 0.99) <= 1.5 * alone.ttft_seconds
    gaps = [gap for outcome in run.outcomes if (gap := outcome.largest_gap) is not None]
    assert quantile(gaps, 0.99) <= 1.5 * alone.largest_gap_seconds


def test_a_replica_twice_as_slow_breaks_any_promise_of_twice_the_unloaded_gap() -> None:
    config = EngineConfig()
    alone = unloaded_p99(LENGTHS, config)
    run = simulate(poisson_arrivals(9.7, len(LENGTHS), 3), LENGTHS, config, slowdown=2.0)

    gaps = [gap for outcome in run.outcomes if (gap := outcome.largest_gap) is not None]

    assert sum(gap > 2 * alone.largest_gap_seconds for gap in gaps) / len(gaps) > 0.5


def test_a_replica_keeps_up_with_fifteen_requests_a_second_and_not_with_forty() -> None:
    assert stable(15.0, LENGTHS, EngineConfig())
    assert not stable(40.0, LENGTHS, EngineConfig())


def test_rejected_requests_count_as_infinitely_slow() -> None:
    run = simulate([0.0] * 4, [(1, 50)] * 4, EngineConfig(stages=1, max_batch=1, max_waiting=1))

    assert run.rejected == 2
    assert run.outcomes[-1].ttft == float("inf")


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.75, 3.0), (0.99, 4.0)])
def test_a_quantile_is_a_value_that_was_seen(share: float, expected: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == expected


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], BELOW_ONE)
