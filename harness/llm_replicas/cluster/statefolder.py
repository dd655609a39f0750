"""Where clusters keep what must outlive a command."""

import os
from pathlib import Path


def default_state_root() -> Path:
    """Return the folder under which clusters live: $LLM_REPLICAS_STATE, or the user's state folder."""
    named = os.environ.get("LLM_REPLICAS_STATE")
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "llm-replicas"
