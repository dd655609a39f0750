"""The forward pass, the one part of the engine that can be exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from standin_engine.config import EngineConfig
from standin_engine.cost import CostModel
from standin_engine.scheduler import Step


class Forward(Protocol):
    """Something that computes steps."""

    def run(self, step: Step) -> float:
        """Compute the step; return the seconds from its start until its tokens exist."""
        ...


@dataclass
class SimulatedForward:
    """Computes nothing and says how long it would have taken; `slowdown` 2 means twice as long."""

    cost: CostModel
    slowdown: float = 1.0

    def run(self, step: Step) -> float:
        """Look the step up in the cost model."""
        return self.cost.step_seconds(step.sequences, step.prefill_tokens) * self.slowdown


def create(config: EngineConfig) -> SimulatedForward:
    """The forward pass that the configuration asks for."""
    return SimulatedForward(config.cost_model())
