"""The small policy that ships with this package."""

from pathlib import Path

BUNDLED = "bundled"
"""The ``model`` that stands for it."""
BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "environments" / "bundled" / "policy"
