"""Where in a phase a checkpoint stands, and Lightning's progress counters put so that it goes on from exactly there.

Lightning resumes well from the end of an epoch. From the middle of one it leaves out ``on_train_epoch_start`` (which
sets the supervision), counts a step once more or once less, and skips a validation that was cut short, each depending
on the hook in which the checkpoint was written. Here a checkpoint written anywhere is put into one of two forms:

- the phase has made no step: as if the phase before had just ended;
- the phase has made ``steps`` steps: as if the epoch were about to start with so many batches done.
"""

from collections.abc import MutableMapping
from typing import Any

Loops = MutableMapping[str, Any]
_EPOCHS = "epoch_progress"
_BATCHES = "epoch_loop.batch_progress"
_STATE = "epoch_loop.state_dict"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def steps_done(loops: Loops) -> int | None:
    """Batches that the phase in work has done; ``None`` where no phase is in work."""
    # Not "current": a run that was resumed within a phase leaves one phase out of that counter, to its end.
    epochs = loops[_EPOCHS]["total"]
    if epochs["ready"] == epochs["processed"]:
        return None
    return int(loops[_BATCHES]["current"]["processed"])


def in_batch_end(loops: Loops) -> bool:
    """Whether the checkpoint is written in ``on_train_batch_end``, before the step is counted and logged."""
    batches = loops[_BATCHES]["current"]
    return bool(batches["completed"] < batches["processed"])


def settle(loops: Loops, *, phase_steps: int, validates: bool) -> None:
    """Puts the counters of a fit loop in order; where no phase is in work they are, but for one.

    Args:
        loops: The fit loop's state, changed in place.
        phase_steps: Batches of a phase.
        validates: Whether a validation follows this phase's last batch.
    """
    steps = steps_done(loops)
    if steps is None:
        # The phase that was left out; Lightning would take it for unfinished.
        loops[_EPOCHS]["current"]["ready"] = loops[_EPOCHS]["current"]["processed"]
        return
    last = steps == phase_steps
    if in_batch_end(loops) and not (last and validates):  # what follows a validation is counted on the way there
        loops[_STATE]["_batches_that_stepped"] += 1
    for counter in ("total", "current"):
        batches, epochs = loops[_BATCHES][counter], loops[_EPOCHS][counter]
        batches["ready"] = batches["started"] = batches["completed"] = batches["processed"]
        epochs["started"] = epochs["completed"] = epochs["processed"]
        epochs["ready"] = epochs["processed"] + (1 if steps else 0)
    loops[_BATCHES]["is_last_batch"] = last
    validation = loops[_VALIDATION]
    if last and validates and not validation["total"]["completed"]:
        for counter in ("total", "current"):  # begun and not ended, which makes Lightning run it
            validation[counter] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
