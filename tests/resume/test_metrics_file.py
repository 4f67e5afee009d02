"""``metrics.csv`` over several starts of one run."""

import pytest
from lightning.pytorch.loggers import CSVLogger

from pact_lightning.resume.metrics_file import MetricsFile, comparable, is_timed
from pact_lightning.utils.csv_rows import read_rows


def opened(folder, keep=0):
    logger = CSVLogger(folder, name="", version="run")
    logger._experiment = MetricsFile(logger.log_dir)
    logger._experiment.begin(keep)
    return logger


def log(logger, *rows):
    for step, row in rows:
        logger.log_metrics(row, step=step)
        logger.save()


ROWS = [(0, {"val/a": 0.5}), (0, {"train/loss": 0.1}), (1, {"train/loss": 0.2, "late": 3.0}), (1, {"val/a": 0.25})]


@pytest.mark.parametrize("known", range(len(ROWS) + 1))
@pytest.mark.parametrize("written", range(len(ROWS) + 1))
def test_a_file_gone_on_with_is_that_of_one_run(tmp_path, known, written):
    """The killed run had written more rows than its checkpoint knows of, or just those."""
    log(opened(tmp_path / "whole"), *ROWS)
    log(opened(tmp_path / "killed"), *ROWS[: max(known, written)])
    log(opened(tmp_path / "killed", keep=known), *ROWS[known:])
    expected, path = (tmp_path / name / "run" / "metrics.csv" for name in ("whole", "killed"))
    assert path.read_text() == expected.read_text()


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    log(opened(tmp_path), *ROWS)
    path = tmp_path / "run" / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-3])
    assert len(read_rows(path)) == len(ROWS) - 1


def test_nothing_is_touched_before_it_is_known_how_much_stays(tmp_path):
    log(opened(tmp_path), *ROWS)
    path = tmp_path / "run" / "metrics.csv"
    before = path.read_text()
    logger = CSVLogger(tmp_path, name="", version="run")
    logger._experiment = MetricsFile(logger.log_dir)
    logger.log_metrics({"val/a": 1.0}, step=0)
    logger.save()
    assert path.read_text() == before
    logger._experiment.begin(len(ROWS))
    assert logger._experiment.saved_rows() == len(ROWS) + 1


def test_lost_rows_are_told(tmp_path):
    log(opened(tmp_path), *ROWS)
    with pytest.warns(UserWarning, match="holds 4 rows, but the checkpoint knows of 9; some are lost"):
        opened(tmp_path, keep=9)


def test_durations_are_not_compared():
    timed = ["rollout/seconds", "rollout/tokens_per_second", "rollout/tool_share", "time/step", "perf/mfu"]
    assert all(map(is_timed, timed))
    assert not any(map(is_timed, ["train/loss", "rollout/reward", "step", "val/turns"]))
    assert comparable([{"train/loss": "1", "rollout/seconds": "2", "val/a": ""}]) == [{"train/loss": "1"}]
