"""Schema and table from the comments of a values file."""

import json
from pathlib import Path

import pytest

from llm_replicas.chart import values_docs
from llm_replicas.errors import UsageError

TEXT = """\
# A comment of the file, not of a value.

# -- How many there are.
# Production: three.
# @minimum 1
count: 3

group:
  # -- Which of them.
  # @enum one | two
  which: one
  # -- Notes on them.
  # @map string
  notes: {}
  # -- A list.
  # @items integer
  list: [1]
  # -- How much | or less.
  # @type quantity
  size: 1Gi
"""


def test_prose_and_hints_belong_to_the_key_below() -> None:
    values = {value.dotted: value for value in values_docs.read_values(TEXT)}

    assert values["count"].prose == "How many there are. Production: three."
    assert values["count"].hints == {"minimum": "1"}
    assert values["group"].prose == ""
    assert values["group.which"].default == "one"


def test_the_schema_is_closed_and_typed() -> None:
    schema = values_docs.schema(values_docs.read_values(TEXT))

    assert schema["additionalProperties"] is False
    assert schema["properties"]["count"] == {
        "description": "How many there are. Production: three.",
        "type": "integer",
        "minimum": 1,
    }
    group = schema["properties"]["group"]
    assert group["additionalProperties"] is False
    assert group["properties"]["which"]["enum"] == ["one", "two"]
    assert group["properties"]["notes"]["additionalProperties"] == {"type": "string"}
    assert group["properties"]["list"]["items"] == {"type": "integer"}
    assert group["properties"]["size"]["pattern"].startswith("^[0-9]")


def test_the_table_shows_path_default_and_prose() -> None:
    table = values_docs.table(values_docs.read_values(TEXT))

    assert table.splitlines()[2] == "| `count` | `3` | How many there are. Production: three. |"
    assert '| `group.size` | `"1Gi"` | How much \\| or less. |' in table
    assert "`group`" not in table


def test_a_value_without_prose_is_named() -> None:
    assert values_docs.undocumented(values_docs.read_values("silent: 1\n")) == ["silent"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# -- X.\n# @minimun 1\nx: 1\n", "values.yaml, x: hint @minimun is not known"),
        ("# -- X.\nx: []\n", "values.yaml, x: the default does not tell the type; add @type, @items or @map"),
        ("# -- X.\n# @map texts\nx: {}\n", "values.yaml, x: type 'texts' is not known"),
        ("- 1\n", "values.yaml holds no mapping"),
    ],
)
def test_a_wrong_comment_says_where(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        values_docs.schema(values_docs.read_values(text))


def _chart(folder: Path) -> Path:
    (folder / "values.yaml").write_text(TEXT, encoding="utf-8")
    (folder / "README.md").write_text(
        f"head\n{values_docs.BEGIN}\nold\n{values_docs.END}\ntail\n", encoding="utf-8"
    )
    return folder


def test_write_then_compare_finds_nothing_stale(tmp_path: Path) -> None:
    chart = _chart(tmp_path)
    assert values_docs.main([str(chart)]) == 1

    assert values_docs.main([str(chart), "--write"]) == 0

    assert values_docs.main([str(chart)]) == 0
    assert (chart / "README.md").read_text(encoding="utf-8").startswith("head\n")
    assert (chart / "README.md").read_text(encoding="utf-8").endswith("tail\n")
    assert (
        json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))["additionalProperties"]
        is False
    )


def test_a_readme_without_its_markers_is_refused(tmp_path: Path) -> None:
    chart = _chart(tmp_path)
    (chart / "README.md").write_text("no table\n", encoding="utf-8")

    with pytest.raises(UsageError, match="lacks the lines"):
        values_docs.stale(chart)
