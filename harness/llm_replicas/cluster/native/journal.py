"""What a cluster has put on the machine, written down before it is made.

One JSON object a line, only ever appended. A crash can tear only the last line, and what that line would have
announced has then not been made yet.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One thing on the machine: its kind and what is needed to find and remove it."""

    kind: str
    facts: dict[str, Any]


class Journal:
    """The list of a cluster's traces on the machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, kind: str, **facts: Any) -> Entry:
        """Write down something that is about to be made."""
        entry = Entry(kind, facts)
        line = json.dumps({"kind": kind, **facts}) + "\n"
        # One write of one line, so that two threads cannot mix theirs.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        return entry

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Return what was recorded, oldest first; a torn last line is left out."""
        return [entry for entry in self._read() if kind in (None, entry.kind)]

    def _read(self) -> Iterator[Entry]:
        if not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            yield Entry(facts.pop("kind"), facts)
