"""docs/teacher.md, as a reader follows it, with a local server in the place of theirs."""

import re
import shlex
from pathlib import Path

from annotations import answer, chunk
from scripted_server import ScriptedServer, chat, expert

from pact_lightning.cli.errors import run
from pact_lightning.cli.traces_generate import generate
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.jsonl import JsonlTasks
from pact_lightning.teacher.turn import teacher_messages
from pact_lightning.traces.segmentation import paragraphs, segment_reasoning
from pact_lightning.types.trace import ChunkType

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "teacher.md"
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


def traces_of(path):
    tasks = JsonlTasks(path).load()
    assert len(tasks) == 20
    return [turn for task in tasks for turn in task.trace.turns]


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
    by_rule, priced, annotated = (traces_of(f"{name}.jsonl") for name in ("traced", "priced", "annotated"))
    assert by_rule == priced
    assert [turn.reasoning for turn in annotated] == [turn.reasoning for turn in by_rule]
    assert [turn.chunks for turn in by_rule] == [segment_reasoning(turn.reasoning, turn.calls) for turn in by_rule]
    assert all(piece.type is ChunkType.OTHER for turn in annotated for piece in turn.chunks)
    assert [len(turn.chunks) for turn in annotated] == [len(paragraphs(turn.reasoning)) for turn in annotated]
    assert "annotator: annotated" in capsys.readouterr().out


def test_every_field_of_the_files_has_a_comment():
    for block in _BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        if block["name"]:
            bare = [line for line in block["text"].splitlines() if not line.endswith(":") and " # " not in line]
            assert bare == []


def test_the_request_is_shown_as_it_is_sent():
    shown = re.search(r"^<!-- asked -->\n```text\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)[1]
    task = make_task("train", 0)
    question = task.prompt.messages[-1]["content"]
    sent = teacher_messages(task, "native")[-1]["content"]
    assert shown.replace("{the task's last user message}", question).split() == sent.split()
