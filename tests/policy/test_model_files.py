"""Folders that people bring: what is wrong with them, in one sentence, before weights are read."""

import json

import pytest
from family_tokenizers import byte_tokenizer
from test_text_layers import TEXT, config_of

from pact_lightning.cli.main import main
from pact_lightning.dialogue.families import make_renderer
from pact_lightning.policy.loading import PolicyConfig, load_policy, load_tokenizer, policy_skeleton

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def brought(folder, *, template=None, controls=CONTROLS, **fields):
    """A folder with a tiny model's configuration and tokenizer; a field of ``None`` is left out."""
    config = config_of("LlamaConfig", TEXT).to_dict() | {"architectures": ["LlamaForCausalLM"]} | fields
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    byte_tokenizer(controls, end=controls[-1], template=template).save_pretrained(folder)
    return PolicyConfig(model=str(folder))


REMOTE = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model_type": "no_such_model"}, "model type `no_such_model` but Transformers does not recognize"),
        ({"model_type": None, "architectures": None}, "Unrecognized model in"),
        (REMOTE, "code"),
    ],
)
def test_a_type_that_transformers_does_not_know_is_one_sentence(fields, why, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked at the terminal"))
    policy = brought(tmp_path / "model", **fields)
    for load in (policy_skeleton, load_policy):
        with pytest.raises(ValueError, match=r"cannot read the configuration of policy.model '.*Upgrade") as error:
            load(policy)
        assert why in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "agent"), "--model", policy.model])
    assert "cannot read the configuration of policy.model" in capsys.readouterr().err


def test_broken_files_are_named_as_such(tmp_path):
    policy = brought(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer of policy.model .* cannot be read: .*; copy tokenizer.json"):
        load_tokenizer(policy)
    for file in [*tmp_path.glob("tokenizer*"), *tmp_path.glob("*.jinja")]:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer; copy the model.s tokenizer.json"):
        load_tokenizer(policy)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OSError, match=r"a file of policy.model .* cannot be read: .*config.json.*; copy it again"):
        policy_skeleton(policy)


def test_init_asks_whether_the_model_can_be_trained(tmp_path, capsys):
    vision = config_of("Qwen3VLConfig", {}).to_dict()
    for fields, told in (
        (vision, "give the text model of this family"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "come quantised by gptq"),
    ):
        policy = brought(tmp_path / "model", **fields)
        with pytest.raises(SystemExit):
            main(["init", str(tmp_path / "agent"), "--model", policy.model])
        assert told in capsys.readouterr().err
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('only users speak') }}", "only users speak"),
        ("{{ 1 // 0 }}", "division"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion depth"),
        ("{{ messages | nothing }}", "No filter named 'nothing'. The policy"),
    ],
)
def test_a_template_that_fails_is_refused_with_its_own_words(template, why):
    tokenizer = byte_tokenizer(CONTROLS, end="<|im_end|>", template=template)
    with pytest.raises(ValueError, match="does not render a user message: ") as error:
        make_renderer(tokenizer)
    assert why in str(error.value)


def test_a_tokenizer_without_control_tokens_is_refused(tmp_path):
    tokenizer = load_tokenizer(brought(tmp_path, controls=("<|end|>",), template="{{ messages }}"))
    with pytest.raises(ValueError, match="has the control tokens of no known format; take a model of one of these"):
        make_renderer(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"the tokenizer has no '<\|im_end\|>' token"):
        make_renderer(tokenizer, model_type=lambda: "qwen3")
