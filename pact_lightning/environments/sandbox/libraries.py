"""Files of Python's that a snippet may read: the standard library, the system's libraries, and named packages.

Neither a project of the user's that is on ``sys.path`` (an editable install) nor the other packages that are installed.
"""

import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

DEFAULT_PACKAGES = (
    "python-dateutil", "pytz", "tzdata", "numpy", "pandas", "scipy", "sympy", "networkx", "pyyaml", "regex",
)  # fmt: skip
"""Distributions that snippets may import where they are installed, with what these depend on. [D]"""

_LIBRARY_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")
_OTHERS = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo")
_OF_INSTALLED_PACKAGES = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class ReadableFiles:
    """Files that a snippet may read.

    Attributes:
        readable: Files and folders, real paths.
        listed: Folders whose names Python's import lists, without a right to read the files.
        packages: Name and real path of each entry of a folder of installed packages that holds the named ones only.
    """

    readable: tuple[str, ...]
    listed: tuple[str, ...]
    packages: tuple[tuple[str, str], ...]

    def link_packages(self, folder: Path) -> None:
        """Make that folder of links, for ``sys.path``: all other packages are as if they were not installed."""
        folder.mkdir()
        for name, target in self.packages:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(target)


@cache
def readable_files(packages: tuple[str, ...]) -> ReadableFiles:
    """Find the files that snippets may read.

    Args:
        packages: Names of distributions; those that are not installed are skipped.
    """
    prefixes = {sys.base_prefix, sys.base_exec_prefix}
    folders = [*_LIBRARY_FOLDERS, *(os.path.join(prefix, name) for prefix in prefixes for name in ("lib", "lib64"))]  # noqa: PTH118
    standard = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    readable = [entry for folder in {os.path.realpath(f) for f in folders} for entry in _library_entries(folder)]
    readable += [entry for folder in standard for entry in _library_entries(folder)]
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        readable += map(str, Path(folder).glob("*.so*"))
    readable += [*_OTHERS, *filter(None, (sysconfig.get_config_var("TZPATH") or "").split(os.pathsep))]
    links = {}
    for found in _with_dependencies(packages):
        for name in _entries(found):
            target = os.path.realpath(str(found.locate_file(name)))
            if os.path.exists(target):  # noqa: PTH110
                links[name] = target
    return ReadableFiles(
        tuple(sorted({*map(os.path.realpath, readable), *links.values()})),
        tuple(sorted(set(map(os.path.realpath, standard)))),
        tuple(sorted(links.items())),
    )


def _library_entries(folder: str) -> Iterator[str]:
    """Return what is in a library folder, but for the folders of installed packages."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # not on this system
        return
    for entry in entries:
        # What a link leads to is allowed where it lies itself.
        if entry.name in _OF_INSTALLED_PACKAGES or entry.is_symlink():
            continue
        # lib/python3.11, and Debian's lib/python3: these hold the folders of installed packages.
        if entry.name.startswith("python") and entry.is_dir():
            yield from _library_entries(entry.path)
        else:
            yield entry.path


def _with_dependencies(packages: tuple[str, ...]) -> list[Distribution]:
    found: dict[str, Distribution | None] = {}
    waiting = list(packages)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = one = distribution(name)
        except PackageNotFoundError:
            found[name] = None
            continue
        for requirement in one.requires or ():
            wanted, _, marker = requirement.partition(";")
            if "extra" not in marker and (match := re.match(r"[A-Za-z0-9._-]+", wanted)):
                waiting.append(match[0])
    return [one for one in found.values() if one is not None]


def _entries(found: Distribution) -> set[str]:
    """Return the paths, relative to the folder it is installed in, that hold a distribution's files."""
    entries = set()
    # Without either file, `files` would be a list of a project's sources.
    installed = found.read_text("RECORD") or found.read_text("installed-files.txt")
    paths = (found.files or ()) if installed else ()
    own = {path.parts[0] for path in paths if len(path.parts) == 2}
    for path in paths:
        top = path.parts[0]
        if top in ("..", "/"):  # scripts, documents
            continue
        if top == "__pycache__":
            entries.add(str(path))
        elif top in own or len(path.parts) == 1:
            entries.add(top)
        else:  # no file of its own lies directly in it: several distributions share such a folder
            entries.add("/".join(path.parts[:2]))
    for name in (found.read_text("top_level.txt") or "").split():
        entries |= {name, f"{name}.py"}
    return entries
