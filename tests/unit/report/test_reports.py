from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_replicas.errors import UsageError
from llm_replicas.judge import judge, read_run
from llm_replicas.report.github import annotation_lines, job_summary
from llm_replicas.report.html import to_html
from llm_replicas.report.junit import to_junit
from llm_replicas.report.verdict_json import SCHEMA_FILE, read_verdict, to_json, verdict_schema
from llm_replicas.slo.facts import RunFacts
from llm_replicas.slo.verdict import Verdict
from tests.unit.report.synthetic_run import build

NOT_PASSED = ["fail", "inconclusive", "invalid"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "healthy")


@pytest.fixture(scope="module")
def verdict(run: Path) -> Verdict:
    return judge(run)


@pytest.fixture(scope="module")
def facts(run: Path) -> RunFacts:
    return read_run(run)[0]


@pytest.fixture(scope="module")
def page(verdict: Verdict, facts: RunFacts) -> str:
    return to_html(verdict, facts)


def spoilt(verdict: Verdict, word: str) -> Verdict:
    """The verdict with its first objective, and so the whole, turned into another word."""
    first = replace(verdict.objectives[0], verdict=word, reason="of old age")  # type: ignore[arg-type]
    return replace(
        verdict,
        verdict=word,  # type: ignore[arg-type]
        reasons=("ttft_p99: of old age",),
        objectives=(first, *verdict.objectives[1:]),
    )


class TestJunit:
    def test_is_green_for_a_pass(self, verdict: Verdict) -> None:
        root = ET.fromstring(to_junit(verdict))

        assert root.get("failures") == root.get("errors") == "0"
        assert not root.findall(".//failure") + root.findall(".//error")

    def test_has_a_case_for_each_objective_and_fault(self, verdict: Verdict) -> None:
        names = [case.get("name") or "" for case in ET.fromstring(to_junit(verdict)).iter("testcase")]

        for objective in verdict.objectives:
            assert objective.name in names
        for fault in verdict.faults:
            assert any(name.startswith(fault.kind) for name in names)
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("word", NOT_PASSED)
    def test_is_red_for_everything_else(self, word: str, verdict: Verdict) -> None:
        root = ET.fromstring(to_junit(spoilt(verdict, word)))

        assert int(root.get("failures") or 0) + int(root.get("errors") or 0) == 1
        assert root.find(".//failure" if word == "fail" else ".//error") is not None

    @pytest.mark.parametrize("word", NOT_PASSED)
    def test_is_red_even_when_no_part_explains_why(self, word: str, verdict: Verdict) -> None:
        root = ET.fromstring(to_junit(replace(verdict, verdict=word)))  # type: ignore[arg-type]

        assert root.findall(".//failure") + root.findall(".//error")

    def test_survives_what_a_broken_server_says(self, verdict: Verdict) -> None:
        odd = replace(verdict.objectives[0], verdict="fail", reason="\x00\x1b[31m<&>\ud800")
        text = to_junit(replace(verdict, verdict="fail", objectives=(odd,)))

        assert ET.fromstring(text) is not None


class TestPage:
    def test_needs_nothing_from_outside(self, page: str) -> None:
        assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
        assert "@import" not in page
        assert "<script" not in page

    def test_says_the_verdict_first(self, page: str, verdict: Verdict) -> None:
        body = page[page.index("<body>") :]

        assert body.index("PASS") < body.index("Objectives")
        assert "Stand-in numbers" in page

    def test_shows_every_objective_with_its_bound(self, page: str, verdict: Verdict) -> None:
        for objective in verdict.objectives:
            assert objective.name in page
            assert f"{objective.n:,}" in page

    def test_shows_every_fault_and_what_zero_of_n_leaves_open(self, page: str, verdict: Verdict) -> None:
        for fault in verdict.faults:
            assert fault.kind in page
            assert f"{fault.failed_new_bound * 100:.3g} %" in page

    def test_names_lost_requests_and_their_cause(self, page: str, verdict: Verdict) -> None:
        assert verdict.lost
        assert verdict.lost[0].examples[0] in page
        assert verdict.lost[0].error_class in page

    def test_every_picture_has_words_in_its_place(self, page: str) -> None:
        class Pictures(HTMLParser):
            alts: list[str | None]

            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                if tag == "img":
                    self.alts.append(dict(attrs).get("alt"))

        parser = Pictures()
        parser.alts = []
        parser.feed(page)

        assert len(parser.alts) == 4
        assert all(alt and len(alt) > 40 for alt in parser.alts)

    def test_says_how_to_repeat_the_run(self, page: str, verdict: Verdict) -> None:
        for name in ("seed", "slo_digest", "schedule_digest"):
            assert str(verdict.provenance[name]) in page

    @pytest.mark.parametrize("word", NOT_PASSED)
    def test_gives_the_reason_when_it_did_not_pass(self, word: str, verdict: Verdict, facts: RunFacts) -> None:
        page = to_html(spoilt(verdict, word), facts)

        assert "of old age" in page
        assert word.upper() in page

    def test_escapes_what_a_server_said(self, verdict: Verdict, facts: RunFacts) -> None:
        odd = replace(verdict.lost[0], error_class="<script>alert(1)</script>")

        assert "<script>" not in to_html(replace(verdict, lost=(odd,)), facts)

    def test_is_the_same_for_the_same_run(self, page: str, verdict: Verdict, facts: RunFacts) -> None:
        assert to_html(verdict, facts) == page

    def test_can_be_made_of_an_empty_run(self, tmp_path: Path) -> None:
        judge(tmp_path)

        assert "Nothing was broken" in (tmp_path / "report.html").read_text()


class TestJson:
    def test_reads_back_what_it_writes(self, verdict: Verdict, run: Path) -> None:
        assert to_json(read_verdict(run / "verdict.json")) == to_json(verdict)

    def test_holds_no_number_that_is_not_json(self, run: Path) -> None:
        def refuse(word: str) -> float:
            raise AssertionError(word)

        json.loads((run / "verdict.json").read_text(), parse_constant=refuse)

    def test_its_published_schema_is_the_one_in_use(self) -> None:
        assert json.loads(SCHEMA_FILE.read_text()) == verdict_schema()

    @pytest.mark.parametrize("content", ["", "{}", '{"verdict": "great"}'])
    def test_refuses_what_is_no_verdict(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "verdict.json"
        path.write_text(content)

        with pytest.raises(UsageError, match="judge the run again"):
            read_verdict(path)


class TestGithub:
    def test_a_pass_is_one_notice(self, verdict: Verdict) -> None:
        assert [line.split(" ")[0] for line in annotation_lines(verdict)] == ["::notice"]

    @pytest.mark.parametrize(("word", "level"), [("fail", "error"), ("invalid", "error"), ("inconclusive", "warning")])
    def test_everything_else_is_named_on_one_line_each(self, word: str, level: str, verdict: Verdict) -> None:
        lines = annotation_lines(spoilt(verdict, word))

        assert len(lines) == 1
        assert lines[0].startswith(f"::{level} title=llm-replicas%3A {word.upper()}%3A ttft_p99::")

    def test_a_message_of_several_lines_stays_one_command(self, verdict: Verdict) -> None:
        odd = replace(verdict.objectives[0], verdict="fail", reason="50 % of\nit\r::error::x")

        line = annotation_lines(replace(verdict, verdict="fail", objectives=(odd,), faults=()))[0]

        assert "\n" not in line
        assert "50 %25 of%0Ait%0D" in line

    def test_the_summary_has_the_verdict_and_both_tables(self, verdict: Verdict) -> None:
        text = job_summary(verdict)

        assert "PASS" in text
        assert "Stand-in numbers" in text
        for name in ("ttft_p99", "errorRatio", "podDelete", "routerRollout"):
            assert name in text
