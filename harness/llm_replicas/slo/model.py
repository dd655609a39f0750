"""The SLO table: what is promised. One model for the gate, the chart's `slo` values and the run folder.

Keys are written in camelCase, as in the chart. The model is closed: an unknown key is an error that names the
path, what was given and what is accepted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel as camel

from llm_replicas.errors import UsageError

Metric = Literal["ttft", "largestGap", "tpot", "e2e"]
FaultKind = Literal["podDelete", "podKill", "replicaRollout", "routerRollout"]
METRICS: tuple[Metric, ...] = get_args(Metric)
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _spelling(name: str) -> str:
    # pydantic would write e2E: it takes the digit for the end of a word.
    return "e2e" if name == "e2e" else camel(name)


class _Table(BaseModel):
    """Base of every part: closed, camelCase, immutable, and strict (the text "0.99" is no number)."""

    model_config = ConfigDict(
        alias_generator=_spelling, validate_by_name=True, extra="forbid", frozen=True, strict=True
    )


class QuantileObjective(_Table):
    """`quantile` of the requests stay within `seconds`."""

    quantile: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = Field(
        description="Share of the requests that must stay within the limit; 0.99 is a p99 objective."
    )
    seconds: Seconds = Field(description="The limit, in seconds.")


class LatencyObjectives(_Table):
    """Latency objectives, by metric; only steady, fault-free requests decide them."""

    ttft: QuantileObjective | None = Field(
        default=None, description="Time to the first token, counted from the moment the request was due."
    )
    largest_gap: QuantileObjective | None = Field(
        default=None, description="Largest pause between two events of one stream."
    )
    tpot: QuantileObjective | None = Field(
        default=None, description="Time per output token after the first one, the mean within a request."
    )
    e2e: QuantileObjective | None = Field(
        default=None,
        description="Time to the end of the answer, counted from the moment the request was due.",
    )

    def promised(self) -> Iterator[tuple[Metric, QuantileObjective]]:
        """The objectives that are set, as pairs of metric and objective."""
        for metric in METRICS:
            objective = self.of(metric)
            if objective is not None:
                yield metric, objective

    def of(self, metric: Metric) -> QuantileObjective | None:
        """The objective of one metric, or None where nothing is promised."""
        found: QuantileObjective | None = getattr(self, "largest_gap" if metric == "largestGap" else metric)
        return found


class FailoverObjective(_Table):
    """What users may notice of one kind of fault."""

    failed_new: Annotated[int, Field(ge=0)] = Field(
        description="Requests due after the fault took effect that may end without a single token."
    )
    cut: Annotated[int, Field(ge=0)] | Literal["inFlight"] = Field(
        description="Requests already running that may be lost; inFlight allows those on the broken pod only."
    )
    time_to_recover_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Longest time from the fault until new requests are served as promised again.",
    )
    time_to_detect_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Longest time from the fault until the router stops sending to the broken pod.",
    )


class FailoverObjectives(_Table):
    """Failover objectives, by kind of fault."""

    pod_delete: FailoverObjective | None = Field(default=None, description="Graceful delete of one replica.")
    pod_kill: FailoverObjective | None = Field(default=None, description="SIGKILL of one replica's server.")
    replica_rollout: FailoverObjective | None = Field(default=None, description="Rolling upgrade of the replicas.")
    router_rollout: FailoverObjective | None = Field(default=None, description="Rolling restart of the routers.")

    def of(self, kind: str) -> FailoverObjective | None:
        """The objective of one kind of fault, or None where nothing is promised."""
        aliases = {field.alias: name for name, field in type(self).model_fields.items()}
        name = aliases.get(kind)
        found: FailoverObjective | None = getattr(self, name) if name else None
        return found


class Slo(_Table):
    """The whole table."""

    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = Field(
        default=0.95, description="Confidence with which every single objective is proved or refuted."
    )
    latency: LatencyObjectives = Field(default=LatencyObjectives(), description="Latency objectives, by metric.")
    error_ratio: Share | None = Field(
        default=None, description="Largest share of steady requests that may fail, be cut or stall."
    )
    stall_seconds: Seconds = Field(default=10.0, description="An open stream that is silent for longer has stalled.")
    failover: FailoverObjectives = Field(
        default=FailoverObjectives(), description="What users may notice of a fault, by its kind."
    )

    def as_yaml(self) -> dict[str, Any]:
        """Plain data in the chart's spelling, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Loosened:
    """One promise that is weaker than the baseline's; `None` means that nothing is promised."""

    path: str
    baseline: float | str | None
    given: float | str | None

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.baseline)} in the baseline, {_shown(self.given)} here"


def load_slo(source: Path | str | Mapping[str, Any]) -> Slo:
    """Read the table from a YAML file or from plain data, with or without the key `slo` around it.

    Raises:
        UsageError: the file cannot be read, or a value is not accepted; the message names its path.

    """
    if isinstance(source, Mapping):
        where, data = "slo", source
    else:
        where, data = str(source), _read(Path(source))
    if isinstance(data.get("slo"), Mapping):
        data = data["slo"]
    try:
        return Slo.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(_explained(error, where))) from error


def digest(slo: Slo) -> str:
    """`sha256:` of the table's canonical JSON: sorted keys, no blanks, nothing that is not set."""
    text = json.dumps(slo.as_yaml(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def looser_than(slo: Slo, baseline: Slo) -> list[Loosened]:
    """Every promise of `slo` that is weaker than in `baseline`; empty when none is."""
    found: list[Loosened] = []

    def compare(path: str, base: float | None, given: float | None, *, more_is_looser: bool = True) -> None:
        if base is None:
            return
        if given is None or (given > base if more_is_looser else given < base):
            found.append(Loosened(path, base, given))

    compare("confidence", baseline.confidence, slo.confidence, more_is_looser=False)
    compare("errorRatio", baseline.error_ratio, slo.error_ratio)
    compare("stallSeconds", baseline.stall_seconds, slo.stall_seconds)
    for metric, promised in baseline.latency.promised():
        path, ours = f"latency.{metric}", slo.latency.of(metric)
        if ours is None:
            found.append(Loosened(path, f"p{promised.quantile * 100:g} {promised.seconds:g} s", None))
            continue
        compare(f"{path}.quantile", promised.quantile, ours.quantile, more_is_looser=False)
        compare(f"{path}.seconds", promised.seconds, ours.seconds)
    for kind in FAULT_KINDS:
        promise, own = baseline.failover.of(kind), slo.failover.of(kind)
        path = f"failover.{kind}"
        if promise is None:
            continue
        if own is None:
            found.append(Loosened(path, "promised", None))
            continue
        compare(f"{path}.failedNew", promise.failed_new, own.failed_new)
        if _cut_is_looser(promise.cut, own.cut):
            found.append(Loosened(f"{path}.cut", promise.cut, own.cut))
        compare(f"{path}.timeToRecoverSeconds", promise.time_to_recover_seconds, own.time_to_recover_seconds)
        compare(f"{path}.timeToDetectSeconds", promise.time_to_detect_seconds, own.time_to_detect_seconds)
    return found


def slo_json_schema() -> dict[str, Any]:
    """JSON schema of the table in the chart's spelling, without references, to be placed into another schema.

    `null` is left out: in a values file it means "not set", and Helm removes such keys before it validates.
    """
    schema = Slo.model_json_schema(by_alias=True)
    inlined: dict[str, Any] = _inline(schema, schema.get("$defs", {}))
    inlined.pop("$defs", None)
    return inlined


def _cut_is_looser(base: int | str, given: int | str) -> bool:
    # A number and `inFlight` cannot be put in order, except that 0 is the strictest of all.
    if isinstance(base, int) and isinstance(given, int):
        return given > base
    return given not in {base, 0}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"SLO file {path}: {error.strerror}; accepted: a YAML file with the key slo") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"SLO file {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise UsageError(f"SLO file {path} holds {type(data).__name__}; accepted: a mapping with the key slo")
    return data


def _explained(error: ValidationError, where: str) -> Iterator[str]:
    prefix = "" if where == "slo" else f"{where}: "
    given: dict[str, Any] = {}
    accepted: dict[str, list[str]] = {}
    for problem in error.errors():
        # A union reports each of its members; only the part of the location that the user typed is shown.
        parts = [str(part) for part in problem["loc"] if not _is_union_member(str(part))]
        path = ".".join(["slo", *parts])
        if problem["type"] == "extra_forbidden":
            known = _keys_at(parts[:-1])
            near = difflib.get_close_matches(parts[-1], known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            yield f"{prefix}{path}: there is no such key{hint}; accepted: {', '.join(known)}"
        elif problem["type"] == "missing":
            yield f"{prefix}{path}: missing; it must be given"
        else:
            given[path] = problem["input"]
            accepted.setdefault(path, []).append(_accepted(problem["type"], problem["msg"]))
    for path, options in accepted.items():
        yield f"{prefix}{path}: given {given[path]!r}, accepted: {' or '.join(options)}"


def _accepted(kind: str, message: str) -> str:
    words = {"float_type": "a number", "int_type": "a whole number", "model_type": "a mapping"}
    plain = message.removeprefix("Input should be ")
    return words.get(kind, f"a number {plain}" if plain.startswith(("less", "greater")) else plain)


def _is_union_member(part: str) -> bool:
    return part in {"int", "float", "constrained-int", "constrained-float"} or part.startswith(
        ("literal[", "function-", "nullable", "constrained")
    )


def _keys_at(path: list[str]) -> list[str]:
    node = slo_json_schema()
    for part in path:
        node = node.get("properties", {}).get(part, {})
    return list(node.get("properties", {}))


def _inline(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node:
        kept = [option for option in node["anyOf"] if option != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key not in {"anyOf", "default"}}
        node = {**kept[0], **rest} if len(kept) == 1 else {"anyOf": kept, **rest}
        if "$ref" in node:
            return _inline(node, definitions)
    return {
        key: _inline(value, definitions)
        for key, value in node.items()
        # A property may itself be called title; only the generated words for humans are dropped.
        if key != "$defs" and not (key == "title" and isinstance(value, str))
    }


def _shown(value: float | str | None) -> str:
    return "not promised" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
