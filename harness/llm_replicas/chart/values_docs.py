"""Generates the chart's values.schema.json and README value table from the comments of values.yaml.

One source, so that a value's words, its accepted form and its default cannot drift apart. The convention is
told at the top of values.yaml. The schema is closed everywhere except where a hint opens it (``@map``), and
its ``slo`` part is the harness's own SLO model.

Run ``python -m llm_replicas.chart.values_docs --write`` after editing values.yaml; without ``--write`` it
exits with 1 when a committed file differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_replicas.errors import UsageError
from llm_replicas.slo.model import slo_json_schema

SCHEMA_FILE = "values.schema.json"
README_FILE = "README.md"
BEGIN, END = "<!-- values: generated, do not edit -->", "<!-- values: end -->"

# Kubernetes quantities, as the API server reads them.
QUANTITY = {
    "type": ["string", "number"],
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$",
}
TYPES: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "object": {"type": "object"},
    "quantity": QUANTITY,
}
NUMBER_HINTS = {"minimum", "maximum"}
HINTS = {"enum", "pattern", "map", "items", "type", "slo", *NUMBER_HINTS}


@dataclass(frozen=True)
class Value:
    """One key of values.yaml with what is said over it."""

    path: tuple[str, ...]
    default: Any
    prose: str
    hints: dict[str, str] = field(default_factory=dict)

    @property
    def dotted(self) -> str:
        """The path as operators type it."""
        return ".".join(self.path)

    @property
    def is_group(self) -> bool:
        """A mapping whose keys are values of their own."""
        return (
            isinstance(self.default, dict) and "map" not in self.hints and self.hints.get("type") != "object"
        )


def read_values(text: str) -> list[Value]:
    """Every key of a values.yaml in the order of the file, groups too."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError("values.yaml holds no mapping")
    return list(_keys(root, (), text.splitlines()))


def _keys(node: yaml.MappingNode, parents: tuple[str, ...], lines: Sequence[str]) -> Iterator[Value]:
    for key, child in node.value:
        path = (*parents, str(key.value))
        prose, hints = _comment(lines, key.start_mark.line, ".".join(path))
        value = Value(path, _plain(child), prose, hints)
        yield value
        # Inside a flow mapping there is no room for comments: its keys are described by the key above.
        if value.is_group and isinstance(child, yaml.MappingNode) and not child.flow_style:
            yield from _keys(child, path, lines)


def _plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _comment(lines: Sequence[str], at: int, where: str) -> tuple[str, dict[str, str]]:
    """Prose and hints of the comment block that ends just above line ``at``."""
    block: list[str] = []
    while at > 0 and lines[at - 1].lstrip().startswith("#"):
        at -= 1
        block.insert(0, lines[at].lstrip().removeprefix("#").strip())
    if not any(line.startswith("-- ") for line in block):
        return "", {}
    start = next(number for number, line in enumerate(block) if line.startswith("-- "))
    prose: list[str] = []
    hints: dict[str, str] = {}
    for line in block[start:]:
        if line.startswith("@"):
            name, _, given = line[1:].partition(" ")
            if name not in HINTS:
                raise UsageError(
                    f"values.yaml, {where}: hint @{name} is not known; accepted: {', '.join(sorted(HINTS))}"
                )
            hints[name] = given.strip()
        else:
            prose.append(line.removeprefix("-- "))
    return " ".join(prose), hints


def schema(values: Sequence[Value]) -> dict[str, Any]:
    """The closed JSON schema of all values."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart llm-replicas",
        **_closed(),
    }
    # Helm itself adds `global` when the chart is a dependency.
    root["properties"]["global"] = {"type": "object"}
    modelled = {value.path for value in values if "slo" in value.hints}
    for value in values:
        # Below the SLO model's part nothing is said twice.
        if any(value.path[:depth] in modelled for depth in range(1, len(value.path))):
            continue
        node = root
        for parent in value.path[:-1]:
            node = node["properties"][parent]
        node["properties"][value.path[-1]] = _schema_of(value)
    return root


def _closed() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _schema_of(value: Value) -> dict[str, Any]:
    described = {"description": value.prose} if value.prose else {}
    if "slo" in value.hints:
        return {**slo_json_schema(), **described}
    if value.is_group:
        return {**_closed(), **described}
    return {**described, **_type_of(value), **_limits(value)}


def _type_of(value: Value) -> dict[str, Any]:
    if "map" in value.hints:
        return {"type": "object", "additionalProperties": _named(value.hints["map"], value)}
    if "items" in value.hints:
        return {"type": "array", "items": _named(value.hints["items"], value)}
    if "type" in value.hints:
        return _named(value.hints["type"], value)
    if "enum" in value.hints:
        return {"enum": [word.strip() for word in value.hints["enum"].split("|")]}
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string")):
        if isinstance(value.default, kind):
            return {"type": name}
    raise UsageError(
        f"values.yaml, {value.dotted}: the default does not tell the type; add @type, @items or @map"
    )


def _named(name: str, value: Value) -> dict[str, Any]:
    if name not in TYPES:
        raise UsageError(
            f"values.yaml, {value.dotted}: type {name!r} is not known; accepted: {', '.join(TYPES)}"
        )
    return dict(TYPES[name])


def _limits(value: Value) -> dict[str, Any]:
    limits: dict[str, Any] = {name: json.loads(value.hints[name]) for name in NUMBER_HINTS & set(value.hints)}
    if "pattern" in value.hints:
        limits["pattern"] = value.hints["pattern"]
    return dict(sorted(limits.items()))


def table(values: Sequence[Value]) -> str:
    """The README's value table in Markdown."""
    described = schema(values)
    lines = ["| Value | Default | What it decides |", "|---|---|---|"]
    for value in values:
        if value.is_group and any(other.path[:-1] == value.path for other in values):
            continue
        default = json.dumps(value.default, separators=(", ", ": "))
        lines.append(f"| `{value.dotted}` | `{_cell(default)}` | {_cell(_prose(value, described))} |")
    return "\n".join(lines)


def _prose(value: Value, described: dict[str, Any]) -> str:
    """What is said over a value, else what the SLO model says of it."""
    node = described
    for key in value.path:
        node = node["properties"][key]
    return value.prose or str(node.get("description", ""))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def undocumented(values: Sequence[Value]) -> list[str]:
    """Values that say nothing about themselves, neither in values.yaml nor in the SLO model."""
    described = schema(values)
    groups = {value.path[:-1] for value in values}
    return [value.dotted for value in values if value.path not in groups and not _prose(value, described)]


def generated(chart: Path) -> dict[Path, str]:
    """Every generated file of the chart and what it should hold."""
    values = read_values((chart / "values.yaml").read_text(encoding="utf-8"))
    readme = (chart / README_FILE).read_text(encoding="utf-8")
    if BEGIN not in readme or END not in readme:
        raise UsageError(
            f"{chart / README_FILE} lacks the lines {BEGIN!r} and {END!r} around the value table"
        )
    head, _, rest = readme.partition(BEGIN)
    tail = rest.partition(END)[2]
    return {
        chart / SCHEMA_FILE: json.dumps(schema(values), indent=2, ensure_ascii=False) + "\n",
        chart / README_FILE: f"{head}{BEGIN}\n{table(values)}\n{END}{tail}",
    }


def stale(chart: Path) -> list[Path]:
    """Generated files whose committed text differs from what would be generated."""
    return [
        path
        for path, text in generated(chart).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the generated files, or say which of them are stale."""
    parser = argparse.ArgumentParser(prog="python -m llm_replicas.chart.values_docs", description=__doc__)
    parser.add_argument("chart", nargs="?", type=Path, default=Path("charts/llm-replicas"))
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing them")
    options = parser.parse_args(arguments)
    differing = stale(options.chart)
    for path in differing:
        if options.write:
            path.write_text(generated(options.chart)[path], encoding="utf-8")
        sys.stderr.write(f"{path}: {'written' if options.write else 'stale, run again with --write'}\n")
    return 1 if differing and not options.write else 0


if __name__ == "__main__":
    raise SystemExit(main())
