"""Lightning's private fields are where we look for them; a Lightning that moves one is told by the field's name."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import ModelParallelStrategy

from pact_lightning.resume import lightning_internals as internals
from pact_lightning.resume.metrics_file import MetricsFile


class Asks(pl.Callback):
    """Asks for every field in the hooks in which an exact resume does."""

    def __init__(self):
        self.found = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found = {
            "of the step": internals.epoch_metrics(trainer, on_step=True),
            "of the epoch": internals.epoch_metrics(trainer, on_step=False),
            "logs": internals.logs_this_step(trainer),
            "validates": internals.validates_after_epoch(trainer),
            "launched by": internals.cluster_environment(trainer),
        }


class Logs(BoringModel):
    def training_step(self, batch, batch_idx):
        self.log("loss", 3.0, on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("internals")
    asks, loggers = Asks(), [CSVLogger(folder, "run", 4), TensorBoardLogger(folder, "run", 4)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=loggers,
        callbacks=[asks],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    trainer.fit(Logs())
    trainer.save_checkpoint(folder / "end.ckpt")
    return trainer, asks.found, folder


def test_metrics_that_lightning_has_not_logged_yet(fitted):
    _, found, _ = fitted
    assert found["of the step"]["loss_step"] == 3.0
    assert found["of the epoch"]["loss_epoch"] == 3.0
    assert found["logs"] is True
    assert found["validates"] is True
    assert found["launched by"] is not None


def test_the_counters_of_a_checkpoint_have_the_names_we_use(fitted):
    trainer, _, _ = fitted
    loops = trainer._checkpoint_connector.dump_checkpoint()["loops"]["fit_loop"]
    for counter in (internals.EPOCHS, internals.BATCHES, internals.VALIDATION_BATCHES):
        for part in ("total", "current"):
            assert {"ready", "started", "processed", "completed"} - {"started"} <= loops[counter][part].keys()
    assert loops[internals.STATE][internals.STEPS] == 2
    assert "is_last_batch" in loops[internals.BATCHES]


def test_loggers(fitted):
    trainer, _, folder = fitted
    csv, tensorboard = trainer.loggers
    assert isinstance(internals.csv_writer(csv), ExperimentWriter)
    assert [internals.folder_version(logger) for logger in trainer.loggers] == [4, 4]
    internals.set_folder_version(csv, 7)
    assert csv.version == 7
    fresh = CSVLogger(folder, "other", 1)
    assert internals.csv_writer(fresh) is None
    writer = MetricsFile(fresh.log_dir)
    internals.set_csv_writer(fresh, writer)
    assert fresh.experiment is writer
    internals.hide_later_steps(tensorboard, 5)
    assert tensorboard._kwargs["purge_step"] == 5
    assert internals.saves_distributed(ModelParallelStrategy()) is True


def test_the_writer_has_the_methods_that_a_metrics_file_replaces():
    for method in ("_check_log_dir_exists", "_rewrite_with_new_header"):
        assert callable(getattr(ExperimentWriter, method, None)), f"lightning's ExperimentWriter has no {method}"


def test_a_moved_field_is_told_in_words():
    with pytest.raises(RuntimeError, match=r"lightning 2\..* has no CSVLogger\._nowhere, which exact resume needs"):
        internals._field(CSVLogger("somewhere"), "_nowhere")
