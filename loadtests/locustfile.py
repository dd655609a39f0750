"""Open-loop load on a Triton service, for Locust.

    LLM_PLAN=loadtests/plans/smoke.yaml locust -f loadtests/locustfile.py --headless --host http://127.0.0.1:8080

The plan decides what is sent and when; Locust's own `--users`, `--spawn-rate` and `--run-time` do not. With
`--master --expect-workers N` and N times `--worker`, each worker plays every N-th request of the same
schedule. The records are in the run folder; the figures that Locust prints are rounded and are for the eye
only.
"""

from loadtests.conductor import OpenLoopUser

__all__ = ["OpenLoopUser"]
