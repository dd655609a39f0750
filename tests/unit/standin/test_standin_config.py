"""The engine's configuration: file, environment, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from standin_engine.config import ConfigError, EngineConfig, load

SHIPPED = Path(__file__).resolve().parents[3] / "images" / "standin" / "engine.json"


def test_the_shipped_file_says_the_same_as_the_defaults() -> None:
    assert load(SHIPPED, {}) == EngineConfig()


def test_environment_variables_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"stages": 2, "max_batch": 16}))

    config = load(path, {"STANDIN_STAGES": "3", "STANDIN_PREFIX_CACHE": "false", "STANDIN_TIME_SCALE": "0.5"})

    assert (config.stages, config.max_batch, config.prefix_cache, config.time_scale) == (3, 16, False, 0.5)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"stage": 2}, "unknown field 'stage'; accepted: base_seconds"),
        ({"stages": "many"}, "stages is 'many'; expected a value of type int"),
        ({"stages": 0}, "stages is 0; it must be at least 1"),
        ({"max_batch": 4}, "max_batch is 4; each of the 8 stages needs a place"),
        ({"time_scale": 0}, "time_scale is 0.0; it must be above 0"),
        ({"forward": "magic"}, "forward is 'magic'; accepted: simulated, torch"),
        ({"torch_device": "tpu"}, "torch_device is 'tpu'; accepted: auto, cpu, cuda"),
        ({"torch_width": 100, "torch_heads": 3}, "torch_width is 100; it must be a multiple of twice torch_heads, 3"),
        ([], "expected one JSON object"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, document: object, complaint: str) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(document))

    with pytest.raises(ConfigError, match=complaint):
        load(path, {})
