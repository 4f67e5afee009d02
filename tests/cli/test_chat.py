"""Command ``chat``: piped, as a user would test it."""

import io
import json
import re

import pytest
from cli_recipe import records, saved

from pact_lightning.cli.main import main

LIMITS = {"max_turns": 3, "max_new_tokens_per_turn": 120, "max_trajectory_tokens": 700, "rows": 4}


def chat(monkeypatch, capsys, text, *options):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    main(["chat", *options])
    return capsys.readouterr().out


def test_a_replayed_task_is_what_predict_makes_of_it(tmp_path, monkeypatch, capsys):
    recipe = saved(tmp_path, {"data.init_args.limits": LIMITS})
    main(["predict", "-c", recipe])
    files = sorted(tmp_path.rglob("*"))
    (record,) = records(tmp_path / "run" / "trajectories" / "predict.jsonl")
    shown = chat(monkeypatch, capsys, "", "-c", recipe, "--task", record["task_id"])
    assert sorted(tmp_path.rglob("*")) == files, "talking writes nothing"
    calls = [call["function"] for message in record["messages"] for call in message.get("tool_calls", [])]
    assert calls
    assert re.findall(r"^call: (\w+ .*)$", shown, re.MULTILINE) == [
        f"{call['name']} {json.dumps(json.loads(call['arguments']))}" for call in calls
    ]
    responses = [message["content"] for message in record["messages"] if message["role"] == "tool"]
    assert re.findall(r"^response(?:, which failed)?: (.*)$", shown, re.MULTILINE) == responses
    assert "the task's reference answer: " in shown


def hostile(place: str) -> str:
    """Return what a hostile page says.

    Args:
        place: Any place.
    """
    return f"\x1b[2J\x07{place}"


def test_lines_are_messages_and_tools_cannot_write_to_the_terminal(tmp_path, monkeypatch, capsys):
    tasks = tmp_path / "tasks.jsonl"
    environment = {
        "class_path": "pact_lightning.FunctionEnvironment",
        "init_args": {"functions": [f"{__name__}.hostile"]},
    }
    system, user = {"role": "system", "content": "Use tools."}, {"role": "user", "content": "Where?"}
    tasks.write_text(json.dumps({"id": "a", "messages": [system, user], "environment": environment}) + "\n")
    source = {"class_path": "pact_lightning.JsonlTasks", "init_args": {"path": str(tasks)}}
    recipe = saved(tmp_path, {"data.init_args.predict": source, "data.init_args.limits": LIMITS})
    asked = []

    def next_turn(renderer, ids):
        asked.append(renderer.codec.decode(ids))
        text = '<tool_call>\n{"name": "hostile", "arguments": {"place": "x"}}\n</tool_call>'
        text = text if len(asked) == 1 else f"\x1b]0;{len(asked)}"
        return [*renderer.codec.control(text), renderer.end_of_turn]

    scripted(monkeypatch, next_turn)
    shown = chat(monkeypatch, capsys, "Open it\n\n  \n/new\nAgain\x1b[1m\nbye", "-c", recipe)
    assert r"response: \x1b[2J\x07x" in shown
    assert r"you> Again\x1b[1m" in shown
    assert "\x1b" not in shown
    assert "Use tools." in asked[0]
    assert "Open it" in asked[0]
    assert "Where?" not in asked[0]
    assert "Use tools." in asked[2], "/new begins with the system prompt again"
    assert "Open it" not in asked[2]
    assert "bye" in asked[3]
    assert len(asked) == 4


def test_ctrl_c_leaves_as_the_end_of_the_input_does(tmp_path, monkeypatch, capsys):
    class Keys(io.StringIO):
        def readline(self, *size):
            if line := super().readline(*size):
                return line
            raise KeyboardInterrupt

    scripted(monkeypatch, lambda renderer, ids: [*renderer.codec.control("Hello."), renderer.end_of_turn])
    monkeypatch.setattr("sys.stdin", Keys("Hi\n"))
    main(["chat", "-c", saved(tmp_path)])
    assert "agent> Hello." in capsys.readouterr().out


def scripted(monkeypatch, next_turn):
    """A policy whose turns are made by a function of the renderer and the new tokens."""
    from contextlib import contextmanager

    from pact_lightning.rollout.samplers.base import TurnOutput
    from pact_lightning.training.policy_module import PolicyModule

    class Scripted:
        def __init__(self, renderer):
            self.renderer, self.ended = renderer, []

        def submit(self, requests):
            for request in requests:
                ids = next_turn(self.renderer, request.new_ids)
                self.ended.append(TurnOutput(request.row, ids, [0.0] * len(ids), True))

        def step(self):
            ended, self.ended = self.ended, []
            return ended

        def release(self, row):
            pass

    @contextmanager
    def sampler(module, sampling, prefill_tokens):
        yield Scripted(module.renderer)

    monkeypatch.setattr(PolicyModule, "sampler", sampler)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give the folder of a run, or a recipe with -c recipe.yaml"),
        (["nowhere"], "nowhere is not the folder of a fit: it has no config.yaml"),
        (["-c", "r.yaml", "--task", "a", "--tools_of", "b"], "leave --tools_of out"),
        (["-c", "{recipe}", "--task", "longest-0"], "the recipe's data has no task 'longest-0'; it has 'longer-0'"),
        (["-c", "{recipe}", "--ckpt_path", "last"], "there is no complete checkpoint in"),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path, capsys, options, said):
    recipe = saved(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["chat", *[option.format(recipe=recipe) for option in options]])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
