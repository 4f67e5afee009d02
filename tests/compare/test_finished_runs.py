"""Finished runs side by side: what is read of a run's files, the table, and what is refused."""

import csv
import json
import sys

import pytest

from pact_lightning.cli.main import main
from pact_lightning.compare.results import Cell, Cost, Evaluation, Setting, read_cost, read_evaluations
from pact_lightning.compare.runs import read_runs, write_comparison
from pact_lightning.compare.tables import budget_remarks, curve_rows, report, tidy_rows

GREEDY = Setting("validation", 0.0)


def trajectories(folder, name, scores, temperature=0.0, **facts):
    """A file of rollouts as an evaluation leaves it; ``scores`` are (task, answer correctness) pairs."""
    path = folder / "trajectories" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"task_id": task, "temperature": temperature, "scores": {"answer_correct": value, "calls": 3 * value}} | facts
        for task, value in scores
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A run of two phases, validated before, after one, in the second and after both; scored by samples later."""
    run = tmp_path / "runs" / "mine"
    trajectories(run, "validation-0000", [("a", 0.0), ("b", 0.0)], step=0)
    trajectories(run, "validation-0001", [("a", 1.0), ("b", 0.0)], step=2)
    trajectories(run, "validation-0001-step-1", [("a", 0.5)], step=3)
    trajectories(run, "validation-0002", [("b", 1.0), ("a", 1.0)], step=4)
    trajectories(run, "validation", [("a", 1.0), ("a", 0.0), ("b", 1.0), ("b", 1.0)], temperature=1.0)
    trajectories(run, "phase-0000", [("train", 1.0)])
    (run / "metrics.csv").write_text(
        "step,train/loss,rollout/sampled_tokens,time/phase,val/answer_correct\r\n"
        "0,,,,0.0\r\n0,1.5,,,\r\n1,1.4,,,\r\n1,,200.0,6.0,\r\n2,1.5,,,\r\n3,1.4,,,\r\n3,,120.0,5.0,\r\n"
    )
    return run


def test_what_a_run_left(folder):
    found = {(each.setting, each.steps): each.scores["answer_correct"] for each in read_evaluations(folder)}
    assert found == {
        (GREEDY, 0): {"a": 0.0, "b": 0.0},
        (GREEDY, 2): {"a": 1.0, "b": 0.0},
        (GREEDY, 3): {"a": 0.5},
        (GREEDY, 4): {"a": 1.0, "b": 1.0},
        (Setting("validation", 1.0), None): {"a": 0.5, "b": 1.0},  # the mean over a task's rollouts
    }
    assert read_cost(folder) == Cost(tokens=320, steps=4, seconds=11.0)


def test_rollouts_of_several_processes_are_one_evaluation(tmp_path):
    trajectories(tmp_path, "validation-0002-rank0", [("a", 1.0)], step=8)
    trajectories(tmp_path, "validation-0002-rank1", [("b", 0.0)], step=8)
    (found,) = read_evaluations(tmp_path)
    assert found.scores["answer_correct"] == {"a": 1.0, "b": 0.0}


def test_scores_after_the_fit_stand_before_those_within(folder):
    trajectories(folder, "validation", [("a", 0.25)], temperature=0.0)
    cell = Cell("m", 0, read_evaluations(folder))
    assert cell.last(GREEDY).scores["answer_correct"] == {"a": 0.25}
    assert cell.last(Setting("test", 0.0)) is None


def test_the_table_of_two_runs(folder, tmp_path, capsys):
    other = tmp_path / "other"
    trajectories(other, "validation-0000", [("a", 0.0), ("b", 0.0)], step=0)
    trajectories(other, "validation-0002", [("a", 0.0), ("b", 0.0)], step=4)
    output = tmp_path / "out"
    main(["compare", f"pact={folder}", f"grpo={other}", "--output", str(output)])
    table = capsys.readouterr().out
    assert "| method | seeds | before | after | change | difference from pact |" in table
    assert "| grpo | 1 | 0.0% [0.0%, 0.0%] | 0.0% [0.0%, 0.0%] | +0.0 points [+0.0, +0.0] | -100.0 points" in table
    assert "| pact | 0.0% | 50.0% | 50.0% | 100.0% |\n| grpo | 0.0% |  |  | 0.0% |" in table
    assert "Unequal budget: grpo made 0 optimiser steps, pact 4." in table
    assert (output / "comparison.md").read_text() == table
    with (output / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    first = {"method": "grpo", "regime": "", "seed": "0", "split": "validation", "temperature": "0"}
    assert first.items() <= rows[0].items()
    assert (rows[0]["metric"], rows[0]["value"]) == ("answer_correct", "0.0")
    assert [row["value"] for row in rows if row["method"] == "pact"] == ["1.0", "3.0", "0.75", "2.25"]
    assert (rows[2]["tokens"], rows[2]["steps"]) == ("320", "4")
    with (output / "runs.csv").open() as file:
        runs = [(row["method"], row["tokens"], row["steps"], row["seconds"]) for row in csv.DictReader(file)]
    assert runs == [("grpo", "0", "0", "0.0"), ("pact", "320", "4", "11.0")]
    assert len((output / "curves.csv").read_text().splitlines()) == 1 + 2 * (4 + 2)


def test_runs_of_one_name_are_seeds_and_other_metrics_have_no_percent(folder, tmp_path, capsys):
    second = tmp_path / "second"
    trajectories(second, "validation-0002", [("a", 1.0), ("b", 0.0)], step=4)
    main(["compare", f"pact={folder}", f"pact={second}", "--metric", "calls"])
    table = capsys.readouterr().out
    assert "| pact | 2 | 0.00 [0.00, 0.00] | 2.25 [" in table
    assert "difference" not in table


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path):
    run = tmp_path / "lr=1"
    trajectories(run, "test", [("a", 1.0)])
    assert read_runs([str(run)])[0].method == str(run)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name the folders of the runs"),
        (["{runs}"], "is not a run's folder: it has no trajectories/; name one in it, such as {runs}/mine"),
        (["{runs}/nothing"], "there is no run {runs}/nothing"),
        (["{runs}/mine", "again={runs}/mine"], "are the same run; list each once"),
        (["{runs}/mine", "--metric", "luck"], "no run has the metric 'luck'; they have answer_correct, calls"),
        (["{runs}/mine", "--against", "grpo"], "there is no method 'grpo' to compare with"),
    ],
)
def test_mistakes_end_in_one_sentence(folder, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *(word.format(runs=folder.parent) for word in arguments)])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert sentence.format(runs=folder.parent) in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_rollouts_of_an_earlier_version_are_to_be_scored_again(folder, capsys):
    (folder / "trajectories" / "test.jsonl").write_text('{"task_id": "a"}\n')
    with pytest.raises(SystemExit):
        main(["compare", str(folder)])
    assert "score the run's checkpoint again, with pact-lightning test" in capsys.readouterr().err
    trajectories(folder, "test", [("a", 1.0)])
    trajectories(folder, "validation-0003", [("a", 1.0)])
    with pytest.raises(SystemExit):
        main(["compare", str(folder)])
    assert "validation-0003.jsonl do not say after how many optimiser steps" in capsys.readouterr().err


def cells():
    """Two methods with two seeds in two regimes; the second method fell out once."""
    made = []
    for regime in ("easy", "hard"):
        for seed in (0, 1):
            for method, value in (("pact", 1.0), ("grpo", 0.5 * seed)):
                if (regime, seed, method) != ("hard", 1, "grpo"):
                    scores = {"answer_correct": {"a": value, "b": value / 2}}
                    evaluations = [Evaluation(GREEDY, steps, scores) for steps in (0, 2)]
                    made.append(Cell(method, seed, evaluations, Cost(100 + seed, 4, 1.5), regime, {"commit": "c"}))
    return made


def test_the_order_of_the_runs_does_not_matter():
    forth, back = cells(), cells()[::-1]
    assert report(forth, "answer_correct", "pact") == report(back, "answer_correct", "pact")
    assert list(tidy_rows(forth)) == list(tidy_rows(back))
    assert list(curve_rows(forth)) == list(curve_rows(back))
    text = report(forth, "answer_correct", "pact")
    assert text.index("## easy") < text.index("## hard")
    assert text.count("Unequal") == 0


def test_unequal_budgets_are_told():
    ours, theirs = Cost(1000, 28, 9.0), Cost(1200, 28, 9.0)
    made = [Cell("pact", 0, [], ours), Cell("grpo", 0, [], theirs), Cell("sft", 0, [], Cost(0, 27, 1.0))]
    assert budget_remarks(made, "pact") == [
        "Unequal budget: grpo sampled 1,200 tokens in training, 120% of pact's.",
        "Unequal budget: sft made 27 optimiser steps, pact 28.",
        "Unequal budget: sft has no rollouts in training, 0% of pact's.",
    ]
    near = [Cell("pact", 0, [], ours), Cell("grpo", 0, [], Cost(1099, 28, 20.0))]
    assert budget_remarks(near, "pact") == []


def chained():
    """A method that goes on for 4 steps from another one's runs of 8, and that one."""
    made = []
    for seed in range(5):
        first, both = Cost(0, 8, 60.0), Cost(500, 12, 90.0)
        points = [Evaluation(GREEDY, steps, {"calls": {"a": 2.0 + steps}}) for steps in (0, 4, 8)]
        made.append(Cell("sft", seed, points, first))
        points = [Evaluation(GREEDY, steps, {"calls": {"a": 9.0 + steps}}) for steps in (0, 2, 4)]
        made.append(Cell("sft_then_rl", seed, points, both, after="sft", cost_before=first))
    return made


def test_a_run_that_goes_on_has_the_budget_and_the_steps_of_both():
    text = report(chained(), "calls", "sft")
    assert "| sft | 5 | 8 | 0 (no rollouts) | 1.0 |\n| sft_then_rl | 5 | 12 | 500 | 1.5 |" in text
    assert "| method | 0 | 4 | 8 | 10 | 12 |" in text
    assert "| sft_then_rl |  |  | 9.00 | 11.00 | 13.00 |" in text
    assert (
        "sft_then_rl begins from sft's runs, which made 8 of its optimiser steps and sampled 0 of its tokens." in text
    )
    made = chained()
    made[1].evaluations.append(Evaluation(GREEDY, None, {"calls": {"a": 99.0}}))  # after the fit, in its setting
    assert list(made[1].curve(GREEDY)) == [8, 10, 12]
    assert made[1].curve(GREEDY)[12].scores["calls"] == {"a": 99.0}
    assert "Unequal budget: sft_then_rl made 12 optimiser steps, sft 8." in text
    assert {row["steps"] for row in curve_rows(chained()) if row["method"] == "sft_then_rl"} == {"8", "10", "12"}


def test_intervals_of_few_seeds_are_flagged():
    assert "Fewer than 5 seeds" not in report(chained(), "calls", "sft")
    few = [cell for cell in chained() if cell.seed < 4 or cell.method == "sft"]
    assert "too narrow to tell methods apart: sft_then_rl (4)." in report(few, "calls", "sft")


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    written = write_comparison(cells(), "answer_correct", "pact", tmp_path)
    assert [path.name for path in written] == ["curves.svg", "curves.png", "scores.svg", "scores.png"]
    first = [path.read_bytes() for path in written]
    assert b"<svg" in first[0]
    write_comparison(cells()[::-1], "answer_correct", "pact", tmp_path)
    assert [path.read_bytes() for path in written] == first


def test_without_matplotlib_the_tables_are_there_and_a_line_says_what_is_missing(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(["compare", str(folder), "--output", str(folder / "out")])
    assert "pip install 'pact-lightning[pictures]'" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "comparison.csv", "comparison.md", "curves.csv", "runs.csv",
    ]  # fmt: skip
