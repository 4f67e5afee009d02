"""Command ``python3 -m benchmarks.check_gpu``: what a CUDA card has to show, in one go and within minutes.

Each check is a process of its own with a limit of its own. What fails, crashes or hangs is told, and the others go on.
The report, build/gpu/report.md, is written as they end; the full logs are next to it. Nothing is installed and nothing
downloaded. Packages in .gpu/site (see ``python3 -m benchmarks.check_gpu.pack``) are used before the machine's own.

Exit status: 0 if all checks passed, 1 if one failed, 3 if those that ran passed and some did not fit into the time.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.check_gpu.checks import CHECKS
from benchmarks.check_gpu.report import NOT_RUN, PASSED, Outcome, describe_machine, write_report
from benchmarks.check_gpu.runner import run_checks

_ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.check_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="time for everything (7)")
    parser.add_argument("--only", default="", help="names of checks, separated by commas")
    parser.add_argument("--cpu", action="store_true", help="the same programs with tiny shapes, on a CPU")
    parser.add_argument("--jobs", type=int, help="checks side by side, those that measure apart (4; 1 with --cpu)")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of report and logs (build/gpu)")
    parser.add_argument("--list", action="store_true", help="name the checks and what they show")
    given = parser.parse_args(arguments)
    names = [name for name in given.only.split(",") if name]
    unknown = sorted(set(names) - {check.name for check in CHECKS})
    if unknown:
        parser.error(f"there is no check {unknown[0]!r}; there are {', '.join(check.name for check in CHECKS)}")
    checks = [check for check in CHECKS if not names or check.name in names]
    if given.list:
        print("\n".join(f"{check.name:17} {check.seconds:3} s  {check.what}" for check in checks))
        return 0
    jobs = given.jobs or (1 if given.cpu else 4)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(_ROOT)
    site = _ROOT / ".gpu" / "site"
    path = [str(folder) for folder in (_ROOT, site) if folder.is_dir()]
    environment = {
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONFAULTHANDLER": "1",
    } | ({"CUDA_VISIBLE_DEVICES": ""} if given.cpu else {})
    head = describe_machine(path)
    print("\n".join(head), flush=True)
    report = out / "report.md"

    def changed(outcomes: Sequence[Outcome]) -> None:
        write_report(report, outcomes, head, cpu=given.cpu)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no check outlives this
    outcomes = run_checks(checks, out, 60 * given.minutes, environment, changed, cpu=given.cpu, jobs=jobs)
    changed(outcomes)
    print(report.read_text(encoding="utf-8"))
    failed = [o for o in outcomes if o.result != PASSED and not o.result.startswith(NOT_RUN)]
    left_out = [o for o in outcomes if o.result.startswith(NOT_RUN)]
    print(f"{len(outcomes) - len(failed) - len(left_out)} passed, {len(failed)} failed, {len(left_out)} not run")
    return 1 if failed else 3 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
