"""The page of metrics: it explains every name that can be logged, and no other."""

import inspect

import lightning.pytorch as pl
import lightning_habits as habits
import small_run
from hand_made import quiet_trainer
from metrics_page import is_one_of, names_on_the_page, undocumented

import pact_lightning
from pact_lightning.metrics.evaluation import EvaluationMetrics, RolloutMetric
from pact_lightning.objectives.objective import Objective
from pact_lightning.types.trajectory import POLICY_COMPONENTS, Component
from pact_lightning.update.sampler_correction import SamplerCorrection


def public_classes(base):
    found = [getattr(pact_lightning, name) for name in pact_lightning.__all__]
    return [each for each in found if inspect.isclass(each) and issubclass(each, base) and not inspect.isabstract(each)]


def names_of_the_package():
    names = set(SamplerCorrection(2.0).names)
    control = pact_lightning.MatchedNorm(policy=small_run.POLICY, ratio_context="prompt")
    for module in (habits.pact()[0], small_run.sft()[0], control):
        module.trainer = quiet_trainer()
        names |= module.metric_names
    for callback in public_classes(pl.Callback):
        names |= set(getattr(callback, "metric_names", ()))
    names |= pact_lightning.PrivilegeGap(exact=True).metric_names
    for objective in public_classes(Objective):
        names |= {f"train/{figure}" for figure in objective.figures}
    for metric in public_classes(RolloutMetric):
        names |= {f"val/{name}" for name in EvaluationMetrics([metric()]).names}
    return names


def test_every_name_that_can_be_logged_is_explained():
    names = names_of_the_package()
    assert {"train/loss", "train/mu", "train/gap", "sft/loss", "val/toolhop_correct", "privilege/kl"} <= names
    assert undocumented(names) == []


def test_every_name_on_the_page_can_be_logged():
    names = names_of_the_package()
    named_at_run_time = {
        "privilege/gap_turn_{t}",
        *(f"privilege/{kind}/{{token}}" for kind in ("share", "p_prompt", "p_trace")),
    }
    page = names_on_the_page()
    assert [name for name in page if not any(is_one_of(n, name) for n in names)] == sorted(
        named_at_run_time, key=page.index
    )
    assert len(page) == len(set(page))


def test_the_components_of_a_gap_are_those_of_the_policy():
    components = {Component(component).name.lower() for component in POLICY_COMPONENTS}
    assert {f"privilege/gap_{name}" for name in components} <= pact_lightning.PrivilegeGap.metric_names
