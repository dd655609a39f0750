from pathlib import Path

import numpy as np
import pytest

from llm_replicas.errors import UsageError
from llm_replicas.load.trace import load_trace, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46.6805900,374,44\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text, newline="")
    return path


@pytest.mark.parametrize(("name", "rows", "seconds"), [("conv", 19366, 3501.72), ("code", 8819, 3435.95)])
def test_the_traces_that_ship_are_whole(name: str, rows: int, seconds: float) -> None:
    trace = load_trace(name)

    assert len(trace) == rows
    assert trace.arrivals_s[-1] == pytest.approx(seconds, abs=0.01)


def test_the_scaled_conversation_trace_has_the_figures_of_the_gate_plan() -> None:
    trace = load_trace("conv").scaled(10, 4)

    assert trace.prompt_tokens.mean() == pytest.approx(115, abs=1)
    assert np.percentile(trace.prompt_tokens, 99) == pytest.approx(414, abs=2)
    assert trace.output_tokens.mean() == pytest.approx(53, abs=1)
    assert np.percentile(trace.output_tokens, [75, 90, 95, 100]) == pytest.approx([99, 106, 113, 250], abs=1)


def test_no_scaled_length_is_below_one_token() -> None:
    trace = load_trace("conv").scaled(100_000, 100_000)

    assert trace.prompt_tokens.min() == trace.output_tokens.min() == 1


def test_all_seven_decimals_of_a_moment_count(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, HEADER + ROW + "2023-11-16 18:15:47.6805907,1,1\r\n"))

    assert trace.arrivals_s.tolist() == pytest.approx([0.0, 1.0000007], abs=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "line 1: expected the header TIMESTAMP,ContextTokens,GeneratedTokens"),
        ("", "line 1: expected the header"),
        (HEADER, "no row below the header"),
        (HEADER + ROW + "2023-11-16 18:15:47,5\n", "line 3: expected 3 cells, got 2"),
        (HEADER + ROW + "2023-11-16 18:15:40,5,5\n", "line 3: .* is before the line above"),
        (HEADER + "yesterday,5,5\n", "line 2: TIMESTAMP 'yesterday'"),
        (HEADER + "2023-13-16 18:15:46,5,5\n", "line 2: TIMESTAMP"),
        (HEADER + ROW + ROW + "2023-11-16 18:15:47,5,-5\n", "line 4: GeneratedTokens '-5': expected a whole"),
        (HEADER + "2023-11-16 18:15:47,1e3,5\n", "line 2: ContextTokens '1e3'"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_trace(written(tmp_path, text))


def test_an_unknown_trace_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accepted: conv, code or the path of a CSV file"):
        load_trace(str(tmp_path / "chat"))
