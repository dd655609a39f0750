"""The stand-in's promises are no softer than twice what its cost model takes for one request alone."""

from __future__ import annotations

from pathlib import Path

import yaml
from standin_engine.config import EngineConfig, load
from standin_engine.simulation import Unloaded, unloaded_p99
from standin_engine.tune import PROMISE_FACTOR, read_lengths

ROOT = Path(__file__).resolve().parents[3]
VALUES = ROOT / "charts" / "llm-replicas" / "ci" / "standin-values.yaml"
PLAN = ROOT / "loadtests" / "plans" / "gate.yaml"


def promised() -> dict[str, float]:
    table = yaml.safe_load(VALUES.read_text(encoding="utf-8"))["slo"]["latency"]
    return {metric: row["seconds"] for metric, row in table.items()}


def unloaded(config: EngineConfig) -> Unloaded:
    workload = yaml.safe_load(PLAN.read_text(encoding="utf-8"))["workload"]
    trace = ROOT / "loadtests" / "traces" / f"AzureLLMInferenceTrace_{workload['trace']}.csv"
    lengths = read_lengths(trace, int(workload["prompt_divisor"]), int(workload["output_divisor"]))
    return unloaded_p99(lengths, config)


def within_factor(config: EngineConfig) -> bool:
    alone, limits = unloaded(config), promised()
    return (
        limits["ttft"] <= PROMISE_FACTOR * alone.ttft_seconds
        and limits["largestGap"] <= PROMISE_FACTOR * alone.largest_gap_seconds
    )


def test_the_promises_are_at_most_twice_the_unloaded_p99() -> None:
    shipped = load(ROOT / "images" / "standin" / "engine.json", {})

    assert within_factor(shipped), (promised(), unloaded(shipped))


def test_a_faster_engine_under_the_same_promises_would_be_noticed() -> None:
    assert not within_factor(EngineConfig(time_scale=3.0))
