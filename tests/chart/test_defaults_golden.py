"""The whole default render, so that a review shows what users will get.

After an intended change: REGENERATE_GOLDENS=1 pytest THIS_FILE, then read the diff and commit it.
The regenerating run fails, so that nobody commits a golden unseen.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.chart_places import ROOT, STANDIN, Renderer

GOLDENS = Path(__file__).parent / "golden"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


@pytest.mark.parametrize(("golden", "standin"), [("defaults.yaml", False), ("standin.yaml", True)])
def test_render_is_the_committed_one(golden: str, standin: bool, rendered: Renderer) -> None:
    objects = sorted(rendered(standin=standin), key=lambda item: (item["kind"], item["metadata"]["name"]))
    text = yaml.dump_all(_trimmed(objects), Dumper=_Dumper, sort_keys=True, width=200)
    path = GOLDENS / golden

    if os.environ.get("REGENERATE_GOLDENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(
            f"{path.relative_to(ROOT)} was written; read its diff, then run without REGENERATE_GOLDENS"
        )

    assert text == path.read_text(encoding="utf-8"), (
        f"render of {STANDIN.name if standin else 'the defaults'} changed"
    )


def _trimmed(node: Any) -> Any:
    """Trailing blanks would make YAML write a text as one quoted line."""
    if isinstance(node, dict):
        return {key: _trimmed(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_trimmed(child) for child in node]
    return "\n".join(line.rstrip() for line in node.split("\n")) if isinstance(node, str) else node
