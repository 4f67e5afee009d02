"""docs/teacher.md, as a reader follows it, with a local server in the place of theirs."""

import re
import shlex
from pathlib import Path

from annotations import answer, chunk
from scripted_server import ScriptedServer, chat, expert

from pact_lightning.commands.run import run
from pact_lightning.commands.traces_generate import generate
from pact_lightning.environments.bundled.tasks import make_task
from pact_lightning.tasks.jsonl import JsonlTasks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "teacher.md"
SERVER = "http://127.0.0.1:8000/v1"
COMMAND = ["pact-lightning", "traces", "generate"]
_BLOCK = re.compile(
    r"^<!-- (run|with a server|file: (?P<name>[\w.]+)) -->\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)


def teacher_and_annotator(request, number):
    """The expert for the teacher's requests; one chunk per paragraph for the annotator's."""
    if request["model"] == "qwen3-32b":
        return expert([make_task("train", index) for index in range(20)])(request, number)
    count = len(re.findall(r"^\[\d+\]", request["messages"][1]["content"], re.M))
    return chat(answer(*(chunk("other", number) for number in range(1, count + 1))))


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_KEY", "sk-1")
    commands = 0
    with ScriptedServer(teacher_and_annotator) as server:
        for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
            text = block["text"].replace(SERVER, server.url)
            if block["name"]:
                Path(block["name"]).write_text(text, encoding="utf-8")
            elif block["kind"] == "python":
                exec(compile(text, str(PAGE), "exec"), {})
            else:
                words = shlex.split(text)
                assert words[:3] == COMMAND
                run({"generate": generate}, "pact-lightning traces", words[2:])
                commands += 1
    assert commands == 3
    for name, kinds in (("traced", {"task_restate"}), ("priced", {"task_restate"}), ("annotated", {"other"})):
        traces = [task.trace for task in JsonlTasks(f"{name}.jsonl").load()]
        assert len(traces) == 20
        assert kinds & {piece.type.value for trace in traces for piece in trace.turns[0].chunks}
    annotated = [turn for task in JsonlTasks("annotated.jsonl").load() for turn in task.trace.turns]
    assert {piece.type.value for turn in annotated for piece in turn.chunks} == {"other"}
    assert "annotator: annotated" in capsys.readouterr().out


def test_every_field_of_the_files_has_a_comment():
    for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        if block["name"]:
            bare = [line for line in block["text"].splitlines() if not line.endswith(":") and " # " not in line]
            assert bare == []
