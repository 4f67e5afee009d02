"""Commit of this package where it runs from a checkout."""

import subprocess
from pathlib import Path


def package_commit() -> str | None:
    """Return the commit, with ``-dirty`` where files have changed since; ``None`` for an installed wheel.

    A wheel in an environment inside somebody's repository is not of that repository.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
