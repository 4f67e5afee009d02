"""Every room's folder on the path: faults, fuzzing and some tests use what the tests of another room define."""

import sys
from pathlib import Path

for _room in sorted(Path(__file__).resolve().parent.iterdir()):
    if any(_room.glob("test_*.py")) and str(_room) not in sys.path:
        sys.path.append(str(_room))
