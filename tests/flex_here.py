"""FlexAttention on a CPU, backward pass and all: torch refuses that there, since it has no kernel that is fast."""

import torch
from torch.nn.attention.flex_attention import flex_attention

from pact_lightning.policy.attention import choice as attention_choice
from pact_lightning.policy.attention import flex as own


def let_flex_run_here(monkeypatch, backend=None):
    """As torch runs it without a compiler, or traced and compiled by one of torch's plain backends."""
    kernel = (
        flex_attention
        if backend is None
        else torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)
    )
    monkeypatch.setattr(own, "compiled_kernel", lambda: kernel)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda query, key, value: None)
    monkeypatch.setattr(own.FlexPlan, "available", staticmethod(lambda device: True))
    monkeypatch.setattr(attention_choice, "check_path", lambda path, device_type: None)
