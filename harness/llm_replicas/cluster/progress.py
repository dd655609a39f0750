"""What long work tells its caller while it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["waiting", "started", "output", "finished", "cached"]


@dataclass(frozen=True)
class Step:
    """One thing that happened to one subject (a binary, an image) of a longer job.

    `done` of `total` subjects are complete. `text` is a line of the builder's output, or why we wait.
    """

    subject: str
    state: State
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    text: str = ""


OnProgress = Callable[[Step], None]


def silent(step: Step) -> None:
    """Ignore progress."""
