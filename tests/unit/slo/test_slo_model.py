from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from llm_replicas.errors import UsageError
from llm_replicas.slo.model import Slo, digest, load_slo, looser_than, slo_json_schema

TABLE: dict[str, Any] = {
    "confidence": 0.95,
    "latency": {
        "ttft": {"quantile": 0.99, "seconds": 1.2},
        "largestGap": {"quantile": 0.99, "seconds": 0.9},
        "tpot": {"quantile": 0.9, "seconds": 0.2},
        "e2e": {"quantile": 0.5, "seconds": 20},
    },
    "errorRatio": 0.01,
    "stallSeconds": 10,
    "failover": {
        "podDelete": {"failedNew": 0, "cut": 0, "timeToRecoverSeconds": 1},
        "podKill": {"failedNew": 0, "cut": "inFlight", "timeToRecoverSeconds": 1},
        "replicaRollout": {"failedNew": 0, "cut": 0},
        "routerRollout": {"failedNew": 2, "cut": 3},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The table with one value put in, or taken out where it is None."""
    table = deepcopy(TABLE)
    *parents, last = path.split(".")
    node = table
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return table


class TestLoading:
    @pytest.mark.parametrize("wrapped", [True, False])
    def test_reads_the_table_with_and_without_its_key(self, wrapped: bool, tmp_path: Path) -> None:
        path = tmp_path / "slo.yaml"
        path.write_text(json.dumps({"slo": TABLE} if wrapped else TABLE))

        assert load_slo(path) == load_slo(TABLE)

    def test_writes_what_it_reads(self) -> None:
        assert load_slo(load_slo(TABLE).as_yaml()) == load_slo(TABLE)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (
                "latency.ttfft",
                {},
                "slo.latency.ttfft: there is no such key (did you mean ttft?); accepted: ttft, largestGap",
            ),
            ("failover.podkill", {}, "slo.failover.podkill: there is no such key (did you mean podKill?)"),
            ("errorRate", 0.1, "slo.errorRate: there is no such key (did you mean errorRatio?)"),
            (
                "latency.ttft.quantile",
                99,
                "slo.latency.ttft.quantile: given 99, accepted: a number less than 1",
            ),
            ("latency.ttft.seconds", "1", "slo.latency.ttft.seconds: given '1', accepted: a number"),
            (
                "latency.ttft.seconds",
                -1,
                "slo.latency.ttft.seconds: given -1, accepted: a number greater than 0",
            ),
            (
                "latency.ttft.seconds",
                float("nan"),
                "slo.latency.ttft.seconds: given nan, accepted: a finite number",
            ),
            ("confidence", True, "slo.confidence: given True, accepted: a number"),
            ("failover.podKill.cut", "inflight", "given 'inflight', accepted: a whole number or 'inFlight'"),
            ("failover.podKill.cut", None, "slo.failover.podKill.cut: missing"),
            ("latency", 3, "slo.latency: given 3, accepted: a mapping"),
        ],
    )
    def test_refuses_by_path_what_was_given_and_what_is_accepted(self, path: str, value: Any, message: str) -> None:
        with pytest.raises(UsageError) as refused:
            load_slo(changed(path, value))

        assert message in str(refused.value)

    def test_names_every_mistake_at_once(self) -> None:
        table = changed("confidence", 2)
        table["latency"]["tpot"]["seconds"] = 0

        with pytest.raises(UsageError) as refused:
            load_slo(table)

        assert "slo.confidence" in str(refused.value)
        assert "slo.latency.tpot.seconds" in str(refused.value)

    @pytest.mark.parametrize("text", ["[1, 2]", "a: [", "3"])
    def test_refuses_a_file_that_is_no_table(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "slo.yaml"
        path.write_text(text)

        with pytest.raises(UsageError, match=r"slo\.yaml"):
            load_slo(path)

    def test_refuses_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="No such file"):
            load_slo(tmp_path / "absent.yaml")


class TestDigest:
    def test_does_not_depend_on_order_or_spelling_of_numbers(self) -> None:
        other = dict(reversed(list(changed("latency.e2e.seconds", 20.0).items())))

        assert digest(load_slo(other)) == digest(load_slo(TABLE))
        assert digest(load_slo(TABLE)).startswith("sha256:")

    def test_changes_with_any_promise(self) -> None:
        assert digest(load_slo(changed("failover.podKill.cut", 0))) != digest(load_slo(TABLE))


class TestLooserThan:
    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("confidence", 0.9),
            ("errorRatio", 0.02),
            ("errorRatio", None),
            ("stallSeconds", 20),
            ("latency.ttft.seconds", 1.3),
            ("latency.ttft.quantile", 0.95),
            ("latency.largestGap", None),
            ("failover.podDelete", None),
            ("failover.podDelete.failedNew", 1),
            ("failover.podDelete.cut", 1),
            ("failover.podDelete.cut", "inFlight"),
            ("failover.podKill.cut", 1),
            ("failover.podKill.timeToRecoverSeconds", None),
            ("failover.podKill.timeToRecoverSeconds", 2),
        ],
    )
    def test_finds_each_way_to_promise_less(self, path: str, value: Any) -> None:
        loosened = looser_than(load_slo(changed(path, value)), load_slo(TABLE))

        assert [item.path for item in loosened] == [path]

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("confidence", 0.99),
            ("errorRatio", 0),
            ("latency.ttft.seconds", 1),
            ("latency.ttft.quantile", 0.999),
            ("failover.podKill.cut", 0),
            ("failover.routerRollout.cut", 2),
            ("failover.replicaRollout.timeToRecoverSeconds", 5),
        ],
    )
    def test_accepts_a_stricter_promise(self, path: str, value: Any) -> None:
        assert looser_than(load_slo(changed(path, value)), load_slo(TABLE)) == []


class TestSchema:
    def test_stands_on_its_own_and_is_closed_everywhere(self) -> None:
        text = json.dumps(slo_json_schema())

        assert "$ref" not in text
        assert "$defs" not in text
        assert '"null"' not in text
        assert text.count('"additionalProperties": false') == 1 + 1 + 4 + 1 + 4

    def test_knows_every_key_of_the_table(self) -> None:
        def keys(node: dict[str, Any]) -> dict[str, Any]:
            return {name: keys(child) for name, child in node.get("properties", {}).items()}

        def shape(node: Any) -> Any:
            return {name: shape(child) for name, child in node.items()} if isinstance(node, dict) else {}

        schema = keys(slo_json_schema())
        for name, part in shape(TABLE).items():
            assert name in schema
            for inner, leaves in part.items():
                assert set(leaves) <= set(schema[name][inner])

    def test_describes_every_value(self) -> None:
        def bare(node: dict[str, Any], path: str) -> list[str]:
            return [
                found
                for name, child in node.get("properties", {}).items()
                for found in ([f"{path}.{name}"] if "description" not in child else []) + bare(child, f"{path}.{name}")
            ]

        assert bare(slo_json_schema(), "slo") == []


def test_promises_nothing_by_itself() -> None:
    assert list(Slo().latency.promised()) == []
    assert Slo().failover.of("podKill") is None
    assert Slo().failover.of("earthquake") is None
