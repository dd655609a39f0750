"""Where the checkout lies: images and tool pins live in the repository, not in the wheel."""

import os
from pathlib import Path

from llm_replicas.errors import EnvironmentProblem

_VARIABLE = "LLM_REPLICAS_ROOT"


def checkout() -> Path:
    """Return the root of the repository this package runs from."""
    named = os.environ.get(_VARIABLE)
    if named:
        root = Path(named).resolve()
        if not _is_checkout(root):
            msg = (
                f"{_VARIABLE}={named} is not a checkout of llm-replicas (no ci/tools in it). "
                "Point it at the root of a clone, or unset it."
            )
            raise EnvironmentProblem(msg)
        return root
    for folder in Path(__file__).resolve().parents:
        if _is_checkout(folder):
            return folder
    msg = (
        "This command builds tools and images from the repository, and the installed package has neither. "
        f"Run ci/llm-replicas in a clone, or set {_VARIABLE} to the clone's root."
    )
    raise EnvironmentProblem(msg)


def _is_checkout(folder: Path) -> bool:
    return (folder / "ci" / "tools" / "tools.toml").is_file() and (folder / "images").is_dir()
