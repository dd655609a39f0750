"""Where the chart is, and what renders it, for the chart's tests."""

from collections.abc import Callable
from pathlib import Path

from llm_replicas.chart.objects import Objects

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "llm-replicas"
STANDIN = CHART / "ci" / "standin-values.yaml"
SCENARIOS = sorted((CHART / "ci").glob("*-values.yaml"))

Renderer = Callable[..., Objects]
