"""What the command imports before it answers: people look at help and config often, and these should be quick."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
_PROGRAM = """
import sys
from pact_lightning.cli.main import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *sorted({names} & sys.modules.keys()))
"""


def loaded(arguments, *names):
    """Which of the modules a command has imported when it ends."""
    program = _PROGRAM.format(arguments=arguments, names=set(names))
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout, set(process.stdout.splitlines()[-1].split()[1:])


def test_the_help_needs_none_of_the_large_libraries():
    text, modules = loaded(["--help"], "torch", "lightning", "transformers", "jsonargparse", "torchmetrics")
    assert modules == set()
    for command in ("fit", "validate", "test", "predict", "tasks", "traces", "check-env"):
        assert f"    {command}" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks", "--help"], "{import,validate,stats}"),
        (["tasks", "import", "--help"], "--reference_calls"),
        (["traces", "--help"], "{build,verify,segment,show,generate}"),
        (["traces", "build", "--help"], "--trust_teacher"),
        (["check-env", "--help"], "--init_args"),
        (["plan", "--help"], "--sampled-share"),
        (["export", "--help"], "--to {merged,adapter,gguf}"),
        (["view", "--help"], "--port"),
    ],
    ids=str,
)
def test_the_other_commands_answer_without_the_large_libraries(arguments, said):
    text, modules = loaded(arguments, "torch", "lightning", "transformers", "torchmetrics", "scipy", "openai", "mcp")
    assert said in text
    assert modules == set()


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["-h"], 0)])
def test_without_a_command_the_help_is_shown(arguments, status, capsys):
    from pact_lightning.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == status
    shown = capsys.readouterr()
    assert "COMMAND" in (shown.err if status else shown.out)
