"""From Python: fit, evaluate and roll out in one run, and what its loggers and Inspect show of its rollouts."""

import csv
import io
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from small_run import LIMITS, OPTIMIZER, POLICY

import pact_lightning as pact
from pact_lightning.callbacks.log_samples import COLUMNS
from pact_lightning.cli.main import main
from pact_lightning.tasks.bundled.tasks import make_task
from pact_lightning.training.evaluation import EvaluationSource, report_scores

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Tables(Logger):
    """A logger that takes tables, as WandbLogger does."""

    name, version = "tables", 0

    def __init__(self):
        super().__init__()
        self.tables = []

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def log_table(self, key, columns, data, step):
        self.tables.append((key, columns, data, step))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    module = pact.PACTModule(policy=POLICY, optimizer=OPTIMIZER)
    data = pact.RolloutDataModule(
        train=[make_task("train", 3), make_task("train", 4)],
        validation=pact.BundledTasks("validation", 2),
        prompts_per_phase=2,
        prompts_per_step=1,
        rollouts_per_prompt=2,
        limits=LIMITS,
    )
    tables = Tables()
    loggers = [tables, TensorBoardLogger(folder, "", "version_0")]
    terminal = io.StringIO()
    panel = pact.LivePanel(console_kwargs={"file": terminal, "force_terminal": True, "width": 120})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)
        if find_spec("trackio"):
            loggers.append(pact.TrackioLogger("small", "first"))
        if find_spec("wandb"):
            loggers.append(WandbLogger(project="small", save_dir=folder, offline=True))
        callbacks = [pact.LogSamples(3), panel]
        pact.fit(module, data, phases=1, folder=folder, callbacks=callbacks, logger=loggers, accelerator="cpu")
        if find_spec("wandb"):
            loggers[-1].experiment.finish()
    return folder, module, data, terminal.getvalue(), tables


def test_evaluate_scores_the_trained_weights_and_roll_out_any_tasks(run, tmp_path):
    _, module, data, *_ = run
    after = module.history[-1][1]
    assert module.history[-1][0] == 1
    assert pact.evaluate(module, data, folder=tmp_path, **QUIET) == pytest.approx(after)
    assert json.loads((tmp_path / "results-validation.json").read_text())["tasks"] == 2
    rollouts = pact.roll_out(module, data, [make_task("longer", 5)], folder=tmp_path, **QUIET)
    assert [rollout["task_id"] for rollout in rollouts] == ["longer-5"]
    assert "scores" in rollouts[0]
    assert data.sources["predict"] is None, "the data module is left as it was"
    with pytest.raises(TypeError, match="int is no task source: give an object with a method load"):
        pact.roll_out(module, data, 3, folder=tmp_path, **QUIET)


def test_a_fit_goes_on_in_its_folder(run):
    folder, _, data, _, _ = run
    module = pact.PACTModule(policy=POLICY, optimizer=OPTIMIZER)
    trainer = pact.fit(module, data, phases=2, folder=folder, resume=True, **QUIET)
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)
    with (folder / "version_0" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1", "2", "3"]


def test_samples_are_in_the_loggers_that_can_show_them(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, _, _, tables = run
    ((key, columns, rows, step),) = tables.tables
    assert (key, columns, step) == ("samples", COLUMNS, 0)
    assert [row[2] for row in rows] == [0, 1], "the first batch has one prompt, of two rollouts"
    events = EventAccumulator(str(folder / "version_0"))
    events.Reload()
    texts = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    assert sorted(tag.removesuffix("/text_summary") for tag in texts) == ["samples/0", "samples/1"]
    text = events.Tensors(texts[0])[0].tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines()), "nothing in it is markup"
    assert rows[int(texts[0].split("/")[1])][1] in text


def test_an_offline_run_of_wandb_has_the_metrics_and_a_table_of_samples(run):
    pytest.importorskip("wandb", reason="needs wandb, of the extra `wandb`")
    folder, _, _, _, tables = run
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    history = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
               for record in wandb_records(log) if record.HasField("history")]  # fmt: skip
    steps = [row["trainer/global_step"] for row in history if "train/loss" in row]
    assert steps == [0, 1]
    with (folder / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert [row["train/loss"] for row in history if "train/loss" in row] == pytest.approx(losses[:2])
    assert {"val/answer_correct", "rollout/answer_correct", "anneal/level"} <= {name for row in history for name in row}
    (found,) = [row["samples/path"] for row in history if "samples/path" in row]
    table = json.loads((log.parent / "files" / found).read_text())
    assert (table["columns"], table["data"]) == (COLUMNS, tables.tables[0][2])


def wandb_records(path):
    """The records of an offline run: a log of LevelDB's kind, in blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # too little is left of the block for a record's head
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_trackio_has_the_metrics_and_the_samples_as_conversations(run):
    pytest.importorskip("trackio", reason="needs trackio, of the extra `trackio`")
    from trackio.sqlite_storage import SQLiteStorage

    folder, *_ = run
    assert list(Path(os.environ["TRACKIO_DIR"]).glob("small*"))
    logs = SQLiteStorage.get_logs("small", "first")
    assert [row["step"] for row in logs if "train/loss" in row] == [0, 1]
    assert {"val/answer_correct", "rollout/answer_correct", "anneal/level"} <= {name for row in logs for name in row}
    traces = SQLiteStorage.get_traces("small", "first")
    records = [
        json.loads(line) for line in (folder / "version_0/trajectories/phase-0000.jsonl").read_text().splitlines()
    ]
    by_key = {(record["task_id"], record["sample"]): record for record in records}
    assert len(traces) == 2
    for trace in traces:
        record = by_key[trace["metadata"]["task_id"], trace["metadata"]["sample"]]
        assert trace["messages"] == record["messages"]
        assert trace["metadata"]["reward"] == pytest.approx(sum(record["turn_rewards"]), abs=1e-4)


def test_the_live_panel_shows_phase_success_and_the_newest_rollout(run):
    *_, terminal, _ = run
    assert "newest rollout" in terminal
    assert "phase 1 of 1" in terminal
    assert "validation 0%" in terminal
    assert re.search(r"train-\d: \d turns?, \d calls?, \w+", terminal)
    assert "rollouts: phase-0000" in terminal, "done of wanted, with tokens per second"


def test_inspect_reads_what_export_log_writes(run, tmp_path, capsys):
    log = pytest.importorskip("inspect_ai.log")
    folder, *_ = run
    source = folder / "version_0"
    torn = tmp_path / "run" / "trajectories"
    torn.mkdir(parents=True)
    file = source / "trajectories" / "phase-0000.jsonl"
    (torn / file.name).write_text(file.read_text() + '{"task_id": "cut o')
    (torn / "validation-0001.jsonl").write_text((source / "trajectories" / "validation-0001.jsonl").read_text())
    (torn / "privilege-0000.jsonl").write_text('{"task_id": "figures of tokens, and no rollout"}\n')
    main(["export-log", str(tmp_path / "run"), "--to", "inspect"])
    assert "2 logs in" in (said := capsys.readouterr().out)
    assert "1 line could not be read and are left out" in said
    records = [json.loads(line) for line in file.read_text().splitlines()]
    phase = log.read_eval_log(str(tmp_path / "run" / "inspect" / "phase-0000.eval"))
    assert phase.stats.completed_at == phase.eval.created, "or Inspect View shows a duration of NaN days"
    assert (phase.status, len(phase.samples)) == ("success", len(records))
    by_key = {(sample.id, sample.epoch): sample for sample in phase.samples}
    for record in records:
        sample = by_key[record["task_id"], record["sample"] + 1]
        assert [message.role for message in sample.messages] == [message["role"] for message in record["messages"]]
        calls = [call.function for m in sample.messages if m.role == "assistant" for call in m.tool_calls or ()]
        written = [m for m in record["messages"] if m["role"] == "assistant"]
        assert [name for name in calls if name != "malformed call"] == [
            call["function"]["name"] for m in written for call in m.get("tool_calls", ())
        ]
        assert calls.count("malformed call") == sum(len(m.get("malformed_calls", ())) for m in written)
        assert sample.scores["reward"].value == pytest.approx(sum(record["turn_rewards"]))
        assert [usage.total_tokens for usage in sample.model_usage.values()] == [record["tokens"]]
        last = record["messages"][-1]
        assert sample.scores["reward"].answer == (last["content"] if last["role"] == "assistant" else None)
    validation = log.read_eval_log(str(tmp_path / "run" / "inspect" / "validation-0001.eval"))
    assert {score.name for score in validation.results.scores} >= {"answer_correct"}


def test_scores_of_one_task_stand_under_the_whole_path_of_their_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    checkpoint = f"runs/{'a' * 60}[red]/version_0/checkpoints/last.ckpt"
    source = EvaluationSource("validation", pact.EvaluationConfig(), 1, 0, 400)
    report_scores(tmp_path, source, {"answered": 1.0}, {"answered"}, {"model": "bundled", "checkpoint": checkpoint})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [checkpoint, "validation: 1 task, greedy, prompt only"]
    assert "answered" in lines[5]


def test_a_folder_without_rollouts_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export-log", str(tmp_path)])
    assert stopped.value.code == 2
    assert f"error: {tmp_path} has no rollouts: there is no" in capsys.readouterr().err
