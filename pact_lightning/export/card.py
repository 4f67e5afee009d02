"""Model card of an export: what the policy is, how to load it, how it was trained, and its scores before and after."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pact_lightning.export.trained import TrainedPolicy
from pact_lightning.policy.loading import BUNDLED, PolicyConfig, compute_dtype
from pact_lightning.utils.commit import package_commit
from pact_lightning.utils.text import counted

CardForm = Literal["merged", "adapter", "gguf"]

TAG = "pact-lightning"
"""Tag of every card, by which a folder is known as an export."""
_SHOWN = ("answer_correct", "solve_f1", "solve_p", "solve_r", "answered", "turns", "calls", "malformed_call")
"""Scores of the card; a metric of the user's own follows."""
_UNTOLD = re.compile(r"stop_\w+|no_call|failed_call|unknown_tool|unique_calls")
_TRAINER = ("accelerator", "devices", "strategy", "precision", "max_epochs", "max_steps", "max_time", "callbacks")
_PRIVATE = re.compile(
    r"headers|env|base_url|\w*(key|token|secret|password)(_env)?|save_dir|dirpath|folder|console_kwargs|theme"
)
"""Fields that may hold a secret or an address, or that name a place of this machine."""
_PATH = re.compile(r"(?<![\w.:/])(?:~/|/|[A-Za-z]:\\)[^\s\"',;]+")


def model_card(trained: TrainedPolicy, form: CardForm, name: str) -> ModelCard:
    """Make the card.

    It names no path of this machine and no value of a field that may be a secret.

    Args:
        trained: The policy.
        form: What lies beside the card.
        name: Name of the model: a repository of the hub, or a folder's.
    """
    base = base_name(trained.config)
    data = ModelCardData(
        base_model=base if is_hub_id(trained.config) else None,
        library_name={"adapter": "peft", "merged": "transformers", "gguf": "gguf"}[form],
        pipeline_tag="text-generation",
        tags=[TAG, "tool-use", "reinforcement-learning", trained.config.adapter],
        model_name=name,
        eval_results=list(_results(trained)) or None,
    )
    parts = [
        f"# {name}",
        f"A language model that uses tools over several turns: {base}, trained by `{trained.method}` of "
        f"`pact-lightning` (PACT, [arXiv 2606.16215](https://arxiv.org/abs/2606.16215)).",
        *_use(trained, form, name),
        *_training(trained),
        *_scores(trained),
        *_recipe(trained.recipe),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def base_name(config: PolicyConfig) -> str:
    """Return the name of the base: a hub id, or the last part of a folder's path."""
    if config.model == BUNDLED:
        return "the small policy that comes with pact-lightning"
    return _folder(config)


def is_hub_id(config: PolicyConfig) -> bool:
    """Return whether the base is a model of the hub and no folder here."""
    return config.model != BUNDLED and not Path(config.model).expanduser().exists()


def is_export(folder: Path) -> bool:
    """Return whether a folder holds an export with its card."""
    card = folder / "README.md"
    return card.is_file() and TAG in (ModelCard.load(card, ignore_metadata_errors=True).data.tags or ())


def _use(trained: TrainedPolicy, form: CardForm, name: str) -> Iterator[str]:
    yield "## Use"
    if form == "gguf":
        yield "```sh\nllama-server -m model.gguf --jinja\n```"
    else:
        yield f"```python\n{_program(trained.config, form, name)}```"
    yield (
        "The chat template is the format that the policy was trained in: tools in the system turn, calls as JSON "
        "between `<tool_call>` and `</tool_call>`, responses as messages of the role `tool`. Thinking "
        "(`reasoning_content`) of earlier turns stays in the messages, as it did in training. The generation config "
        "has the tokens at which a turn ends, and samples as the policy was scored."
    )


def _program(config: PolicyConfig, form: CardForm, name: str) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f'name = "{name}"']
    load = ["model = AutoModelForCausalLM.from_pretrained(name)"]
    if form == "adapter":
        dtype = f"dtype={compute_dtype(config)}"
        lines = ["import torch", "from peft import PeftModel", *lines]
        lines[2] += ", GenerationConfig"
        if config.adapter == "qlora":
            lines[2] += ", BitsAndBytesConfig"
            load = [
                "nf4 = BitsAndBytesConfig(",
                '    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,',
                f"    bnb_4bit_compute_{dtype},",
                ")",
            ]
            dtype += ", quantization_config=nf4"
        else:
            load = []
        lines.append(f'base = "{_folder(config)}"' + ("" if is_hub_id(config) else "  # where the base model is"))
        load += [
            f"model = AutoModelForCausalLM.from_pretrained(base, {dtype})",
            "model = PeftModel.from_pretrained(model, name)",
            "model.generation_config = GenerationConfig.from_pretrained(name)",
        ]
    ask = [
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        'asked = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_tensors="pt")',
        'reply = model.generate(**asked, max_new_tokens=512)[0, asked["input_ids"].shape[1] :]',
        "print(tokenizer.decode(reply))",
    ]
    return "\n".join([*lines, "", *load, *ask, ""])


def _folder(config: PolicyConfig) -> str:
    if config.model == BUNDLED:
        return "pact_lightning/tasks/bundled/policy"
    return config.model if is_hub_id(config) else Path(config.model).expanduser().resolve().name


def _training(trained: TrainedPolicy) -> Iterator[str]:
    config = trained.config
    weights = {"lora": "LoRA", "qlora": "LoRA on a base in 4 bits (NF4)", "full": "all weights"}[config.adapter]
    if config.adapter != "full":
        weights += f", rank {config.lora_r}, alpha {config.lora_alpha}"
    commit = package_commit()
    rows = {
        "method": f"`{trained.method}`",
        "trained weights": weights,
        "phases": trained.phases,
        "optimiser steps": trained.steps,
        **{f"{split} tasks": source for split, source in _sources(trained.recipe)},
        "pact-lightning": f"{version('pact-lightning')}" + ("" if commit is None else f", commit {commit}"),
    }
    yield "## Training"
    yield _table(("", ""), [(name, str(value)) for name, value in rows.items()])


def _sources(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    arguments = (recipe.get("data") or {}).get("init_args") or {}
    for split in ("train", "validation"):
        source = arguments.get(split)
        if isinstance(source, Mapping):
            given = {key: value for key, value in (cleaned(source.get("init_args")) or {}).items() if value is not None}
            yield split, f"`{source.get('class_path')}` " + ", ".join(f"{key}={value}" for key, value in given.items())


def _scores(trained: TrainedPolicy) -> Iterator[str]:
    if not trained.history:
        yield "## Scores"
        yield "The run had no validation, so there are no scores."
        return
    (first, before), (last, after) = trained.history[0], trained.history[-1]
    how = (((trained.recipe.get("data") or {}).get("init_args") or {}).get("evaluation")) or {}
    temperature = how.get("temperature", 0.0)
    sampled = f"temperature {temperature:g}, {how.get('samples', 1)} rollouts a task" if temperature else "greedy"
    of = "" if trained.tasks is None else f"{counted(trained.tasks, 'task')}, "
    yield "## Scores"
    yield f"Validation: {of}{sampled}, from the prompt alone."
    if len(trained.history) == 1:
        yield _table(("metric", _after(first)), [(name, f"{before[name]:.3f}") for name in _told(before)])
        return
    head = ("metric", "before" if first == 0 else _after(first), _after(last))
    names = [name for name in _told(after) if name in before]
    yield _table(head, [(name, f"{before[name]:.3f}", f"{after[name]:.3f}") for name in names])


def _told(scores: Mapping[str, float]) -> list[str]:
    own = [name for name in scores if name not in _SHOWN and not _UNTOLD.fullmatch(name)]
    return [name for name in (*_SHOWN, *own) if name in scores and scores[name] == scores[name]]


def _results(trained: TrainedPolicy) -> Iterator[EvalResult]:
    if trained.history:
        sources = dict(_sources(trained.recipe))
        dataset = sources.get("validation", "validation tasks").split("`")[1:2] or ["validation tasks"]
        for name in _told(trained.history[-1][1]):
            yield EvalResult(
                task_type="text-generation",
                task_name="multi-turn tool use",
                dataset_type="tasks",
                dataset_name=dataset[0].rpartition(".")[2],
                metric_type=name,
                metric_value=round(trained.history[-1][1][name], 4),
            )


def _recipe(recipe: Mapping[str, Any]) -> Iterator[str]:
    parts = {name: recipe[name] for name in ("seed_everything", "model", "data") if name in recipe}
    trainer = {name: value for name, value in (recipe.get("trainer") or {}).items() if name in _TRAINER}
    text = yaml.safe_dump(cleaned(parts | ({"trainer": trainer} if trainer else {})), sort_keys=False)
    yield "## Recipe"
    yield "Fields that name a place, an address or a secret are left out."
    yield f"```yaml\n{text.rstrip()}\n```"


def cleaned(value: Any) -> Any:
    r"""Return a recipe's value without null fields, secrets and paths of this machine.

    >>> cleaned({"path": "/home/me/tasks.jsonl", "env": {"KEY": "x"}, "count": 3, "limit": None})
    {'path': 'tasks.jsonl', 'count': 3}
    >>> cleaned("at ~/runs and C:\\data, about ~5 km / h of https://example.org/a")
    'at runs and data, about ~5 km / h of https://example.org/a'
    """
    if isinstance(value, Mapping):
        kept = {str(key): cleaned(inner) for key, inner in value.items() if not _PRIVATE.fullmatch(str(key))}
        return {key: inner for key, inner in kept.items() if inner is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [cleaned(inner) for inner in value]
    if isinstance(value, str):
        return _PATH.sub(lambda found: re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], value)
    return value


def _after(phases: float) -> str:
    return f"after {phases:g} phase{'' if phases == 1 else 's'}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
