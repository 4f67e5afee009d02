"""A trained policy as files that other programs load.

In: a run's checkpoint or a live policy (:mod:`~pact_lightning.export.trained`). Out: a folder with weights, tokenizer,
chat template, generation config and model card (:mod:`~pact_lightning.export.folder`), as a model, an adapter or a GGUF
file, and on request a repository of the hub.

Read ``trained.py``, ``policy_renderer.py`` (the format that the policy was trained in), ``folder.py``, ``card.py``,
then ``gguf_file.py`` and ``push.py``.
"""
