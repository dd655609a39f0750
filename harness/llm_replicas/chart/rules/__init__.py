"""Rules over rendered objects. Each is a function from objects to findings; none means that all is well."""

from llm_replicas.chart.rules.base import Finding, Rule
from llm_replicas.chart.rules.edge import EDGE_RULES
from llm_replicas.chart.rules.images import IMAGE_RULES
from llm_replicas.chart.rules.lifecycle import LIFECYCLE_RULES
from llm_replicas.chart.rules.security import SECURITY_RULES
from llm_replicas.chart.rules.workload import WORKLOAD_RULES

ALL_RULES: tuple[Rule, ...] = (
    *IMAGE_RULES,
    *SECURITY_RULES,
    *LIFECYCLE_RULES,
    *WORKLOAD_RULES,
    *EDGE_RULES,
)

__all__ = ["ALL_RULES", "Finding", "Rule"]
