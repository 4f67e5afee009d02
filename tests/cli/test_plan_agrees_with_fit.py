"""``pact-lightning plan`` asks what ``fit`` asks before it loads a policy."""

import re

import pytest
from cli_recipe import SERVER, saved

from pact_lightning.cli.main import main
from pact_lightning.cli.plan_recipe import read_recipe


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data.init_args.prompts_per_phase": 3, "data.init_args.prompts_per_step": 2}, "must be a multiple of"),
        ({"data.init_args.resample_zero_variance": 1}, "set it to at least 2"),
        ({"data.init_args.overlap": True}, "data.overlap needs a sampler that keeps its own weights"),
        (
            {"data.init_args.overlap": True, **SERVER, "trainer.devices": 2, "data.init_args.prompts_per_step": 2},
            "data.overlap works with one process only",
        ),
        ({"data.init_args.temperature": 0.0}, "the sampling temperature must be above 0"),
        ({"trainer.devices": 3}, "cannot be split evenly over 3 processes"),
        ({"data.init_args.off_spec_share": 0.5}, "model.trace_template is 'turns'"),
        ({"data.init_args.limits": {"max_turns": 0}}, "max_turns"),
        ({"model.init_args.anchor_probability": 2.0}, "anchor_probability must be between 0 and 1"),
        ({"model.init_args.head_chunk": 0}, "count tokens; set both to at least 1"),
        ({"model.init_args.importance_cap": 0.5}, "importance_cap must be at least 1"),
        ({"model.init_args.objective": {"class_path": "pact_lightning.OPSD"}}, "trains the policy under the prompt"),
        ({**SERVER, "model.init_args.policy": {"adapter": "full"}}, "model.policy.adapter is 'full'"),
    ],
)
def test_what_fit_refuses_plan_refuses_in_the_same_words(tmp_path, capsys, changes, told):
    recipe = saved(tmp_path, changes)
    with pytest.raises(ValueError, match=re.escape(told)) as planned:
        read_recipe(["-c", recipe])
    if "trainer.devices" in changes:  # Lightning would start this very program again, once for each further process
        return
    with pytest.raises(SystemExit):
        main(["fit", "-c", recipe])
    assert str(planned.value) in capsys.readouterr().err
