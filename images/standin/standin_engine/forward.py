"""The forward pass, the one part of the engine that can be exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from standin_engine.config import ConfigError, EngineConfig
from standin_engine.cost import CostModel
from standin_engine.scheduler import Step

Done = Callable[[Step, str | None], None]
"""Told when a step's tokens exist, or why they never will."""


class Forward(Protocol):
    """Something that computes steps.

    Steps that were begun earlier are computed earlier: the scheduler hands a freed block to the next sequence
    at once, while a step that still writes to it may be on its way.
    """

    slowdown: float
    """A fault switch: 2 means that every step takes twice as long."""

    @property
    def vocabulary(self) -> int:
        """How many different tokens it knows; 0 when it never looks at a prompt."""
        ...

    def start(self, done: Done) -> None:
        """Get ready; `done` is for steps whose end is not known when they begin, from any thread."""
        ...

    def stop(self) -> None:
        """End what `start` began; steps on their way may be dropped."""
        ...

    def run(self, step: Step) -> float | None:
        """Begin the step; return the seconds until its tokens exist, or None: `done` will be called then.

        This is called under the engine's lock, so it must not wait for anything, and what the step refers to
        is only valid until it returns.
        """
        ...


@dataclass
class SimulatedForward:
    """Computes nothing and says how long it would have taken."""

    cost: CostModel
    slowdown: float = 1.0

    @property
    def vocabulary(self) -> int:
        """It never looks at a prompt."""
        return 0

    def start(self, done: Done) -> None:
        """Nothing to get ready: the length of every step is known beforehand."""

    def stop(self) -> None:
        """Nothing to end."""

    def run(self, step: Step) -> float:
        """Look the step up in the cost model."""
        return self.cost.step_seconds(step.sequences, step.prefill_tokens) * self.slowdown


def create(config: EngineConfig) -> Forward:
    """The forward pass that the configuration asks for."""
    if config.forward == "simulated":
        return SimulatedForward(config.cost_model())
    # Imported here because the engine must work without PyTorch, which is larger than the rest of the image.
    try:
        import torch  # noqa: F401, PLC0415
    except ImportError as problem:
        raise ConfigError(
            f"forward is {config.forward!r}, but PyTorch cannot be imported ({problem}); "
            "install torch 2.4 or newer beside the engine, or use 'simulated'"
        ) from problem
    from standin_engine.torch_forward import TorchForward  # noqa: PLC0415

    return TorchForward(config)
