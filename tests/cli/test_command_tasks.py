"""``pact-lightning tasks``, as a user types it."""

import json

import pytest
from toolhop_rows import ROW as TOOLHOP_ROW

from pact_lightning.cli.main import main
from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.tasks.jsonl import JsonlTasks, write_jsonl
from pact_lightning.tasks.record import task_to_json
from pact_lightning.tasks.toolhop.tasks import ToolHopTasks

BUNDLED = "pact_lightning.BundledTasks"
TASKS = [make_task("train", index) for index in range(5)]
MATCHTIR_ROW = {
    "messages": [{"role": "user", "content": "Question: How long is the river at Vienna?"}],
    "tools": json.dumps(
        [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in ("river", "length")]
    ),
    "codes": json.dumps(
        {
            "river": "def river(city):\n    return {'Vienna': 'Danube'}[city]",
            "length": "def length(name):\n    return {'name': name, 'km': 2850}",
        }
    ),
    "unsolved_set": json.dumps({"river": ["Danube"], "length": ["2,850"]}),
    "solve_rate": 0.5,
    "data_source": "self/multi_hop",
    "split": "train",
    "answer": "2,850",
    "ground_truth": [
        {"name": "river", "parameters": {"city": "Vienna"}},
        {"name": "length", "parameters": {"name": "Danube"}},
    ],
}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; gives exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        status = 0
        try:
            main(["tasks", *map(str, arguments)])
        except SystemExit as stopped:
            status = stopped.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def lines(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")


def cells(output):
    """The rows of the tables shown."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in rows}


def test_matchtir_rows_become_tasks_with_replayed_traces(command, tmp_path):
    wrong = {**MATCHTIR_ROW, "ground_truth": [{"name": "river", "parameters": {"city": "Rome"}}]}
    short = {**MATCHTIR_ROW, "ground_truth": MATCHTIR_ROW["ground_truth"][:1]}
    broken = {**MATCHTIR_ROW, "codes": "{"}
    without = {key: value for key, value in MATCHTIR_ROW.items() if key != "ground_truth"}
    lines(tmp_path / "train.jsonl", MATCHTIR_ROW, wrong, short, broken, {**broken, "codes": "[]"}, "{", without)
    status, out, _ = command("import", "train.jsonl", "tasks.jsonl", "--format", "matchtir")
    assert status == 0
    table = cells(out)
    assert (table["read"][0], table["written"][0], table["traces made by replay"][0]) == ("7", "4", "1")
    assert table["left out for codes"][0] == "2"
    assert "train.jsonl, line 4: field `codes`: is not valid JSON" in table["left out for codes"][1]
    assert table["left out for (the line)"][0] == "1"
    assert table["without a trace: a reference call fails"] == ["1", "ftrl-1"]
    assert table["without a trace: the reference calls leave an expected answer open"] == ["1", "ftrl-2"]
    assert table["without a trace: no reference calls"] == ["1", "ftrl-6"]
    first, *others = JsonlTasks("tasks.jsonl").load()
    assert [task.trace for task in others] == [None] * 3
    assert [turn.responses for turn in first.trace.turns] == [("Danube",), ('{"name": "Danube", "km": 2850}',)]
    assert first.trace.final.answer == "<answer>2,850</answer>"
    assert first.reference.calls[1] == {"name": "length", "arguments": {"name": "Danube"}}
    status, out, _ = command("validate", "tasks.jsonl")
    assert (status, out) == (0, "tasks.jsonl: 4 tasks, no mistakes\n")


def test_import_of_other_formats_and_sources(command, tmp_path):
    (tmp_path / "ToolHop.json").write_text(json.dumps([TOOLHOP_ROW]))
    assert command("import", "ToolHop.json", "hop.jsonl.gz", "--format", "toolhop")[0] == 0
    assert JsonlTasks("hop.jsonl.gz").load() == ToolHopTasks("ToolHop.json").load()
    assert command("import", "own.jsonl", "--source", BUNDLED, "--source.count", "5", "--limit", "3")[0] == 0
    assert list(JsonlTasks("own.jsonl").load()) == TASKS[:3]
    assert command("import", "own.jsonl", "again.jsonl")[0] == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "own.jsonl").read_bytes()
    source = json.dumps({"class_path": BUNDLED, "init_args": {"count": 2}})
    assert command("import", "json.jsonl", "--source", source)[0] == 0
    assert list(JsonlTasks("json.jsonl").load()) == TASKS[:2]


def test_import_of_a_data_set_folder(command, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "test.jsonl", MATCHTIR_ROW)
    options = ("--format", "hub", "--rows", "ftrl", "--split", "test", "--replay", "true")
    assert command("import", "data", "tasks.jsonl", *options)[0] == 0
    (task,) = JsonlTasks("tasks.jsonl").load()
    assert (task.id, len(task.trace.turns)) == ("ftrl-0", 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("import", "out.jsonl"), "give what to read: a path and its --format, or a --source"),
        (("import", "none.jsonl", "out.jsonl"), "there is no file none.jsonl"),
        (("import", "bad.jsonl", "out.jsonl"), "none of 1 records became a task: bad.jsonl, line 1: is not valid JSON"),
        (("import", "good.jsonl", "bad.jsonl"), "bad.jsonl already exists"),
        (("import", "good.jsonl", "out.jsonl", "--split", "x"), "--split is not an option of the format jsonl"),
        (("import", "good.jsonl", "out.jsonl", "--format", "csv"), "csv"),
        (("validate",), "give the files to validate, or a --source"),
        (("validate", "none.jsonl"), "there is no file none.jsonl"),
        (("stats", "bad.jsonl"), "bad.jsonl, line 1: is not valid JSON"),
        (("stats", "good.jsonl", "--tokenizer", "/nowhere/at/all"), "there is no model folder /nowhere/at/all"),
        (("stats", "--source", "nowhere.Tasks"), "nowhere"),
    ],
)
def test_wrong_input_ends_in_one_sentence(command, tmp_path, arguments, sentence):
    lines(tmp_path / "bad.jsonl", "{")
    write_jsonl(tmp_path / "good.jsonl", TASKS[:1])
    status, _, err = command(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"], "nothing half written"


def test_validate_tells_every_mistake_of_every_file(command, tmp_path):
    records = [task_to_json(task) for task in TASKS]
    records[1]["kind"], records[1]["metadata"] = 1, 2
    records[2]["trace"]["turns"][0]["responses"][0] += "!"
    records[3]["trace"]["final"]["answer"] = "<answer>nonsense</answer>"
    records[4]["environment"]["init_args"] = {"split": "holiday", "index": 0}
    lines(tmp_path / "a.jsonl", *records, "{")
    write_jsonl(tmp_path / "b.jsonl", TASKS[:1])
    status, out, _ = command("validate", "a.jsonl", "b.jsonl")
    assert status == 1
    *told, last, other = out.splitlines()
    places = [line.split(": ")[:2] for line in told]
    assert places[:2] == [["a.jsonl, line 2", "field `kind`"], ["a.jsonl, line 2", "field `metadata`"]]
    assert ["a.jsonl, line 3", "field `trace.turns[0].responses[0]`"] in places
    assert ["a.jsonl, line 4", "field `trace.final.answer`"] in places
    assert ["a.jsonl, line 5", "field `environment.init_args`"] in places
    assert told[-1].startswith("a.jsonl, line 6: is not valid JSON")
    assert last == f"a.jsonl: 4 tasks, {len(told)} mistakes"
    assert other == "b.jsonl: 1 task, no mistakes"
    status, out, _ = command("validate", "a.jsonl", "--replay", "false")
    assert status == 1
    assert "responses[0]" not in out
    assert command("validate", "b.jsonl")[0] == 0


def test_validate_reads_other_formats_and_sources(command, tmp_path):
    lines(tmp_path / "rows.jsonl", MATCHTIR_ROW, {**MATCHTIR_ROW, "answer": 1}, {**MATCHTIR_ROW, "tools": "x"})
    status, out, _ = command("validate", "rows.jsonl", "--format", "matchtir")
    assert status == 1
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        "rows.jsonl, line 2",
        "rows.jsonl, line 3",
        "rows.jsonl",
    ]
    (tmp_path / "ToolHop.json").write_text("[{]")
    status, out, _ = command("validate", "ToolHop.json", "--format", "toolhop")
    assert (status, len(out.splitlines())) == (1, 2)
    status, out, _ = command("validate", "--source", BUNDLED, "--source.count", "2")
    assert (status, out) == (0, "BundledTasks: 2 tasks, no mistakes\n")


def test_stats_counts_what_training_would_see(command, tmp_path):
    write_jsonl(tmp_path / "tasks.jsonl", TASKS)
    renderer = ChatRenderer(TextCodec(load_tokenizer(PolicyConfig(model="bundled"))))
    lengths = sorted(len(renderer.prompt(task.prompt.messages, task.prompt.tools)) for task in TASKS)
    limit = lengths[2]
    status, out, _ = command("stats", "tasks.jsonl", "--max_prompt_tokens", limit, "--json", "deep/stats.json")
    assert status == 0
    figures = json.loads((tmp_path / "deep" / "stats.json").read_text())
    prompt = figures["prompt_tokens"]
    assert (prompt["min"], prompt["median"], prompt["max"]) == (lengths[0], lengths[2], lengths[4])
    assert prompt["p90"] == pytest.approx(lengths[3] + 0.6 * (lengths[4] - lengths[3]))
    assert figures["left_out"] == {"max_prompt_tokens": limit, "tasks": 2}
    assert figures["traces"]["tasks"] == figures["references"]["answer"] == figures["tasks"] == 5
    assert figures["traces"]["turns"]["max"] == max(len(task.trace.turns) for task in TASKS)
    assert sum(figures["kinds"].values()) == 5
    table = cells(out)
    assert table["prompt, tokens"][0] == str(lengths[0])
    assert table[f"left out by max_prompt_tokens {limit}"] == ["2"]
    status, out, _ = command("stats", "--source", BUNDLED, "--source.count", "5")
    assert status == 0
    assert cells(out)["prompt, tokens"] == table["prompt, tokens"]


@pytest.mark.parametrize("subcommand", ["import", "validate", "stats"])
@pytest.mark.parametrize(
    ("name", "row", "format_", "field"),
    [
        ("rows.jsonl", MATCHTIR_ROW, "matchtir", "codes"),
        ("rows.jsonl", {k: v for k, v in MATCHTIR_ROW.items() if k != "ground_truth"}, "ftrl", "codes"),
        ("rows.jsonl", {"messages": [], "unsolved_set": "{}"}, "ftrl", "unsolved_set"),
        ("rows.json", [TOOLHOP_ROW], "toolhop", "sub_task"),
    ],
)
def test_rows_of_another_format_are_told_by_its_name(command, tmp_path, subcommand, name, row, format_, field):
    lines(tmp_path / name, row)
    status, out, err = command(subcommand, name, *(["tasks.jsonl"] if subcommand == "import" else []))
    assert status == (1 if subcommand == "validate" else 2)
    sentence = f"{name}, line 1: field `{field}`: is a field of another format; add --format {format_}"
    assert sentence in out + err
    assert not (tmp_path / "tasks.jsonl").exists()


def test_lengths_under_the_bundled_tokenizer_are_said_to_be_such(command, tmp_path):
    write_jsonl(tmp_path / "tasks.jsonl", TASKS)
    _, out, _ = command("stats", "tasks.jsonl")
    assert "For your model's, add --tokenizer FOLDER_OR_HUB_ID." in " ".join(out.split())


class Greeting:
    """A class in TRL's style."""

    def reset(self, **row):
        return None

    def greet(self, name: str) -> str:
        """Greet somebody.

        Args:
            name: Whom.
        """
        return f"Hello {name}"


@pytest.mark.parametrize(
    "source",
    [
        ("--source", "pact_lightning.TRLRowTasks", "--source.class_path", f"{__name__}.Greeting"),
        ("--source=pact_lightning.TRLRowTasks", f"--source.init_args.class_path={__name__}.Greeting"),
        ("--source.class_path", "pact_lightning.TRLRowTasks", "--source.init_args.class_path", f"{__name__}.Greeting"),
    ],
)
def test_a_source_may_have_a_class_path_of_its_own(command, tmp_path, source):
    lines(tmp_path / "rows.jsonl", {"prompt": "Greet Ann."}, {"prompt": "Greet Bob."})
    options = (*source, "--source.rows", "rows.jsonl", "--source.name", "greeting")
    status, _, err = command("import", "out.jsonl", *options, "--limit", "1")
    assert (status, err) == (0, "")
    (task,) = JsonlTasks("out.jsonl").load()
    assert task.id == "greeting-0"
    assert task.prompt.environment.init_args["class_path"] == f"{__name__}.Greeting"
    assert command("validate", *options)[:2] == (0, "TRLRowTasks: 2 tasks, no mistakes\n")


class Unhinted:
    """A source without type hints, that yields its tasks."""

    def load(self):
        yield from TASKS[:2]


def test_a_source_needs_no_type_hints(command):
    status, out, _ = command("validate", "--source", f"{__name__}.Unhinted")
    assert (status, out) == (0, "Unhinted: 2 tasks, no mistakes\n")
