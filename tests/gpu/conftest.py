"""Makes the stand-in's engine and its tests' reference importable."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "images" / "standin"), str(ROOT / "tests" / "unit" / "standin")]
