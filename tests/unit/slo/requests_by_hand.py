"""Requests written down by hand, for tests that count them."""

from __future__ import annotations

from typing import Any

from llm_replicas.slo.samples import Samples, from_columns

DEFAULTS: dict[str, Any] = {
    "worker": "worker-0",
    "phase": "steady",
    "protocol": "generate_stream",
    "outcome": "ok",
    "error_class": None,
    "replica": "10.0.0.2:8000",
    "router": "router-0",
    "scheduled_s": 0.0,
    "received_tokens": 10,
    "events": 4,
    "gap": 0.1,
    "connection_reused": True,
    "wall_start": 0.0,
}


def request(due: float, *, ttft: float | None = 0.2, lasts: float = 2.0, **given: Any) -> dict[str, Any]:
    """One request that was due, sent and answered."""
    return {
        **DEFAULTS,
        "scheduled_s": due,
        "sent_s": due,
        "first_byte_s": None if ttft is None else due + ttft,
        "end_s": due + lasts,
        **given,
    }


def failed(due: float, **given: Any) -> dict[str, Any]:
    """One request of which no token arrived."""
    return request(
        due,
        ttft=None,
        **{
            "lasts": 0.1,
            "outcome": "failed",
            "error_class": "http_503",
            "received_tokens": 0,
            "events": 0,
            "gap": None,
            "replica": None,
            **given,
        },
    )


def cut(due: float, at: float, **given: Any) -> dict[str, Any]:
    """One stream that broke off at a moment."""
    return request(due, lasts=at - due, **{"outcome": "cut", "error_class": "reset", "received_tokens": 4, **given})


def samples(rows: list[dict[str, Any]]) -> Samples:
    """The rows as samples, each with a number for its id unless it has one."""
    rows = [{"request_id": f"r{number}", **row} for number, row in enumerate(rows)]
    names = rows[0].keys() if rows else {**request(0.0), "request_id": ""}.keys()
    return from_columns({name: [row[name] for row in rows] for name in names})
