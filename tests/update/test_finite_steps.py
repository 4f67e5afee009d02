"""Steps whose gradient is not finite: skipped and counted; too many in a row end the run with its state saved."""

import pytest
import torch
from hand_made import FULL, LORA, Batches, RecordingModule, bundled_renderer, hand_made_group, quiet_trainer

from pact_lightning.update.optimizer import FiniteSteps, NonFiniteGradientError, OptimizerConfig, which_are_not_finite

NAN = [[float("nan")] * 3, [0.0] * 2, [0.0]]
RENDERER = bundled_renderer()


def fit(tmp_path, policy, batches, limit=2):
    optimizer = OptimizerConfig(learning_rate=1e-2, max_skipped_steps=limit)
    module = RecordingModule(policy=policy, optimizer=optimizer, anchor_probability=0.0)
    module.configure_model()
    for batch in batches:
        module.prepare_phase(batch, optimizer_steps=1)
    trainer = quiet_trainer(max_epochs=1, default_root_dir=tmp_path)
    return module, trainer, lambda: trainer.fit(module, Batches(batches))


def good():
    return [hand_made_group(RENDERER)]


def bad():
    return [hand_made_group(RENDERER, advantages=NAN)]


@pytest.mark.parametrize("policy", [FULL, LORA], ids=["full", "lora"])
def test_a_skipped_step_leaves_everything_as_if_it_had_not_been(tmp_path, policy):
    with_bad, _, run = fit(tmp_path / "a", policy, [good(), bad(), good()])
    with pytest.warns(UserWarning, match=r"skipped the optimiser step after step 1: \d+ of \d+ gradients hold NaN"):
        run()
    without, _, run = fit(tmp_path / "b", policy, [good(), good()])
    run()
    torch.testing.assert_close(with_bad.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert with_bad.global_step == without.global_step == 2
    assert with_bad.finite_steps.skipped == 1
    assert with_bad.learning_rate == without.learning_rate


def test_too_many_in_a_row_end_the_run_with_its_state_saved(tmp_path):
    module, _, run = fit(tmp_path, FULL, [good(), bad(), bad(), good()])
    with pytest.raises(NonFiniteGradientError, match=r"2 optimiser steps in a row were skipped.* step 1 are intact"):
        run()
    checkpoint = torch.load(tmp_path / "checkpoints" / "last-stopped.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1
    for name, weight in module.state_dict().items():
        assert bool(checkpoint["state_dict"][name].isfinite().all())
        torch.testing.assert_close(checkpoint["state_dict"][name], weight, rtol=0, atol=0)


def test_a_good_step_between_starts_the_count_anew(tmp_path):
    module, _, run = fit(tmp_path, FULL, [bad(), good(), bad(), good()])
    with pytest.warns(UserWarning, match="skipped"):
        run()
    assert (module.finite_steps.skipped, module.finite_steps.in_a_row) == (2, 0)
    assert module.trainer.callback_metrics["train/skipped_steps"] == 2


def test_the_count_survives_a_checkpoint(tmp_path):
    module, trainer, run = fit(tmp_path, FULL, [good(), bad()])
    with pytest.warns(UserWarning, match="skipped"):
        run()
    saved = {}
    module.on_save_checkpoint(saved)
    other, _, _ = fit(tmp_path, FULL, [good()])
    other.trainer = trainer
    other.on_load_checkpoint(saved)
    assert other.finite_steps == FiniteSteps(2, skipped=1, in_a_row=1)


def test_the_message_names_the_weight_or_the_overflow():
    fine, broken = torch.ones(2), torch.tensor([1.0, float("inf")])
    assert which_are_not_finite([("a", fine), ("b", None), ("c", broken)]) == (
        "1 of 2 gradients hold NaN or infinity, the first is that of c"
    )
    assert "their norm overflows" in which_are_not_finite([("a", fine)])


def test_the_limit_must_be_positive():
    with pytest.raises(ValueError, match="max_skipped_steps must be at least 1"):
        OptimizerConfig(max_skipped_steps=0)
