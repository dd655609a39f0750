"""The README names only what is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REQUIREMENTS = [
    *(f"I{number}" for number in range(1, 7)),
    *(f"C{number}" for number in range(1, 5)),
    *(f"T{number}" for number in range(1, 4)),
    *(f"O{number}" for number in range(1, 5)),
    *(f"S{number}" for number in range(1, 5)),
    *(f"H{number}" for number in range(1, 6)),
]


def test_every_requirement_has_a_status() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| ") and line[2:4] in REQUIREMENTS]

    assert [row[2:4] for row in rows] == REQUIREMENTS
    words = ("proven here", "admitted only", "wiring only", "not yet")
    assert all(any(word in row for word in words) for row in rows)


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"\b[A-Z]{3,}_[A-Z_]{3,}\b", README) == []


def test_every_file_that_it_names_exists() -> None:
    named = set(re.findall(r"\]\(([^)#:]+)\)", README)) | set(
        re.findall(r"`((?:ci|docs|charts|loadtests|images|tests)/[\w./-]+)", README)
    )

    assert [path for path in sorted(named) if not (ROOT / path.rstrip("/")).exists()] == []
