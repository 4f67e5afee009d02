"""End tokens: every one that the model names ends a turn, belongs to no answer, and leaves a stream that goes on."""

import json
import shutil

import pytest
import torch
from hand_made import FULL, bundled_renderer
from rollout_player import bench_prompt, log, play, play_one
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pact_lightning.dialogue.rendering import ChatRenderer
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.policy.loading import BUNDLED_FOLDER, PolicyConfig, load_end_ids, load_tokenizer
from pact_lightning.rollout.engine import RolloutEngine, RolloutLimits, RolloutRequest
from pact_lightning.rollout.samplers.base import SamplingConfig, TurnRequest
from pact_lightning.rollout.samplers.transformers_sampler import TransformersSampler
from pact_lightning.rollout.samplers.vllm.turns import VLLMTurns
from pact_lightning.training.pact_module import PACTModule
from pact_lightning.types.prompt import UserTurn
from pact_lightning.types.trajectory import Component, StopReason
from pact_lightning.update.optimizer import OptimizerConfig

CODEC = TextCodec(load_tokenizer(FULL))
IM_END, TEXT_END = CODEC.control_id("<|im_end|>"), CODEC.control_id("<|endoftext|>")
RENDERER = ChatRenderer(CODEC, [IM_END, TEXT_END])


def line(text, end=TEXT_END):
    return [*CODEC.control(text), end]


@pytest.fixture
def folder(tmp_path):
    """The bundled policy's shape, with weights that always give ``<|endoftext|>``."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BUNDLED_FOLDER))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.get_input_embeddings().weight.fill_(0.1)
        model.get_output_embeddings().weight[TEXT_END] = 1.0
        model.model.norm.weight.fill_(1.0)
    model.generation_config = GenerationConfig(eos_token_id=[IM_END, TEXT_END])
    model.save_pretrained(tmp_path)
    load_tokenizer(FULL).save_pretrained(tmp_path)
    return tmp_path


def test_every_end_token_of_the_model_is_known(folder):
    policy = PolicyConfig(model=str(folder), adapter="full", dtype="float32")
    assert load_end_ids(policy) == (IM_END, TEXT_END)
    module = PACTModule(policy=policy, optimizer=OptimizerConfig())
    module.configure_model()
    assert module._lent(module.model).stop_ids == tuple(sorted((IM_END, TEXT_END)))
    greedy = SamplingConfig(greedy=True)
    with module.sampler(greedy, 1024) as sampler:
        limits = RolloutLimits(max_new_tokens_per_turn=12)
        [[rollout]], _ = RolloutEngine(module.renderer, limits).run([RolloutRequest(bench_prompt(), 1, 0)], sampler)
    # As transformers' own generate stops.
    prompt = torch.tensor([rollout.prompt_ids])
    generated = AutoModelForCausalLM.from_pretrained(folder).generate(prompt, max_new_tokens=12, do_sample=False)
    assert rollout.ids().tolist() == generated[0, prompt.shape[1] :].tolist() == [TEXT_END]
    assert (rollout.stop_reason, rollout.final_answer) == (StopReason.ANSWERED, "")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": 7}}, (7,)),
        ({"generation_config.json": {"eos_token_id": [7, 8]}}, (7, 8)),
        ({"generation_config.json": {"eos_token_id": None}}, ()),
        ({"generation_config.json": {}}, ()),
        ({}, (1381,)),
    ],
)
def test_end_tokens_stand_in_the_generation_config_else_in_the_model_s(tmp_path, files, expected):
    shutil.copy(BUNDLED_FOLDER / "config.json", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert load_end_ids(PolicyConfig(model=str(tmp_path))) == expected


def test_a_broken_generation_config_is_not_passed_over(tmp_path):
    shutil.copy(BUNDLED_FOLDER / "config.json", tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(OSError, match="generation_config"):
        load_end_ids(PolicyConfig(model=str(tmp_path)))


@pytest.mark.parametrize("end", [IM_END, TEXT_END])
def test_no_end_token_is_part_of_an_answer(end):
    ids = line("<think>\nHm.\n</think>\n\n<answer>3</answer>", end)
    turn = RENDERER.read_turn(ids)
    assert (turn.reasoning, turn.answer) == ("Hm.", "<answer>3</answer>")
    assert not turn.text.endswith("|>")
    assert [Component(kind) for kind in RENDERER.components(ids).tolist()[-2:]] == [
        Component.ANSWER,
        Component.DELIMITER,
    ]


def test_after_another_end_token_the_turn_is_closed_as_context():
    """The sampled token stays, and what follows extends it; the policy never sampled the ``<|im_end|>``."""
    lines = [line(log("x")), line(log("y"), IM_END), line("done")]
    results, _, player = play(RENDERER, [bench_prompt()], lines)
    rollout = results[0][0]
    assert rollout.final_answer == "done"
    first, second = (segment for segment in rollout.segments if segment.component is Component.OBSERVATION)
    assert first.ids == (IM_END, *RENDERER.observation(["x"]))
    assert list(second.ids) == RENDERER.observation(["x y"])
    stream = [*rollout.prompt_ids, *rollout.ids()]
    assert CODEC.decode(stream).count("</tool_call><|endoftext|><|im_end|>\n<|im_start|>user\n<tool_response>") == 1
    # What the sampler got is the stream, piece by piece.
    sent = [ids for batch in player.log for _, ids, _ in batch]
    assert [*sent[0], *lines[0], *sent[1], *lines[1], *sent[2], *lines[2]] == stream
    assert len(rollout.sampled_logps) == sum(map(len, lines)) == rollout.policy_mask().sum()


def test_a_user_turn_after_another_end_token_closes_it_too():
    user = UserTurn("And now?")
    assert RENDERER.user_turn(user, after=[TEXT_END]) == [IM_END, *RENDERER.user_turn(user)]
    assert RENDERER.user_turn(user, after=[IM_END]) == RENDERER.user_turn(user)


def test_vllm_is_told_every_end_token_and_ends_at_each():
    turns = VLLMTurns(sorted(RENDERER.end_ids), SamplingConfig())
    request = TurnRequest(0, [1, 2], 9, 0)
    assert turns.open(request) == [1, 2]
    assert set(turns.fields(request)["stop_token_ids"]) == {IM_END, TEXT_END}
    assert turns.close(0, [5, TEXT_END], [-0.1, -0.2]).finished
    assert turns.open(TurnRequest(0, [IM_END, 3], 9, 1)) == [1, 2, 5, TEXT_END, IM_END, 3]


def test_a_tokenizer_s_own_end_token_counts_without_being_named():
    assert bundled_renderer().end_ids == {IM_END}
    tokenizer = load_tokenizer(FULL)
    tokenizer.eos_token = "<|endoftext|>"
    assert ChatRenderer(TextCodec(tokenizer)).end_ids == {IM_END, TEXT_END}


def test_a_sampler_feeds_on_after_any_end_token(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="pact", dtype=torch.float32).eval()
    sampler = TransformersSampler(model, sorted(RENDERER.end_ids), SamplingConfig(greedy=True))
    for seed, ids in enumerate([[1, 2, 3], [IM_END, 4]]):
        sampler.submit([TurnRequest(0, ids, 5, seed)])
        assert [(output.ids, output.finished) for output in sampler.step()] == [([TEXT_END], True)]
    assert play_one(RENDERER, line(""))[0].final_answer == ""
