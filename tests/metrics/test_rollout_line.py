"""What is said of a phase's rollouts."""

import pytest

from pact_lightning.metrics.rollout_figures import rollout_line

FIGURES = {"reward": 1.5, "answered": 0.25, "turns": 2.0, "calls": 1.25, "zero_variance": 0.5, "seconds": 3.0}
FIGURES |= {"prompts": 20.0, "resampled": 0.0, "staleness": 0.0}


@pytest.mark.parametrize(
    ("steps", "told"), [(0, ""), (1, ", weights were 1 step old"), (4, ", weights were 4 steps old")]
)
def test_it_says_how_old_the_weights_were(steps, told):
    figures = {f"rollout/{name}": value for name, value in (FIGURES | {"staleness": steps}).items()}
    assert rollout_line(3, figures) == (
        "phase 3: mean reward 1.50, 25% answered, 2.0 turns and 1.2 calls each, 50% of prompts "
        "gave no learning signal (all rollouts scored the same), "
        f"rollouts took 3.0 s{told}"
    )


def test_it_says_how_many_prompts_were_replaced():
    figures = {f"rollout/{name}": value for name, value in (FIGURES | {"resampled": 4.0}).items()}
    assert "(all rollouts scored the same), 4 of 20 prompts replaced, rollouts took 3.0 s" in rollout_line(0, figures)
