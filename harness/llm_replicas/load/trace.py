"""Traces of real requests: when they came and how long they were (CSV as the Azure LLM inference trace)."""

from __future__ import annotations

import csv
import datetime as dt
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_replicas.errors import EnvironmentProblem, UsageError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_FILES = {"conv": "AzureLLMInferenceTrace_conv.csv", "code": "AzureLLMInferenceTrace_code.csv"}
# Seven decimals of a second, as the trace has them, are one more than datetime reads.
_TIME = re.compile(r"^(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d{1,9})?(?:Z|\+00:00)?$")


@dataclass(frozen=True)
class Trace:
    """Arrival moments in seconds after the first one, in order, and the lengths of each request."""

    arrivals_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrivals_s)

    @property
    def gaps_s(self) -> NDArray[np.float64]:
        """Time from each request to the next; the last is given the mean, so that the trace can go round."""
        gaps = np.diff(self.arrivals_s)
        mean = float(gaps.mean()) if len(gaps) and gaps.sum() > 0 else 1.0
        return np.append(gaps, mean)

    def scaled(self, prompt_divisor: float, output_divisor: float) -> Trace:
        """The same requests with shorter texts, rounded to whole tokens and never below one."""
        return Trace(
            self.arrivals_s,
            _divide(self.prompt_tokens, prompt_divisor),
            _divide(self.output_tokens, output_divisor),
        )


def _divide(tokens: NDArray[np.int64], divisor: float) -> NDArray[np.int64]:
    # floor(x + 0.5), because numpy's own rounding of halves to even numbers bends small counts.
    return np.maximum(1, np.floor(tokens / divisor + 0.5)).astype(np.int64)


def load_trace(name: str) -> Trace:
    """Read a trace that ships with the load tests (``conv``, ``code``) or a CSV file of the same columns."""
    if name not in _FILES:
        return read_trace(Path(name))
    try:
        folder = resources.files("loadtests")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"trace {name}: the package loadtests is not importable; "
            "install llm-replicas or add the repository root to PYTHONPATH"
        ) from error
    return read_trace(Path(str(folder / "traces" / _FILES[name])))


def read_trace(path: Path) -> Trace:
    """Read a CSV trace; the first malformed row is named by its line."""
    moments: list[tuple[int, int]] = []
    prompts: list[int] = []
    outputs: list[int] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, None)
            if header is None or tuple(cell.strip() for cell in header) != COLUMNS:
                raise UsageError(f"{path}, line 1: expected the header {','.join(COLUMNS)}; got {header}")
            for row in rows:
                line = rows.line_num
                if not row:
                    continue
                if len(row) != len(COLUMNS):
                    raise UsageError(
                        f"{path}, line {line}: expected {len(COLUMNS)} cells, got {len(row)}: {row}"
                    )
                moment = _moment(row[0], path, line)
                if moments and moment < moments[-1]:
                    raise UsageError(
                        f"{path}, line {line}: {row[0]} is before the line above; expected rows in order"
                    )
                moments.append(moment)
                prompts.append(_count(row[1], COLUMNS[1], path, line))
                outputs.append(_count(row[2], COLUMNS[2], path, line))
    except OSError as error:
        raise UsageError(
            f"trace {path}: {error.strerror}; accepted: {', '.join(_FILES)} or the path of a CSV file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"trace {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise UsageError(f"trace {path}, line {len(moments) + 2}: not CSV: {error}") from error
    if not moments:
        raise UsageError(f"trace {path}: no row below the header; expected at least one request")
    first_second, first_nano = moments[0]
    arrivals = [(second - first_second) + (nano - first_nano) / 1e9 for second, nano in moments]
    return Trace(np.array(arrivals), np.array(prompts, dtype=np.int64), np.array(outputs, dtype=np.int64))


def _moment(cell: str, path: Path, line: int) -> tuple[int, int]:
    """A time as whole seconds and nanoseconds, so that nothing of it is lost in a float."""
    match = _TIME.match(cell.strip())
    if match is None:
        raise UsageError(f"{path}, line {line}: TIMESTAMP {cell!r}: expected YYYY-MM-DD HH:MM:SS.fffffff")
    try:
        second = dt.datetime.fromisoformat(match[1]).replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise UsageError(f"{path}, line {line}: TIMESTAMP {cell!r}: {error}") from error
    return int(second.timestamp()), int((match[2] or ".")[1:].ljust(9, "0"))


def _count(cell: str, column: str, path: Path, line: int) -> int:
    text = cell.strip()
    if not (text.isascii() and text.isdigit()) or int(text) > 10_000_000:
        raise UsageError(
            f"{path}, line {line}: {column} {cell!r}: expected a whole number from 0 to 10000000"
        )
    return int(text)
