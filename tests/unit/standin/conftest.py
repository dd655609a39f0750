"""Makes the stand-in's engine importable: it ships in an image, not in the package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "images" / "standin"))
