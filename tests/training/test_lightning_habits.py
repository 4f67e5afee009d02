"""Lightning's flags, callbacks and loggers: each works, or is refused in a sentence before the policy is loaded."""

import csv
import json
from datetime import timedelta
from typing import ClassVar

import lightning_habits as habits
import pytest
import torch
from cli_recipe import saved
from hand_made import quiet_trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from metrics_page import undocumented

from pact_lightning.callbacks.annealing import AnnealingCallback
from pact_lightning.callbacks.export import ExportPolicy
from pact_lightning.cli.main import main
from pact_lightning.policy.state_dict import trainable_state
from pact_lightning.resume.interruption import NAME as INTERRUPTED


def fit(folder, *callbacks, **flags):
    """A fit of the smallest run; gives its module, its Trainer and its folder."""
    flags = {
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "logger": [CSVLogger(folder, "", "run")],
    } | flags
    module, data = habits.pact()
    trainer = quiet_trainer(callbacks=[AnnealingCallback(), *callbacks], **flags)
    trainer.fit(module, data)
    return module, trainer


def trajectories(folder):
    return sorted(path.stem for path in (folder / "run" / "trajectories").iterdir())


def lines(folder, name):
    return (folder / "run" / "trajectories" / f"{name}.jsonl").read_text().splitlines()


def logged(folder):
    with (folder / "run" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------------------------- the page


def test_every_flag_and_callback_of_lightning_has_a_row():
    assert habits.all_flags() == {*habits.FLAGS, *habits.REFUSED_FLAGS}
    assert habits.all_callbacks() == {*habits.CALLBACKS, *habits.REFUSED_CALLBACKS}


def test_the_page_says_what_is_so():
    assert habits.PAGE.read_text(encoding="utf-8") == habits.page()


@pytest.mark.parametrize("flag", habits.REFUSED_FLAGS)
def test_a_flag_that_cannot_be_honoured_is_refused(flag):
    for flags in habits.REFUSED_FLAGS[flag]:
        assert habits.refusal(**flags).startswith(f"trainer.{flag.replace('clip_algorithm', 'clip_val')} ")


def test_shares_of_the_one_batch_of_an_evaluation_and_precision_plugins_are_refused():
    for stage in ("val", "test", "predict"):
        assert "all tasks are one batch" in habits.refusal(**{f"limit_{stage}_batches": 0.5})
    assert "model.policy.dtype" in habits.refusal(plugins=[MixedPrecision("bf16-mixed", "cpu")])


@pytest.mark.parametrize("callback", habits.REFUSED_CALLBACKS)
def test_a_callback_that_would_do_harm_is_refused(callback):
    made = habits.REFUSED_CALLBACKS[callback]()
    assert habits.refusal(callbacks=[made]).startswith(f"{type(made).__name__} ")


# ------------------------------------------------------------------------------------------------------ what works


def test_flags_and_callbacks_that_work_get_along(tmp_path):
    flags = {
        "deterministic": True,
        "detect_anomaly": True,
        "inference_mode": False,
        "benchmark": False,
        "profiler": "simple",
        "min_epochs": 1,
        "min_steps": 1,
        "max_time": "00:01:00:00",
        "limit_val_batches": 1,
        "use_distributed_sampler": False,
        "sync_batchnorm": True,
        "enable_progress_bar": True,
        "enable_model_summary": True,
        "enable_autolog_hparams": False,
    }
    loggers = [CSVLogger(tmp_path, "", "run"), TensorBoardLogger(tmp_path, "", "run")]
    module, trainer = fit(tmp_path, *habits.fitting_callbacks(tmp_path), logger=loggers, **flags)
    assert trainer.global_step == 2
    assert (tmp_path / "lambda").read_text() == "called"
    saves = {name: len(list((tmp_path / name).iterdir())) for name in ("best", "steps")}
    assert saves == {"best": 1, "steps": 2}
    names = {name for row in logged(tmp_path) for name, value in row.items() if value} - {"epoch", "step"}
    ours = {name for name in names if name.partition("/")[0] in ("train", "val", "rollout", "anchor", "anneal")}
    ours -= {"train/time", "train/samples", "train/batches"}  # ThroughputMonitor's
    assert ours <= module.metric_names
    assert undocumented(names) == []
    assert {name for name in module.metric_names if name.startswith(("train/", "anneal/", "rollout/"))} <= ours
    assert {"DeviceStatsMonitor.on_train_batch_start/cpu_percent", "lr-AdamW"} & names


def test_fast_dev_run_makes_the_rollouts_of_one_step(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    real = {name: (checkpoints / name) for name in ("last.ckpt", INTERRUPTED)}  # of the run that is tried
    for path in real.values():
        path.write_text("of a run of days")
    saves = ModelCheckpoint(checkpoints, save_last=True)
    _, trainer = fit(tmp_path, saves, ExportPolicy(str(tmp_path / "exported")), fast_dev_run=True)
    assert trainer.global_step == 1
    assert trainer.state.finished
    assert saves.save_last
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted(real)
    assert {path.read_text() for path in real.values()} == {"of a run of days"}
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(("limit", "steps"), [(1, 1), (0.5, 1), (2, 2)])
def test_no_rollout_is_made_for_steps_that_are_left_out(tmp_path, limit, steps):
    _, trainer = fit(tmp_path, limit_train_batches=limit, limit_val_batches=0)
    assert trainer.global_step == steps
    assert len(lines(tmp_path, "phase-0000")) == 2 * steps  # two rollouts of one prompt per step


def test_limited_phases_draw_the_tasks_that_whole_ones_would(tmp_path):
    fit(tmp_path / "whole", limit_val_batches=0, max_epochs=2)
    fit(tmp_path / "limited", limit_val_batches=0, max_epochs=2, limit_train_batches=1)
    for phase in ("phase-0000", "phase-0001"):
        whole, limited = (
            [json.loads(line)["task_id"] for line in lines(tmp_path / f, phase)] for f in ("whole", "limited")
        )
        assert limited == whole[:2]


def test_validations_within_a_phase_are_told_apart(tmp_path):
    module, _ = fit(tmp_path, val_check_interval=0.5)
    assert [phases for phases, _ in module.history] == [0.5, 1.0]
    assert trajectories(tmp_path) == ["phase-0000", "validation-0000-step-1", "validation-0001"]


def test_steps_may_be_the_limit_and_the_annealing_ends_with_them(tmp_path):
    fit(tmp_path, max_epochs=-1, max_steps=4, limit_val_batches=0)
    scales = [float(row["anneal/tool_call_scale"]) for row in logged(tmp_path) if row["anneal/tool_call_scale"]]
    assert scales == pytest.approx([0.8, 0.5])  # two phases: 0 and half of the horizon


def test_the_progress_bar_counts_the_phases_that_steps_allow(tmp_path):
    _, trainer = fit(tmp_path, max_epochs=-1, max_steps=3, limit_val_batches=0)
    assert trainer.max_epochs == 2
    assert trainer.global_step == 3


def test_an_annealing_without_an_end_is_refused():
    sentence = habits.refusal(max_epochs=-1, callbacks=[AnnealingCallback()])
    assert sentence.startswith("AnnealingCallback needs a horizon: set its `horizon`")


def test_a_run_that_the_timer_stops_goes_on_and_ends_as_if_it_had_not(tmp_path):
    whole, _ = fit(tmp_path / "whole", max_epochs=2, limit_val_batches=0)
    folder = tmp_path / "timed"
    checkpoint = ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)
    _, stopped = fit(folder, checkpoint, Timer(timedelta(0)), max_epochs=2, limit_val_batches=0)
    assert stopped.global_step == 0 or stopped.global_step == 1
    module, data = habits.pact()
    again = quiet_trainer(
        max_epochs=2,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=[AnnealingCallback()],
        default_root_dir=folder,
    )
    saved_as = folder / "checkpoints" / "last.ckpt"
    again.fit(module, data, ckpt_path=saved_as if saved_as.exists() else None)
    assert again.global_step == 4
    for name, weight in trainable_state(whole.model).items():
        assert torch.equal(weight, trainable_state(module.model)[name]), name


# ---------------------------------------------------------------------------------------------- metrics to monitor


def test_checkpoints_by_time_which_lightning_would_not_write_are_refused(tmp_path):
    by_time = ModelCheckpoint(tmp_path, train_time_interval=timedelta(minutes=5))
    assert "set every_n_train_steps" in habits.refusal(callbacks=[by_time], enable_checkpointing=True)


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize("name", ["val_loss", "val/answer_corect"])
def test_an_unknown_metric_is_refused_and_the_nearest_are_named(tmp_path, kind, name):
    callback = kind(monitor=name, **({"dirpath": tmp_path} if kind is ModelCheckpoint else {}))
    sentence = habits.refusal(callbacks=[callback], enable_checkpointing=kind is ModelCheckpoint)
    assert sentence.startswith(f"{kind.__name__} monitors {name!r}, which this fit does not log; there are '")
    assert name == "val_loss" or "'val/answer_correct'" in sentence


def test_a_validation_metric_without_validation_is_refused():
    sentence = habits.refusal(callbacks=[EarlyStopping("val/answer_correct")], limit_val_batches=0)
    assert "which this fit does not log (nothing is validated: see data.validation)" in sentence


# -------------------------------------------------------------------------------------------------- state of the module


def test_the_state_is_added_to_a_destination_under_a_prefix():
    """As torch's own modules do, for whatever wraps the module."""
    module, _ = habits.pact()
    module.configure_model()
    destination = {"other": torch.zeros(1)}
    state = module.state_dict(destination=destination, prefix="module.")
    assert state is destination
    assert set(state) == {"other", *(f"module.{name}" for name in trainable_state(module.model))}
    holder = torch.nn.ModuleDict({"inner": module})
    assert set(holder.state_dict()) == {f"inner.{name}" for name in trainable_state(module.model)}


# ----------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def told(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        assert stopped.value.code == 2
        return capsys.readouterr().err.rstrip("\n").splitlines()[-1]

    return run


def test_lightning_cli_s_optimiser_options_are_not_there(tmp_path, told):
    recipe = saved(tmp_path)
    for option in ("--optimizer", "--optimizer.lr", "--lr_scheduler", "--optimizer=AdamW"):
        sentence = told("fit", "-c", recipe, option, "1e-4")
        assert sentence.startswith("error: there is no --")
        assert "set --model.init_args.optimizer.learning_rate" in sentence


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_command_without_a_recipe_says_so(verb, told):
    assert told(verb, "--ckpt_path", "x.ckpt") == (
        f"error: {verb} needs a recipe: give it with -c, as in `pact-lightning {verb} -c my.yaml`"
    )


class Page(Logger):
    """A logger that keeps what its configuration page would show, and knows neither folder nor version."""

    shown: ClassVar[list] = []

    @property
    def name(self):
        return "page"

    @property
    def version(self):
        return "one"

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        self.shown.append(params)


def test_the_recipe_reaches_the_configuration_page_of_every_logger(tmp_path):
    Page.shown.clear()
    loggers = [
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(tmp_path)}},
        {"class_path": "test_lightning_habits.Page"},
    ]
    main(["fit", "-c", saved(tmp_path, {"trainer.logger": loggers})])
    assert [page["model"]["init_args"]["optimizer"]["learning_rate"] for page in Page.shown] == [1e-3]
    (events,) = tmp_path.rglob("events.*")
    assert b"data/init_args/prompts_per_phase" in events.read_bytes()
