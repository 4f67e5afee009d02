"""The check on a card: what fails, crashes or hangs is told and the others go on; without any package but Python's."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from benchmarks.check_gpu import child
from benchmarks.check_gpu.checks import CHECKS, Check
from benchmarks.check_gpu.report import NOT_RUN, write_report
from benchmarks.check_gpu.runner import first_error, run_checks

ROOT = Path(__file__).resolve().parents[2]
PROBES = {
    "fine": "def run(figures):\n    figures.note('answer', 42)\n",
    "wrong": "def run(figures):\n    figures.note('before', 1)\n    raise ValueError('seven is\\nno answer')\n",
    "lacking": "import not_there_at_all\n",
    "crashing": "import os, signal\ndef run(figures):\n    os.kill(os.getpid(), signal.SIGSEGV)\n",
    "parts": (
        "def run(figures):\n"
        "    with figures.part('one'):\n        raise RuntimeError('one is off')\n"
        "    with figures.part('two'):\n        figures.note('two', 2)\n"
    ),
    "hanging": (
        "import subprocess, sys, time\nfrom pathlib import Path\ndef run(figures):\n"
        "    helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    figures.note('helper', helper.pid)\n    print('half way', flush=True)\n    time.sleep(60)\n"
    ),
    "nothing": "def run(figures):\n    figures.leave_out('there is no file')\n",
    "late": "def run(figures):\n    pass\n",
}
FEW = """
import pytest
@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_of_the_card(number): ...
def test_of_the_cpu(): assert False
"""


@pytest.fixture
def outcomes(tmp_path, monkeypatch):
    """Checks of a copy of the folder that does nothing but what it is told to; the real runner and processes."""
    copy = tmp_path / "benchmarks"
    (copy / "check_gpu").mkdir(parents=True)
    for file in ("__init__.py", *(f"check_gpu/{name}.py" for name in ("__init__", "child"))):
        (copy / file).write_text((ROOT / "benchmarks" / file).read_text())
    checks = []
    for name, code in PROBES.items():
        (copy / "check_gpu" / f"{name}_probe.py").write_text(code)
        limit = 6 if name == "hanging" else 60
        seconds = 10**6 if name == "late" else 1
        checks.append(Check(name, "a probe", seconds, limit, "nothing", module=f"{name}_probe"))
    file = tmp_path / "few" / "test_few.py"
    file.parent.mkdir()
    (file.parent / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a card\n")
    (file.parent / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--slow', action='store_true')\n"
    )
    file.write_text(FEW)
    checks.append(Check("few", "a probe", 1, 60, "nothing", tests=(str(file),)))
    entries = "".join(f"    Check({check.name!r}, {check.module!r}, {check.tests!r}),\n" for check in checks)
    listed = (
        "from dataclasses import dataclass\n@dataclass\nclass Check:\n"
        "    name: str\n    module: str\n    tests: tuple = ()\n    argument: str = ''\n"
        f"CHECKS = [\n{entries}]\n"
    )
    (copy / "check_gpu" / "checks.py").write_text(listed)
    reports = []

    def changed(found):
        write_report(tmp_path / "report.md", found, ["- head"], cpu=False)
        reports.append((tmp_path / "report.md").read_text())

    monkeypatch.chdir(tmp_path)  # where `python -m` looks first
    given = {"PYTHONPATH": str(tmp_path)}
    found = run_checks(checks, tmp_path, 120, given, changed, cpu=False, jobs=3)
    return {outcome.check.name: outcome for outcome in found}, reports


def test_what_fails_crashes_or_hangs_is_told_and_the_others_go_on(outcomes):
    found, reports = outcomes
    results = {name: outcome.result for name, outcome in found.items()}
    assert results["fine"] == "pass"
    assert found["fine"].figures == {"answer": 42}
    assert results["wrong"] == "fail: ValueError: seven is"
    assert found["wrong"].figures == {"before": 1}, "what was measured before is kept"
    assert results["lacking"] == "fail: ModuleNotFoundError: No module named 'not_there_at_all'"
    assert results["crashing"].startswith("fail: killed by SIGSEGV")
    assert results["parts"] == "fail: RuntimeError: one is off"
    assert found["parts"].figures == {"one: failed": "RuntimeError: one is off", "two": 2}
    assert results["hanging"].startswith("fail: over its limit of 6 s")
    assert results["nothing"] == f"{NOT_RUN}: there is no file", "what was not tried has not passed"
    assert results["few"] == "pass"
    assert found["few"].figures == {"tests passed": 2}, "those of the device"
    assert results["late"].startswith(f"{NOT_RUN}: ")
    helper = Path(f"/proc/{found['hanging'].figures['helper']}")
    assert not helper.exists() or "zombie" in (helper / "status").read_text(), "its helpers end with it"
    assert any("| fine | running |" in report for report in reports)
    assert "| wrong | fail: ValueError: seven is |" in reports[-1]
    assert "- answer: 42" in reports[-1]


def test_the_first_error_of_a_run_of_tests_is_found(tmp_path):
    log = tmp_path / "log"
    log.write_text("collected\nE   AssertionError: nearly\nE   assert 1 == 2\nFAILED tests/x.py\n")
    assert first_error(log, 1) == "AssertionError: nearly"
    log.write_text("nothing of the kind\n\n")
    assert first_error(log, 7) == "exit status 7; nothing of the kind"


def test_the_command_needs_python_alone(tmp_path):
    """What is missing on a machine fails the checks that need it, in a report; nothing is installed."""
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-m", "benchmarks.check_gpu", "--cpu", "--only", "machine,sampler", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| machine | fail: ModuleNotFoundError: No module named 'torch' |" in report
    assert "| sampler | fail: ModuleNotFoundError: No module named 'pytest' |" in report
    assert "- not shown on a CPU: CUDA's kernels for cached attention" in report


@pytest.mark.slow
def test_the_sampler_check_passes_on_a_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.check_gpu", "--cpu", "--only", "sampler", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    report = (tmp_path / "report.md").read_text()
    assert done.returncode == 0, report
    assert "| sampler | pass |" in report
    assert "- tests passed: 5" in report


def test_a_check_that_does_not_exist_is_refused():
    command = [sys.executable, "-m", "benchmarks.check_gpu", "--only", "machine,graph"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "there is no check 'graph'; there are machine, gradients," in done.stderr


def test_every_check_has_its_program_and_fits_the_seven_minutes_by_itself():
    for check in CHECKS:
        assert all((ROOT / path).is_file() for path in check.tests)
        assert bool(check.tests) != bool(check.module)
        assert not check.module or (Path(child.__file__).parent / f"{check.module}.py").is_file()
        assert check.seconds <= check.limit <= 420
    side_by_side = [check.seconds for check in CHECKS if not check.alone]
    assert CHECKS[-1].name == "vllm_nf4"  # takes what is left of the time, where vLLM is installed
    assert sum(check.seconds for check in CHECKS[:-1] if check.alone) + max(side_by_side) + sum(side_by_side) / 4 <= 420
