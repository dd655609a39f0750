"""How this command is called by its user, so that messages name commands that can be pasted."""

from __future__ import annotations

import os


def command_name() -> str:
    """``ci/llm-replicas`` where the scripts in ci/ started it, else the installed name."""
    return os.environ.get("LLM_REPLICAS_COMMAND") or "llm-replicas"
