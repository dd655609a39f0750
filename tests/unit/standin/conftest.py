"""Makes the stand-in's engine importable (it ships in an image, not in the package), and this folder's helper."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2] / "images" / "standin"), str(HERE)]
