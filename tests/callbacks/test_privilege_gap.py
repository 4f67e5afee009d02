"""The privilege gap: figures worked by hand, scores beside the sampler's own, and training that stays as it is."""

import csv
import math
from collections import defaultdict

import lightning.pytorch as pl
import pytest
import torch
from hand_made import FULL, Batches, hand_made_group, prepared, quiet_trainer
from lightning.pytorch.loggers import CSVLogger
from metrics_page import undocumented
from plain_pact import RENDERER, Plain
from small_run import POLICY, pact, sft

from pact_lightning.callbacks.privilege_gap import PrivilegeGap, add_rollout, figures_of
from pact_lightning.policy.loading import load_tokenizer
from pact_lightning.policy.logprobs import LogProbs
from pact_lightning.types.trajectory import Component, Segment, Trajectory
from pact_lightning.utils.json_lines import read_json_lines


def test_the_figures_of_a_rollout_worked_by_hand():
    segments = [
        Segment((5, 6), Component.REASONING, 0),
        Segment((7,), Component.OBSERVATION, 0),
        Segment((8,), Component.ANSWER, 1),
        Segment((9,), Component.DELIMITER, 1),
    ]
    trajectory = Trajectory("t", 0, (), segments)
    mask = torch.tensor([True, True, False, True, True])
    prompt = LogProbs(torch.tensor([-1.0, -2.0, 9.0, -3.0, -0.5]), torch.tensor([1.0, 2.0, 9.0, 3.0, 2.0]))
    privileged = LogProbs(torch.tensor([-0.5, -1.0, 9.0, -4.0, -0.5]), torch.tensor([0.0, 1.0, 9.0, 1.0, 2.0]))
    sums = defaultdict(float)
    add_rollout(sums, trajectory, mask, prompt=prompt, privileged=privileged, control={9: "<|im_end|>"})
    gaps = [0.5, 1.0, -1.0, 0.0]
    kl = [math.exp(gap) * gap - math.exp(gap) + 1 for gap in gaps]
    assert figures_of(sums) == pytest.approx(
        {
            "privilege/gap": 0.125,
            "privilege/gap_reasoning": 0.75,
            "privilege/gap_answer": -1.0,
            "privilege/gap_delimiter": 0.0,
            "privilege/gap_turn_0": 0.75,
            "privilege/gap_turn_1": -0.5,
            "privilege/kl": sum(kl) / 4,
            "privilege/kl_reverse": sum(math.exp(gap) - 1 - gap for gap in gaps) / 4,
            "privilege/entropy_prompt": 2.0,
            "privilege/entropy_trace": 1.0,
            "privilege/rollout_logp_prompt": -6.5,
            "privilege/rollout_logp_trace": -6.0,
            "privilege/p_prompt/<|im_end|>": math.exp(-0.5),
            "privilege/p_trace/<|im_end|>": math.exp(-0.5),
            "privilege/share/<|im_end|>": 0.25,
        }
    )


def test_the_estimate_of_the_divergence_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    x, h = torch.softmax(torch.randn(2, 7, generator=generator).double(), 1)
    gap = (h / x).log()
    estimate = (x * (gap.exp() * gap - gap.exp() + 1)).sum()  # its expectation over tokens sampled under x
    assert float(estimate) == pytest.approx(float((h * gap).sum()))


class Sampled(pl.Callback):
    """Keeps what the sampler reported of the first batch."""

    logps = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rollouts = [trajectory for group in batch for trajectory in group.trajectories]
        self.logps = self.logps or {(each.task_id, each.sample): each.sampled_logps for each in rollouts}


def fit(folder, *callbacks):
    module, data = pact()
    trainer = quiet_trainer(
        max_epochs=2, logger=CSVLogger(folder, "run", "v"), callbacks=list(callbacks), default_root_dir=folder,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, data)
    return {name: weight.detach().clone() for name, weight in module.model.named_parameters() if weight.requires_grad}


def test_a_fit_logs_the_gap_and_trains_as_without_it(tmp_path):
    plain = fit(tmp_path / "plain")
    sampled = Sampled()
    measured = fit(tmp_path / "measured", PrivilegeGap(every_n_phases=2, prompts=2, tokens=True), sampled)
    assert all(torch.equal(plain[name], measured[name]) for name in plain)
    folder = tmp_path / "measured" / "run" / "v"
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["privilege/gap"]]
    assert [row["epoch"] for row in rows] == ["0"]  # every second phase
    logged = {name for name, value in rows[0].items() if value}
    assert undocumented(logged) == []
    assert {"privilege/gap", "privilege/kl", "privilege/trace_logp"} <= PrivilegeGap.metric_names & logged
    row = {name.removeprefix("privilege/"): float(value) for name, value in rows[0].items() if value}
    records = [record for _, record in read_json_lines(folder / "trajectories" / "privilege-0000.jsonl")]
    assert len(records) == 4  # two prompts, two rollouts each
    gaps = [h - x for record in records for h, x in zip(record["logp_trace"], record["logp_prompt"], strict=True)]
    assert row["gap"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert row["rollout_logp_trace"] - row["rollout_logp_prompt"] == pytest.approx(sum(gaps) / 4, abs=1e-3)
    assert abs(row["gap"]) > 1e-3
    assert row["kl"] > 0
    assert row["trace_logp"] < 0
    tokenizer = load_tokenizer(POLICY)
    for record in records:
        assert len(record["texts"]) == len(record["ids"])
        assert "".join(record["texts"]) == tokenizer.decode(record["ids"])
    for record in records:  # by the weights that sampled: log pi(tau | x) is what the sampler reported
        assert record["logp_prompt"] == pytest.approx(sampled.logps[record["task_id"], record["sample"]], abs=1e-4)
    assert row["entropy_prompt"] > 0
    assert any(name.startswith("share/<|") for name in row)


def test_the_exact_divergence_is_that_of_plain_forwards_over_the_whole_vocabulary():
    module = prepared(FULL, 0.02, head_chunk=7)
    group = hand_made_group(RENDERER, 1, temperature=0.7)
    callback = PrivilegeGap(exact=True)
    quiet_trainer(max_epochs=1, callbacks=[callback]).fit(module, Batches([[group]]))
    (logged,) = [row for row in module.logged if "privilege/kl" in row]
    assert logged.keys() >= {"privilege/kl_exact", "privilege/kl_reverse_exact"}
    assert callback.metric_names - PrivilegeGap.metric_names == {"privilege/kl_exact", "privilege/kl_reverse_exact"}
    plain, forth, back = Plain(module, 0.7), [], []
    with torch.no_grad():
        for trajectory in group.trajectories:
            ids, kept = trajectory.ids(), plain.of_policy(trajectory)
            x = plain.distribution(plain.prompt(group), ids)[kept]
            h = plain.distribution(plain.privileged(group), ids)[kept]
            forth.append((h.exp() * (h - x)).sum(-1))
            back.append((x.exp() * (x - h)).sum(-1))
    assert logged["privilege/kl_exact"] == pytest.approx(float(torch.cat(forth).mean()), rel=1e-3)
    assert logged["privilege/kl_reverse_exact"] == pytest.approx(float(torch.cat(back).mean()), rel=1e-3)
    assert undocumented(logged) == []


def test_a_module_without_privileged_contexts_is_refused(tmp_path):
    module, data = sft()
    trainer = quiet_trainer(max_epochs=1, logger=False, callbacks=[PrivilegeGap()], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="SFTModule has no such context"):
        trainer.fit(module, data)


@pytest.mark.parametrize("given", [{"every_n_phases": 0}, {"prompts": 0}])
def test_counts_below_one_are_refused(given):
    with pytest.raises(ValueError, match="at least 1"):
        PrivilegeGap(**given)
