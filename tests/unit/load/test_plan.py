from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_replicas.errors import UsageError
from llm_replicas.load.plan import load_plan

REPOSITORY = Path(__file__).parents[3]


def plan(**changes: Any) -> dict[str, Any]:
    return {
        "name": "p",
        "seed": 1,
        "model": "ensemble",
        "workload": {"trace": "conv", "mix": {"generate_stream": 0.9, "grpc_stream": 0.1}},
        "phases": [{"name": "a", "rate_per_second": 10, "requests": 100}],
        **changes,
    }


def phase(**changes: Any) -> dict[str, Any]:
    merged = {"name": "a", "rate_per_second": 10.0, "requests": 100, **changes}
    return plan(phases=[{key: value for key, value in merged.items() if value is not None}])


@pytest.mark.parametrize("name", ["gate", "smoke"])
def test_the_plans_that_ship_are_valid(name: str) -> None:
    assert load_plan(REPOSITORY / "loadtests" / "plans" / f"{name}.yaml").name == name


def test_the_gate_plan_holds_what_the_gate_promises() -> None:
    gate = load_plan(REPOSITORY / "loadtests" / "plans" / "gate.yaml")
    steady = [each for each in gate.phases if each.judged and each.fault is None]

    assert sum(round(each.seconds * each.rate_per_second) for each in steady) >= 6000
    assert all(25 <= each.rate_per_second <= 30 for each in gate.phases if each.judged)
    assert all(each.arrivals == "poisson" for each in gate.phases if each.judged)
    assert {each.fault.kind for each in gate.phases if each.fault} == {
        "podDelete",
        "podKill",
        "replicaRollout",
        "routerRollout",
    }
    assert gate.seconds <= 470, "a warm gate has ten minutes for everything"


def test_a_plan_survives_being_written_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(load_plan(plan()).as_yaml()))

    assert load_plan(tmp_path / "plan.yaml") == load_plan(plan())


def test_a_trace_file_is_found_from_the_plan_and_from_its_copy_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan(workload={"trace": "mine.csv"})))

    assert load_plan(tmp_path / "plan.yaml").workload.trace == str(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (plan(sead=1), "sead: unknown key; accepted here: name, seed, model"),
        (phase(rate="x"), r"phases\[0\].rate: unknown key; accepted here: name, arrivals, rate_per_second"),
        (
            phase(arrivals="gamma"),
            r"phases\[0\].arrivals \(given: 'gamma'\): accepted: 'poisson', 'constant'",
        ),
        (phase(rate_per_second="10"), r"phases\[0\].rate_per_second \(given: '10'\)"),
        (phase(rate_per_second=0), r"phases\[0\].rate_per_second \(given: 0\).*greater than 0"),
        (phase(rate_per_second=float("nan")), r"phases\[0\].rate_per_second"),
        (phase(duration_seconds=3.0), r"phases\[0\]: give exactly one of requests and duration_seconds"),
        (phase(requests=None), r"phases\[0\]: give exactly one of requests and duration_seconds"),
        (phase(fault={"kind": "podDelet", "after_seconds": 1}), r"phases\[0\].fault.kind.*'podDelete'"),
        (phase(fault={"kind": "podKill", "after_seconds": 10}), "after_seconds is 10 but the phase lasts 10"),
        (phase(fault={"kind": "podKill", "after": 1}), r"phases\[0\].fault.after: unknown key; .*: kind"),
        (phase(name="A b"), r"phases\[0\].name \(given: 'A b'\)"),
        (plan(phases=[]), "phases"),
        (plan(phases=plan()["phases"] * 2), "two phases are called a"),
        (plan(workload={"mix": {"generate": 0.5}}), r"workload.mix: the shares add up to 0.5"),
        (
            plan(workload={"mix": {"sse": 1.0}}),
            r"workload.mix.sse.*accepted: 'generate_stream', 'grpc_stream'",
        ),
        (plan(client={"in_flight_cap": 0}), "client.in_flight_cap"),
        ({key: value for key, value in plan().items() if key != "model"}, "model: is required"),
    ],
)
def test_a_mistake_is_named_by_its_path_and_what_is_accepted(data: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_plan(data)


@pytest.mark.parametrize(
    ("text", "words"),
    [("name: a\nname: b\n", "'name' is given twice"), ("- a\n", "expected a mapping"), ("a: [", "not YAML")],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)

    with pytest.raises(UsageError, match=words):
        load_plan(tmp_path / "plan.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml: No such file"):
        load_plan(tmp_path / "nowhere.yaml")
