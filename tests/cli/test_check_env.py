"""The command ``check-env``: what it prints and how it ends."""

import pytest

from pact_lightning.cli.check_env import check_env, main
from pact_lightning.environments.protocol import ToolResult


class Odd:
    """An environment with a tool of an odd name."""

    tools = ({"type": "function", "function": {"name": "\x1b[2Jgo\ud83d", "description": "Goes.", "parameters": {}}},)

    def reset(self, task, seed):
        pass

    def call(self, name, arguments):
        return ToolResult("no", error=True)


class Ends(Odd):
    def __init__(self):
        raise SystemExit(0)


def test_what_a_terminal_would_obey_is_printed_as_its_escape(capsys):
    assert check_env(f"{__name__}.Odd") == 1
    printed = capsys.readouterr().out
    assert "\\x1b[2Jgo\\ud83d" in printed.replace("\n", "")
    assert "\x1b[2J" not in printed


def test_an_environment_that_cannot_be_made_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        main([f"{__name__}.Ends"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: the environment '{__name__}.Ends' cannot be created: SystemExit: 0\n"
