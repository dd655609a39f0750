"""What a rule is and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from llm_replicas.chart.objects import Objects


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where."""

    rule: str
    where: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """Plain data for machines."""
        return asdict(self)


Rule = Callable[[Objects], Iterator[Finding]]
