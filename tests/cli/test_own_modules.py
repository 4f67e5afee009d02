"""Modules beside the user's files: found where a command loads them, and never in place of others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.record import task_to_json

ENVIRONMENT = """
class Env:
    tools = ()
    def reset(self, task, seed): ...
    def call(self, name, arguments): ...
"""
PACKAGE = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "start", [["-m", "pact_lightning.cli.main"], ["-c", "from pact_lightning.cli.main import main; main()"]]
)
def test_no_module_beside_a_task_file_replaces_another(tmp_path, start):
    for name in ("rich", "yaml", "numpy", "jsonargparse", "pydantic", "secrets"):
        (tmp_path / f"{name}.py").write_text(f"open('loaded', 'w').write('{name}')\n")
    (tmp_path / "own_env.py").write_text(ENVIRONMENT + "open('own', 'w')\n")
    record = {**task_to_json(make_task("train", 1)), "environment": {"class_path": "own_env.Env"}}
    del record["trace"]
    (tmp_path / "tasks.jsonl").write_text(json.dumps(record))

    def run(*arguments):
        command = [sys.executable, "-P" if start[0] == "-c" else "-B", *start, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("tasks", "stats", "tasks.jsonl", "--environments", "true")
    assert not (tmp_path / "own").exists()
    assert run("tasks", "validate", "tasks.jsonl") == "tasks.jsonl: 1 task, no mistakes\n"
    assert (tmp_path / "own").exists()
    assert not (tmp_path / "loaded").exists()
