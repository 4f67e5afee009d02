"""Content of the report: what is read of a run's files, and what is not run of them."""

import json
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import (
    HOSTILE,
    config,
    expert,
    make_hostile_run,
    make_run,
    privilege,
    scored,
    training,
    write,
    write_phase,
)

from pact_lightning.compare.runs import read_runs
from pact_lightning.compare.tables import report
from pact_lightning.report import content as content_module
from pact_lightning.report.charts import charts_of, read_columns, thinned
from pact_lightning.report.content import Reader
from pact_lightning.report.experts import expert_json
from pact_lightning.report.heat import read_heat
from pact_lightning.report.page import page
from pact_lightning.report.rollouts import MAX_TEXT, allot, cut
from pact_lightning.report.setup import differences, facts_of
from pact_lightning.tasks.bundled.tasks import BundledTasks, make_task
from pact_lightning.tasks.jsonl import write_jsonl
from pact_lightning.traces.levels import prefix_ends


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def content(run):
    return Reader([str(run)]).read()


def row_of(content, file, task, sample=0):
    rows = content.index["rollouts"]
    return next(row for row in rows if (row["file"], row["task"], row["sample"]) == (file, task, sample))


def test_rows_of_training_and_of_evaluations(content):
    rows = content.index["rollouts"]
    assert [row["file"] for row in rows[::4]] == [
        "validation-0000", "phase-0000", "phase-0000", "phase-0001", "phase-0001", "validation-0002",
    ]  # fmt: skip
    trained = row_of(content, "phase-0001", "train-0", 1)
    wanted = {"phase": 1, "solved": True, "reward": 2.0, "advantages": [0.5, 1.25], "tools": ["population_of"]}
    wanted |= {"set": "phase-0001", "line": 2, "stop": "answered", "turns": 2, "calls": 1, "errors": 0, "tokens": 61}
    assert wanted.items() <= trained.items()
    failed = row_of(content, "validation-0002", "validation-3")
    assert (failed["solved"], failed["errors"], failed["reward"]) == (False, 1, None)
    assert failed["scores"] == {"answer_correct": 0.0, "solve_f1": 0.5, "calls": 1.0}


def test_a_body_holds_the_conversation_turn_by_turn(content):
    row = row_of(content, "phase-0000", "train-1")
    body = content.blocks[row["block"]].value[row["at"]]
    assert [message["role"] for message in body["prompt"]] == ["system", "user"]
    first, last = body["turns"]
    assert first["calls"] == [{"name": "population_of", "arguments": '{"place": "Porna", "year": 1950}'}]
    assert first["responses"] == [{"of": 0, "error": True, "text": '{"population": 8053}'}]
    assert (last["reasoning"], last["text"], last["calls"]) == ("Done.", "<answer>8053</answer>", [])


def test_tokens_of_the_privilege_gap_are_with_their_rollout_alone(content):
    assert [row["file"] + row["task"] for row in content.index["rollouts"] if row["heat"]] == ["phase-0000train-0"]
    row = row_of(content, "phase-0000", "train-0")
    assert content.blocks[row["block"]].value[row["at"]]["heat"] == {
        "texts": ["Look", "ing ", "<call>", "8053"],
        "components": ["reasoning", "reasoning", "tool_call", "answer"],
        "turns": [0, 0, 0, 1],
        "gap": [0.25, -2.0, 0.0, 1.5],
        "logp": [-0.5, -1.0, -0.25, -2.0],
    }


def test_scores_are_those_of_compare(content, run):
    (table,) = [table for table in content.index["scores"] if table["metric"] == "answer_correct"]
    (row,) = table["rows"]
    assert (row["before"][0], row["after"][0], row["change"][0], row["tasks"]) == (0.0, 0.5, 0.5, 4)
    text = report(read_runs([str(run)]), "answer_correct", str(run))
    mean, low, high = (100 * value for value in row["after"])
    assert f"{mean:.1f}% [{low:.1f}%, {high:.1f}%]" in text
    (success,) = [chart for chart in content.index["charts"] if chart["key"].startswith("success")]
    assert [point[:2] for point in success["series"][0]["points"]] == [[0, 0.0], [4, 0.5]]
    assert content.index["runs"][0]["score"]["after"] == row["after"]


def test_curves_count_steps_or_phases(content):
    charts = {chart["key"]: chart for chart in content.index["charts"]}
    loss = {line["label"]: line["points"] for line in charts["loss"]["series"]}
    assert loss["loss"] == [[0, 1.5], [1, 1.25], [2, 1.0]], "a number that is not finite is left out"
    assert len(loss["SFT"]) == 4
    assert charts["reward"]["series"][0]["points"] == [[0, 1.5], [1, 2.5]]
    assert charts["solve"]["series"][0]["points"] == [[0, 0.25], [4, 0.75]]
    assert (charts["loss"]["axis"], charts["reward"]["axis"]) == ("optimiser step", "phase")
    assert content.index["runs"][0]["levels"] == {"0": 4.0, "1": 2.0}


def test_a_column_that_no_chart_names_has_one_of_its_own():
    charts = charts_of([{"mine/own": [(0.0, 1.0)], "train/loss": [(0.0, 1.0)]}, {"mine/own": [(0.0, 2.0)]}])
    assert [(chart["key"], chart["further"], len(chart["series"])) for chart in charts] == [
        ("loss", False, 1), ("mine/own", True, 2),
    ]  # fmt: skip


def test_a_long_curve_keeps_its_mean():
    points = [(float(step), float(step % 7)) for step in range(10_001)]
    short = thinned(points)
    assert len(short) <= 500
    assert short[0][0] < short[-1][0] <= 10_000
    assert 2.9 < sum(value for _, value in short) / len(short) < 3.1


def test_expert_traces_come_from_the_recipe_and_say_their_levels(content):
    run = content.index["runs"][0]
    assert run["traced"] == sorted(f"{split}-{n}" for split in ("train", "validation") for n in range(4))
    shown = content.blocks[run["experts"]].value["train-2"]
    trace, reference = expert("train", 2), make_task("train", 2).reference
    assert shown == json.loads(json.dumps(expert_json(trace))) | {"answer": reference.answer, "calls": shown["calls"]}
    assert [call["name"] for call in shown["calls"]] == [call["name"] for call in reference.calls]
    for turn, expected in zip(shown["turns"], trace.turns, strict=False):
        reached = [chunk["text"] for chunk in turn["chunks"] if chunk["level"] is not None and chunk["level"] <= 2]
        assert "".join(reached) == expected.reasoning[: prefix_ends(expected.chunks, expected.calls)[2]]


def test_traces_of_a_task_file_are_read_and_nothing_that_it_names_is_imported(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    tasks = [*BundledTasks("train", 2).load(), *BundledTasks("validation", 1).load()]
    write_jsonl(tmp_path / "tasks.jsonl", tasks)
    lines = [json.loads(line) for line in (tmp_path / "tasks.jsonl").read_text().splitlines()]
    for line in lines:
        line["environment"] = {"class_path": "trap.Trap", "init_args": {}}
    del lines[1]["tools"]
    write(tmp_path / "tasks.jsonl", lines)
    (tmp_path / "trap.py").write_text("import pathlib\npathlib.Path('was here').mkdir()\n")
    source = {"class_path": "pact_lightning.JsonlTasks", "init_args": {"path": str(tmp_path / "tasks.jsonl")}}
    mine = {"class_path": "trap.Trap", "init_args": {}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"train": source, "validation": mine}}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    facts = Reader([str(run)]).read().index["runs"][0]
    assert facts["traced"] == ["train-0", "validation-0"], "train-1 leaves its tools to its environment"
    assert [note for note in facts["notes"] if "trap.Trap" in note and "--tasks" in note]
    assert "trap" not in sys.modules
    assert not (tmp_path / "was here").exists()


def test_tasks_that_are_named_stand_before_the_recipe(run):
    reader = Reader([str(run)], tasks=BundledTasks("train", 2).load())
    assert reader.read().index["runs"][0]["traced"] == ["train-0", "train-1"]


def test_what_cannot_be_read_is_told_and_the_rest_is_there(tmp_path):
    content = Reader([str(make_hostile_run(tmp_path / "run"))]).read()
    (facts,) = content.index["runs"]
    assert facts["shown"] == len(HOSTILE)
    assert facts["count"] == len(HOSTILE) + 2
    assert any("line 9: holds half of a character" in note for note in facts["notes"])
    assert any("line 10: is not valid JSON" in note for note in facts["notes"])
    assert content.index["charts"], "the last row of metrics.csv is cut off, the others are whole"


def test_damaged_evaluations_keep_the_scores_of_their_whole_lines(tmp_path):
    run = make_run(tmp_path)
    with (run / "trajectories" / "validation-0002.jsonl").open("a") as file:
        file.write('{"task_id": "validati')
    index = Reader([str(run)]).read().index
    assert index["runs"][0]["score"]["after"][0] == 0.5
    with pytest.raises(ValueError, match="line 5: is not valid JSON"):
        read_runs([str(run)])


def test_evaluations_without_scores_and_broken_metrics_leave_the_trajectories(tmp_path):
    run = make_run(tmp_path)
    write(run / "trajectories" / "validation-0000.jsonl", [training("validation-0", 0, 0)])
    (run / "metrics.csv").write_bytes(b"step,train/loss\r\n0,\xff\xfe\r\n")
    (run / "config.yaml").write_text("data: [")
    facts = Reader([str(run)]).read().index["runs"][0]
    assert facts["shown"] == 1 + 16 + 4
    told = " ".join(facts["notes"])
    assert "have no scores" in told
    assert "metrics.csv cannot be read" in told
    assert "config.yaml cannot be read" in told


def test_a_page_of_hostile_text_holds_it_compressed_only(tmp_path):
    run = make_hostile_run(tmp_path / "run")
    text = page("<b>", "now", Reader([f"<i>={run}"]).read())
    assert "window.taken" not in text
    assert "<title>&lt;b&gt; - pact-lightning</title>" in text
    assert "&lt;i&gt;" in text
    assert "<i>" not in text


def test_long_texts_lose_their_middle_and_say_how_much():
    text = "a" * MAX_TEXT + "b" * 500
    short = cut(text)
    assert short.startswith("a" * 1000)
    assert short.endswith("b" * 500)
    assert "[... 500 characters are left out here" in short
    assert cut("a" * MAX_TEXT) == "a" * MAX_TEXT


def test_places_are_shared_and_tasks_stay_whole(tmp_path):
    assert allot([3, 0, 9, 9], 12) == [3, 0, 4, 5]
    assert allot([3, 2], 100) == [3, 2]
    run = make_run(tmp_path, tasks=8, samples=4)
    content = Reader([str(run)], most=40).read()
    facts = content.index["runs"][0]
    assert facts["count"] == 2 * 8 + 2 * 8 * 4
    assert 40 <= facts["shown"] < 40 + 2 * 4
    whole = {}
    for row in content.index["rollouts"]:
        whole[row["file"], row["task"]] = whole.get((row["file"], row["task"]), 0) + 1
    assert {count for (file, _), count in whole.items() if file.startswith("phase")} == {4}
    assert content.index["runs"][0]["score"]["tasks"] == 8, "scores are of all tasks"


def test_a_run_that_goes_on_is_read_where_it_changed(tmp_path, monkeypatch):
    run = make_run(tmp_path, phases=1)
    reader = Reader([str(run)])
    first = reader.read()
    assert reader.read() is first
    read, real = [], content_module.read_file
    monkeypatch.setattr(content_module, "read_file", lambda path, most: read.append(path.name) or real(path, most))
    write_phase(run, 1)
    second = reader.read()
    assert read == ["phase-0001.jsonl"]
    assert second.version != first.version
    assert len(second.index["rollouts"]) == len(first.index["rollouts"]) + 8
    same = set(first.blocks) & set(second.blocks)
    assert any(key.startswith("0-phase-0000") for key in same), "what has not changed keeps its name"


def test_a_run_in_its_first_phase_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    index = Reader([str(tmp_path)]).read().index
    assert (index["rollouts"], index["charts"], index["runs"][0]["score"]) == ([], [], None)


def test_files_of_several_processes_are_one_phase(tmp_path):
    for rank in range(2):
        write(tmp_path / "trajectories" / f"phase-0000-rank{rank}.jsonl", [training("a", rank, 0)])
        write(tmp_path / "trajectories" / f"validation-0001-rank{rank}.jsonl", [scored(f"v{rank}", rank, step=2)])
    content = Reader([str(tmp_path)]).read()
    assert [row["set"] for row in content.index["rollouts"]] == ["phase-0000"] * 2 + ["validation-0001"] * 2
    assert len({(row["file"], row["line"]) for row in content.index["rollouts"]}) == 4
    assert content.index["runs"][0]["score"]["tasks"] == 2


def test_several_runs_share_charts_and_are_compared(tmp_path):
    first, second = make_run(tmp_path / "a", gain=1), make_run(tmp_path / "b", gain=3)
    index = Reader([f"pact={first}", f"grpo={second}"]).read().index
    assert {line["run"] for line in index["charts"][0]["series"]} == {0, 1}
    (table,) = [table for table in index["scores"] if table["metric"] == "answer_correct"]
    assert {row["method"]: row["difference"] and row["difference"][0] for row in table["rows"]} == {
        "pact": None,
        "grpo": 0.5,
    }
    assert [run["score"]["after"][0] for run in index["runs"]] == [0.25, 0.75]


def test_recipes_are_compared_without_secrets_and_folders():
    base = {"model": {"lr": 1.0, "api_key": "one", "seed": 3}, "trainer": {"logger": {"save_dir": "x"}}}
    other = {"model": {"lr": 2.0, "api_key": "two", "seed": 3}, "trainer": {"logger": {"save_dir": "y"}}}
    assert differences([base, other]) == [["model.api_key", "(not shown)", "(not shown)"], ["model.lr", "1.0", "2.0"]]
    assert facts_of(config())[:2] == [["model", "bundled"], ["adapter", "lora"]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1e300, 1e300) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
PLACES = [
    ("task_id",), ("sample",), ("phase",), ("kind",), ("stop_reason",), ("messages",), ("tokens",), ("turn_rewards",),
    ("turn_advantages",), ("scores",), ("solved",), ("temperature",), ("step",), ("messages", 1),
    ("messages", 2, "content"), ("messages", 2, "reasoning_content"), ("messages", 2, "tool_calls"),
    ("messages", 2, "tool_calls", 0), ("messages", 2, "tool_calls", 0, "id"),
    ("messages", 2, "tool_calls", 0, "function"), ("messages", 2, "tool_calls", 0, "function", "arguments"),
    ("messages", 3, "tool_call_id"), ("messages", 3, "error"), ("scores", "answer_correct"), (),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["sample", "texts", "components", "turns", "logp_prompt", "logp_trace"]), value=JSON)
def test_any_tokens_are_shown_or_told(tmp_path_factory, name, value):
    path = tmp_path_factory.mktemp("heat") / "trajectories" / "privilege-0000.jsonl"
    write(path, [{**privilege("a", 0), name: value}, privilege("b", 1)])
    found, problems = read_heat(path)
    assert ("phase-0000", "b", 1) in found
    assert len(found) + len(problems) == 2
    json.dumps(list(found.values()), allow_nan=False)


@pytest.fixture(scope="module")
def spoilt_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("spoilt"))


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    place=st.sampled_from(PLACES), value=JSON, kind=st.sampled_from(["phase-0001", "validation-0002", "privilege-0000"])
)
def test_any_value_in_any_field_is_shown_or_told(spoilt_run, place, value, kind):
    record = training("a", 0, 1) if kind == "phase" else scored("a", False, step=4)
    if place:
        holder = record
        for step in place[:-1]:
            holder = holder.setdefault(step, {}) if isinstance(holder, dict) else holder[step]
        holder[place[-1]] = value
    else:
        record = value
    write(spoilt_run / "trajectories" / f"{kind}-0002.jsonl", [record])
    content = Reader([str(spoilt_run)]).read()
    assert page("spoilt", "", content)
    assert len(content.index["rollouts"]) >= 8


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", {}), ("step,epoch,a/b\n1,0,", {}), ("step,epoch,a/b\n1,0,2.0\n", {"a/b": [(0.0, 2.0)]})],
)
def test_metrics_of_a_run_that_has_just_begun(tmp_path, text, columns):
    (tmp_path / "metrics.csv").write_text(text)
    assert read_columns(tmp_path / "metrics.csv") == columns
