"""Faults on demand, switched by a small JSON file that anyone who may `exec` into the container can write.

  {"slowdown": 2}          every step takes twice as long
  {"freeze_seconds": 5}    no step ends for 5 seconds, once for each change of the file
  {"cut_every_n": 10}      every 10th request ends after its first event, as if complete
  {"stall_every_n": 10}    every 10th request stays open and silent after its first event
  {"error_every_n": 10}    every 10th request ends with an error event after its first event

An absent file means no faults. These are test switches: nothing in a chart sets them.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, fields
from pathlib import Path


class StreamFault(enum.Enum):
    """What happens to one request."""

    NONE = "none"
    CUT = "cut"
    STALL = "stall"
    ERROR = "error"


class ControlError(ValueError):
    """The control file cannot be understood; the last good settings stay."""


@dataclass(frozen=True)
class Control:
    """The faults that are switched on."""

    slowdown: float = 1.0
    freeze_seconds: float = 0.0
    cut_every_n: int = 0
    stall_every_n: int = 0
    error_every_n: int = 0

    def stream_fault(self, number: int) -> StreamFault:
        """The fault of the request with this running number (from 1)."""
        for every, fault in (
            (self.cut_every_n, StreamFault.CUT),
            (self.stall_every_n, StreamFault.STALL),
            (self.error_every_n, StreamFault.ERROR),
        ):
            if every > 0 and number % every == 0:
                return fault
        return StreamFault.NONE


def parse(text: str) -> Control:
    """Read a control document."""
    try:
        document = json.loads(text)
    except ValueError as problem:
        raise ControlError(f"not JSON: {problem}") from problem
    if not isinstance(document, dict):
        raise ControlError("expected one JSON object")
    accepted = {field.name for field in fields(Control)}
    for name, value in document.items():
        if name not in accepted:
            raise ControlError(f"unknown switch {name!r}; accepted: {', '.join(sorted(accepted))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ControlError(f"{name} is {value!r}; expected a number that is not negative")
        if name.endswith("_n") and not isinstance(value, int):
            raise ControlError(f"{name} is {value!r}; expected a whole number")
    control = Control(**document)
    if control.slowdown <= 0:
        raise ControlError("slowdown is 0; expected a factor above 0")
    return control


@dataclass
class ControlFile:
    """Notices changes of the file by its stamp, which costs one system call a look."""

    path: Path
    _stamp: tuple[int, int, int] | None = None

    def poll(self) -> Control | None:
        """The new settings if the file changed since the last look, else None."""
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        if stamp is None:
            return Control()
        try:
            return parse(self.path.read_text())
        except OSError as problem:
            raise ControlError(str(problem)) from problem
