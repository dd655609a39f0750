"""The plan of a run: what is sent, when, and what is broken meanwhile. A closed schema: unknown keys are
refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llm_replicas.errors import UsageError

Protocol = Literal["generate_stream", "grpc_stream", "generate"]
Arrivals = Literal["poisson", "constant", "trace"]
FaultKind = Literal["podDelete", "podKill", "replicaRollout", "routerRollout"]

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
BUILT_IN_TRACES = ("conv", "code")

_NAME = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Closed(BaseModel):
    """Strict and closed: a misspelt key or a number in quotes is an error, never a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Workload(_Closed):
    """Which lengths are asked for and over which protocols."""

    trace: str = "conv"
    prompt_divisor: _Positive = 1.0
    output_divisor: _Positive = 1.0
    mix: dict[Protocol, Annotated[float, Field(ge=0, le=1)]] = Field(default={"generate_stream": 1.0})

    @field_validator("mix")
    @classmethod
    def _shares_make_one(cls, mix: dict[Protocol, float]) -> dict[Protocol, float]:
        total = sum(mix.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}; accepted: shares that add up to 1")
        return mix


class Client(_Closed):
    """How the sender behaves as a client: its waits, its connections, its proof of completeness."""

    connect_seconds: _Positive = 5.0
    first_byte_seconds: _Positive = 30.0
    stall_seconds: _Positive = 10.0
    deadline_seconds: _Positive = 120.0
    connections: Literal["reuse", "new"] = "reuse"
    in_flight_cap: Annotated[int, Field(ge=1)] = 2000
    completeness: Literal["numbered", "clean_end"] = "numbered"


class PlannedFault(_Closed):
    """A fault, placed in its phase."""

    kind: FaultKind
    after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Phase(_Closed):
    """A stretch of load at one rate; as long as its requests take at that rate, or as its duration says."""

    name: Annotated[str, Field(pattern=_NAME, max_length=63)]
    arrivals: Arrivals = "poisson"
    rate_per_second: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
    requests: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    duration_seconds: _Positive | None = None
    judged: bool = True
    fault: PlannedFault | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.requests is None) == (self.duration_seconds is None):
            raise ValueError("give exactly one of requests and duration_seconds")
        if self.fault is not None and self.fault.after_seconds >= self.seconds:
            raise ValueError(
                f"fault.after_seconds is {self.fault.after_seconds:g} but the phase lasts {self.seconds:g} s"
            )
        return self

    @property
    def seconds(self) -> float:
        """How long the phase lasts."""
        if self.duration_seconds is not None:
            return self.duration_seconds
        assert self.requests is not None  # noqa: S101 - one of the two is given
        return self.requests / self.rate_per_second


class Plan(_Closed):
    """All phases of a run, in order and without gaps."""

    name: Annotated[str, Field(pattern=_NAME, max_length=63)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    model: Annotated[str, Field(min_length=1)]
    workload: Workload = Workload()
    client: Client = Client()
    drain_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    phases: Annotated[tuple[Phase, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two phases are called {name}; accepted: a different name for each phase")
        return self

    @property
    def seconds(self) -> float:
        """How long requests are sent; the drain comes after."""
        return sum(phase.seconds for phase in self.phases)

    def phase(self, name: str) -> Phase:
        """The phase of this name."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise UsageError(f"phase {name!r}: the plan has {', '.join(each.name for each in self.phases)}")

    def as_yaml(self) -> dict[str, Any]:
        """Plain data for a YAML file that `load_plan` reads back to an equal plan."""
        return self.model_dump(mode="json")


def load_plan(source: Path | str | dict[str, Any]) -> Plan:
    """Read a plan from a YAML file (a path) or from plain data; errors say where and what is accepted."""
    if isinstance(source, dict):
        return _validate(source, "plan")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"plan {path}: {error.strerror}; give the path of a plan file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"plan {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader with one more check
    except yaml.YAMLError as error:
        raise UsageError(f"plan {path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(
            f"plan {path}: expected a mapping with name, seed, model, phases; got {type(data).__name__}"
        )
    plan = _validate(data, str(path))
    return _with_absolute_trace(plan, path)


def _with_absolute_trace(plan: Plan, path: Path) -> Plan:
    """A trace file is named relative to its plan; a copy of the plan elsewhere must still find it."""
    if plan.workload.trace in BUILT_IN_TRACES:
        return plan
    trace = (path.parent / plan.workload.trace).resolve()
    return plan.model_copy(update={"workload": plan.workload.model_copy(update={"trace": str(trace)})})


def _validate(data: dict[str, Any], where: str) -> Plan:
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise UsageError(f"{where}: " + "; ".join(lines)) from error


def _explain(problem: Any) -> str:
    path = ""
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    path = path or "plan"
    given = problem.get("input")
    shown = "" if isinstance(given, dict | list | tuple) or given is None else f" (given: {given!r})"
    match problem["type"]:
        case "extra_forbidden":
            return f"{path}: unknown key; accepted here: {', '.join(_keys_beside(problem['loc']))}"
        case "missing":
            return f"{path}: is required"
        case "literal_error":
            return f"{path}{shown}: accepted: {problem['ctx']['expected'].replace(' or ', ', ')}"
        case _:
            return f"{path}{shown}: {problem['msg'].removeprefix('Value error, ')}"


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    parents: dict[str, type[BaseModel]] = {
        "workload": Workload,
        "client": Client,
        "phases": Phase,
        "fault": PlannedFault,
    }
    names = [part for part in loc[:-1] if isinstance(part, str)]
    return list(parents.get(names[-1] if names else "", Plan).model_fields)


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings may not say the same key twice; plain YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, refusing a repeated key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
