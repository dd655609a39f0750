"""What the engine is told: one JSON file, each field overridable by an environment variable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standin_engine import cost

ENVIRONMENT_PREFIX = "STANDIN_"
CHOICES = {
    "forward": ("simulated", "torch"),
    "torch_device": ("auto", "cpu", "cuda"),
    "torch_dtype": ("float32", "bfloat16"),
}
COUNTS = (
    "stages",
    "max_batch",
    "chunk_tokens",
    "kv_blocks",
    "tokens_per_block",
    "max_waiting",
    "stream_interval",
    "torch_layers",
    "torch_width",
    "torch_heads",
)


class ConfigError(ValueError):
    """A field is unknown, of the wrong type or out of range."""


@dataclass(frozen=True)
class EngineConfig:
    """Every number of the engine; the defaults are the tuned ones (see `tune`).

    The three costs are published seconds (see `cost`); `time_scale` stretches them all.
    The `torch_` fields are read only when `forward` is `torch`, the costs only when it is `simulated`. The paged
    cache then takes kv_blocks x tokens_per_block x torch_layers x torch_width x 2 numbers of `torch_dtype`.
    """

    forward: str = "simulated"
    time_scale: float = 4.0
    base_seconds: float = cost.STEP_BASE_SECONDS
    per_sequence_seconds: float = cost.PER_SEQUENCE_SECONDS
    per_prefill_token_seconds: float = cost.PER_PREFILL_TOKEN_SECONDS
    stages: int = 8
    max_batch: int = 200
    chunk_tokens: int = 96
    kv_blocks: int = 2048
    tokens_per_block: int = 32
    prefix_cache: bool = True
    max_waiting: int = 64
    stream_interval: int = 3
    cancel_check_seconds: float = 0.5
    torch_device: str = "auto"
    torch_dtype: str = "float32"
    torch_layers: int = 2
    torch_width: int = 128
    torch_heads: int = 4
    control_path: str = "/tmp/standin-control.json"  # noqa: S108 - the only writable folder of the pod

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("time_scale", "base_seconds", "cancel_check_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("per_sequence_seconds", "per_prefill_token_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_batch < self.stages:
            raise ConfigError(f"max_batch is {self.max_batch}; each of the {self.stages} stages needs a place")
        for name, accepted in CHOICES.items():
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; accepted: {', '.join(accepted)}")
        if self.torch_width % (2 * self.torch_heads):
            raise ConfigError(
                f"torch_width is {self.torch_width}; it must be a multiple of twice torch_heads, {self.torch_heads}"
            )

    @property
    def lane_slots(self) -> int:
        """Sequences that one lane may hold."""
        return self.max_batch // self.stages

    def cost_model(self) -> cost.CostModel:
        """The scaled step cost."""
        return cost.CostModel(
            base=self.base_seconds * self.time_scale,
            per_sequence=self.per_sequence_seconds * self.time_scale,
            per_prefill_token=self.per_prefill_token_seconds * self.time_scale,
        )


def load(path: Path | None, environment: Mapping[str, str]) -> EngineConfig:
    """Read the file, then let STANDIN_<FIELD> variables win."""
    fields = {field.name: field.type for field in dataclasses.fields(EngineConfig)}
    given: dict[str, object] = {}
    if path is not None:
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError) as problem:
            raise ConfigError(f"{path}: not readable as JSON: {problem}") from problem
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: expected one JSON object")
        unknown = sorted(set(document) - set(fields))
        if unknown:
            raise ConfigError(f"{path}: unknown field {unknown[0]!r}; accepted: {', '.join(sorted(fields))}")
        given.update(document)
    for name in fields:
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None:
            given[name] = text
    values: dict[str, Any] = {name: _convert(name, str(fields[name]), value) for name, value in given.items()}
    return EngineConfig(**values)


def _convert(name: str, kind: str, value: object) -> object:
    """Turn a JSON value or an environment string into the field's type, or say what was expected."""
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if kind == "int":
            return int(str(value))
        if kind == "float":
            return float(str(value))
        return str(value)
    except (KeyError, ValueError) as problem:
        raise ConfigError(f"{name} is {value!r}; expected a value of type {kind}") from problem
