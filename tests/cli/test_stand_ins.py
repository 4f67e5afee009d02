"""What a command that only prints leaves out of Lightning's import, and that it prints the same without."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from pact_lightning.cli.stand_ins import only_prints, stand_ins

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = {
    "__init__.py": "print('slow is imported')\nSHOWN = 1\nHIDDEN = 2\n",
    "below.py": "DEEP = 3\n",
}


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A package that tells when it is imported."""
    (tmp_path / "slow").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "slow" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow"
    for name in [name for name in sys.modules if name.partition(".")[0] == "slow"]:
        del sys.modules[name]


def imported(capsys):
    return "slow is imported" in capsys.readouterr().out


def test_a_name_that_stands_in_imports_nothing_and_a_later_import_is_real(slow, capsys):
    with stand_ins({slow: {"SHOWN": "instead"}}):
        from slow import SHOWN

        assert importlib.util.find_spec("slow").origin.endswith("__init__.py")  # it is installed, to all who ask
    assert SHOWN == "instead"
    assert not imported(capsys)
    assert importlib.import_module("slow").SHOWN == 1
    assert imported(capsys)


def test_any_other_name_and_any_module_below_is_the_real_one(slow, capsys):
    with stand_ins({slow: {"SHOWN": "instead"}}):
        from slow import HIDDEN, SHOWN

        assert (HIDDEN, SHOWN) == (2, "instead")
        import slow as whole

        assert whole.HIDDEN == 2
    assert imported(capsys)


def test_a_module_below_is_part_of_the_real_package(slow, capsys):
    with stand_ins({slow: {"SHOWN": "instead"}}):
        import slow.below

        assert slow.below.DEEP == 3
    assert imported(capsys)
    assert sys.modules["slow"].below is sys.modules["slow.below"]


def test_what_is_loaded_or_not_installed_needs_no_stand_in(slow):
    real = importlib.import_module("slow")
    with stand_ins({slow: {"SHOWN": "instead"}, "not_installed": {"a": 1}, "not_installed.below": {"a": 1}}):
        assert sys.modules["slow"] is real
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("not_installed")


def test_nothing_stands_in_after_an_error(slow):
    with pytest.raises(ZeroDivisionError), stand_ins({slow: {}}):
        raise ZeroDivisionError
    assert importlib.import_module("slow").SHOWN == 1


def test_which_command_lines_only_print():
    assert only_prints(["fit", "-c", "a.yaml", "--print_config"])
    assert only_prints(["fit", "--print_config=skip_null"])
    assert only_prints(["validate", "-h"])
    assert not only_prints(["fit", "-c", "a.yaml", "--trainer.callbacks.help", "x"])  # the real classes, to be safe
    assert not only_prints(["fit", "-c", "print_config.yaml"])


PRINTED = """
import sys
from pact_lightning.cli.main import main

as_program = sys.argv.pop(1) == "as a program"
try:
    main(sys.argv[1:] if as_program else None)
except SystemExit as end:
    assert not end.code, end.code
slow = ("torch._dynamo", "scipy.signal", "transformers", "torch.distributed.fsdp")
slow += ("peft", "bitsandbytes", "datasets", "mcp", "openai")
print("loaded:", *[name for name in slow if name in sys.modules], file=sys.stderr)
if as_program:
    from lightning.fabric.wrappers import OptimizedModule
    assert OptimizedModule is sys.modules["torch._dynamo"].OptimizedModule
"""


def printed(way, arguments):
    command = [sys.executable, "-W", "ignore", "-c", PRINTED, way, *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return process.stdout, process.stderr.splitlines()[-1]


def assert_the_same(arguments):
    lean, whole = printed("as a command", arguments), printed("as a program", arguments)
    assert lean[0] == whole[0]
    assert len(lean[0]) > 2_000
    assert lean[1] == "loaded:"
    # A program may train afterwards, in the same process: Lightning has all its libraries there.
    assert "torch._dynamo" in whole[1]
    return lean[0]


def test_a_config_is_the_same_without_the_libraries():
    recipes = ["recipes/quickstart.yaml", "recipes/overlays/tensorboard.yaml"]
    assert "anchor_probability" in assert_the_same(["fit", "-c", recipes[0], "-c", recipes[1], "--print_config"])


RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_config_of_every_recipe_is_the_same(recipe):
    before = ["-c", "recipes/quickstart.yaml"] if "overlays" in recipe else []
    assert_the_same(["validate" if "validate" in recipe else "fit", *before, "-c", recipe, "--print_config"])


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_the_help_is_the_same(verb):
    assert_the_same([verb, "--help"])
