"""`verdict.json`: the verdict for machines, with a published schema. Figures that are unknown are null."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llm_replicas.errors import UsageError
from llm_replicas.slo.verdict import Verdict

SCHEMA_FILE = Path(__file__).with_name("verdict.schema.json")
_ADAPTER = TypeAdapter(Verdict)


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Write the verdict so that a crash leaves the old file or the new one, never half of one."""
    part = path.with_suffix(".json.part")
    part.write_text(to_json(verdict), encoding="utf-8")
    part.replace(path)


def to_json(verdict: Verdict) -> str:
    """The verdict as JSON text."""
    return json.dumps(_ADAPTER.dump_python(verdict, mode="json"), indent=2, allow_nan=False) + "\n"


def read_verdict(path: Path) -> Verdict:
    """Read a verdict back."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; judge the run first") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{path} is no verdict of this version ({place}: {first['msg']}); judge the run again"
        ) from error


def verdict_schema() -> dict[str, Any]:
    """The JSON schema of `verdict.json`, as published beside this module."""
    schema = _ADAPTER.json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Verdict of a run"}
