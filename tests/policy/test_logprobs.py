"""Chunked log-probabilities equal the dense ones, values and gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pact_lightning.policy.logprobs import chunked_logprobs, token_logprobs
from pact_lightning.policy.packing import Block, pack_blocks


def dense(hidden, weight, targets, temperature):
    distribution = torch.distributions.Categorical(logits=hidden @ weight.T / temperature)
    return distribution.log_prob(targets), distribution.entropy()


def inputs(n, dim=6, vocab=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, dim, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, dim, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (n,), generator=generator)


@given(
    n=st.integers(1, 20), chunk=st.integers(1, 25), temperature=st.sampled_from([0.5, 1.0, 1.7]), entropy=st.booleans()
)
def test_chunked_equals_dense(n, chunk, temperature, entropy):
    hidden, weight, targets = inputs(n)
    ours = chunked_logprobs(hidden, weight, targets, temperature=temperature, chunk_size=chunk, with_entropy=entropy)
    logp, true_entropy = dense(hidden, weight, targets, temperature)
    factor = torch.linspace(-1, 2, n)
    loss, true_loss = (factor * ours.logp).sum(), (factor * logp).sum()
    torch.testing.assert_close(ours.logp, logp, rtol=1e-5, atol=1e-5)
    if entropy:
        torch.testing.assert_close(ours.entropy, true_entropy, rtol=1e-5, atol=1e-5)
        loss, true_loss = loss + (factor * ours.entropy).sum(), true_loss + (factor * true_entropy).sum()
    else:
        assert ours.entropy is None
    found = torch.autograd.grad(loss, [hidden, weight])
    torch.testing.assert_close(found, torch.autograd.grad(true_loss, [hidden, weight]), rtol=1e-4, atol=1e-5)


@given(n=st.integers(1, 20), chunk=st.integers(1, 25), temperature=st.sampled_from([0.5, 1.0]), bias=st.booleans())
def test_a_frozen_linear_head_passes_its_gradient_on_as_a_trained_one(n, chunk, temperature, bias):
    hidden, weight, targets = inputs(n)
    head = nn.Linear(6, 11, bias=bias)
    head.weight.data = weight.detach()
    factor = torch.linspace(-1, 2, n)
    logits = head(hidden) / temperature
    (expected,) = torch.autograd.grad((factor * -cross_entropy(logits, targets, reduction="none")).sum(), hidden)
    for trained in (True, False):
        head.requires_grad_(trained)
        found = chunked_logprobs(hidden, head, targets, temperature=temperature, chunk_size=chunk).logp
        (gradient,) = torch.autograd.grad((factor * found).sum(), hidden)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@given(
    factors=st.tuples(*[st.sampled_from([0.0, 1.0, -0.3])] * 2),
    temperature=st.sampled_from([0.5, 1.0]),
    frozen=st.booleans(),
)
def test_a_linear_heads_gradient_equals_that_of_a_head_which_is_run_by_autograd(factors, temperature, frozen):
    hidden, weight, targets = inputs(9)
    weight.requires_grad_(not frozen)
    wanted = [hidden] if frozen else [hidden, weight]
    found = []
    for head in (weight, lambda states: states @ weight.T):
        scores = chunked_logprobs(hidden, head, targets, temperature=temperature, chunk_size=4, with_entropy=True)
        loss = factors[0] * scores.logp.square().sum() + factors[1] * scores.entropy.square().sum()
        found.append([scores.logp, scores.entropy, *torch.autograd.grad(loss, wanted)])
    torch.testing.assert_close(*found)


def test_a_coarse_heads_weight_gradient_is_summed_over_chunks_in_float32():
    """1,000 chunks of one token: summed in bfloat16, small terms would be lost beside the sum so far."""
    targets = torch.zeros(1000, dtype=torch.long)
    hidden = torch.ones(1000, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    chunked_logprobs(hidden, weight, targets, chunk_size=1).logp.sum().backward()
    assert weight.grad.flatten().tolist() == [500.0, -500.0]


def test_a_worked_example():
    """Logits (ln 1, ln 3) give probabilities 1/4 and 3/4; at temperature 1/2 they give 1/10 and 9/10."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    one = chunked_logprobs(hidden, weight, torch.tensor([1]), with_entropy=True)
    assert one.logp.item() == pytest.approx(math.log(3 / 4))
    assert one.entropy.item() == pytest.approx(-(math.log(1 / 4) / 4 + 3 * math.log(3 / 4) / 4))
    cold = chunked_logprobs(hidden, weight, torch.tensor([0]), temperature=0.5)
    assert cold.logp.item() == pytest.approx(math.log(1 / 10))


@pytest.mark.parametrize("head", [lambda weight: weight, lambda weight: lambda states: states @ weight.T])
def test_gradients_by_finite_differences(head):
    hidden, weight, targets = inputs(5)
    temperature = torch.tensor([1.0, 0.7, 0.7, 1.0, 2.0], dtype=torch.float64)

    def both(h, w):
        scores = chunked_logprobs(h, head(w), targets, temperature=temperature, chunk_size=2, with_entropy=True)
        return scores.logp, scores.entropy

    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    assert torch.autograd.gradcheck(both, wide)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_each_token_may_have_a_temperature_of_its_own(own, frozen):
    """The same as two calls, one per temperature."""
    hidden, weight, targets = inputs(7)
    weight.requires_grad_(not frozen)
    head = weight if own else lambda states: states @ weight.T
    warm = torch.tensor([True, False, False, True, True, False, True])
    temperature = torch.where(warm, 0.7, 1.0)
    wanted = [hidden] if frozen else [hidden, weight]
    mixed = chunked_logprobs(hidden, head, targets, temperature=temperature, chunk_size=3).logp
    apart = torch.zeros(7)
    for where, value in ((warm, 0.7), (~warm, 1.0)):
        apart = apart.masked_scatter(
            where, chunked_logprobs(hidden[where], head, targets[where], temperature=value).logp
        )
    torch.testing.assert_close(mixed, apart)
    factor = torch.linspace(-1, 2, 7)
    found = [torch.autograd.grad((factor * logp).sum(), wanted) for logp in (mixed, apart)]
    torch.testing.assert_close(*found)


def test_a_head_module_with_bias_gets_its_gradient():
    hidden, _, targets = inputs(9)
    head = nn.Linear(6, 11)
    chunked_logprobs(hidden, head, targets, chunk_size=4).logp.sum().backward()
    found = [hidden.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    hidden.grad = None
    head.zero_grad()
    head(hidden).log_softmax(-1).gather(-1, targets[:, None]).sum().backward()
    torch.testing.assert_close(found, [hidden.grad, head.weight.grad, head.bias.grad], rtol=1e-4, atol=1e-5)


def test_very_unlikely_tokens_leave_entropy_and_gradient_finite():
    """Logits (0, -1000): the second token's probability is 0 in float32, and p log p is 0."""
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [-1000.0]], requires_grad=True)
    scores = chunked_logprobs(hidden, weight, torch.tensor([0]), with_entropy=True)
    assert scores.entropy.item() == 0.0
    for gradient in torch.autograd.grad(scores.entropy.sum(), [hidden, weight]):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("own", [True, False])
def test_only_one_chunk_of_logits_is_kept_at_a_time(own):
    """What autograd keeps for the backward pass does not hold a tensor with a vocabulary dimension."""
    hidden, weight, targets = inputs(32, vocab=64)
    head = weight if own else lambda states: states @ weight.T
    kept = []

    def pack(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_logprobs(hidden, head, targets, chunk_size=8, with_entropy=True)
    assert all(shape[-1:] != (64,) for shape in kept if len(shape) > 1), kept


def test_bfloat16_heads_give_float32_results():
    hidden, weight, targets = (tensor.detach() for tensor in inputs(6))
    low = chunked_logprobs(hidden.bfloat16(), weight.bfloat16(), targets, with_entropy=True)
    assert low.logp.dtype == low.entropy.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    torch.testing.assert_close(low.logp, logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0])


def test_no_tokens_give_no_values_and_a_backward_that_runs():
    hidden, weight, targets = inputs(0)
    scores = chunked_logprobs(hidden, weight, targets, with_entropy=True)
    assert scores.logp.shape == scores.entropy.shape == (0,)
    scores.logp.sum().backward()
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": 0.0}, "temperature above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature above 0, got nan"),
        ({"chunk_size": 0}, "at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    hidden, weight, targets = inputs(3)
    with pytest.raises(ValueError, match=sentence):
        chunked_logprobs(hidden, weight, targets, **settings)
    with pytest.raises(ValueError, match="3 hidden states were given for 2 targets"):
        chunked_logprobs(hidden, weight, targets[:2])


# token_logprobs


def tiny(attention="pact", **overrides):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, **overrides}
    return Qwen3ForCausalLM._from_config(Qwen3Config(**sizes), attn_implementation=attention)


def one_pack():
    return pack_blocks([Block([5, 6, 7, 8], [[9, 10, 11], [12]], read_prefix=True), Block([1], [[2, 3]])], 50)[0]


def test_masked_tokens_are_zero_and_the_rest_as_without_a_mask():
    model, pack = tiny(), one_pack()
    masks = [
        torch.tensor([True, False, True]),
        torch.tensor([False, True, True]),
        torch.zeros(1).bool(),
        torch.ones(2).bool(),
    ]
    everything = token_logprobs(model, pack, with_entropy=True, temperature=0.7)
    chosen = token_logprobs(model, pack, only=masks, with_entropy=True, temperature=0.7)
    for full, part, mask in zip(everything, chosen, masks, strict=True):
        torch.testing.assert_close(part.logp, full.logp * mask)
        torch.testing.assert_close(part.entropy, full.entropy * mask)
    assert (everything[0].logp < 0).all()


def test_the_head_runs_at_chosen_tokens_only():
    model, pack = tiny(), one_pack()
    seen = []
    model.lm_head.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    with torch.no_grad():
        token_logprobs(
            model, pack, only=[torch.tensor([True, False, False])] + [torch.ones(n).bool() for n in (3, 1, 2)]
        )
    assert sum(seen) == 1 + 3 + 1 + 2


def test_a_mask_that_chooses_nothing_gives_zeros():
    scores = token_logprobs(tiny(), one_pack(), only=[torch.zeros(n).bool() for n in (3, 3, 1, 2)])
    assert [score.logp.tolist() for score in scores] == [[0.0] * n for n in (3, 3, 1, 2)]


def test_tied_embeddings_get_the_gradient_of_both_their_uses():
    grads = []
    for attention in ("pact", "sdpa"):
        model = tiny(attention, tie_word_embeddings=True)
        if attention == "pact":
            loss = sum(
                score.logp.sum() for score in token_logprobs(model, pack_blocks([Block([4, 5], [[6, 7]])], 9)[0])
            )
        else:
            logp = model(torch.tensor([[4, 5, 6, 7]])).logits[0].log_softmax(-1)
            loss = logp[1, 6] + logp[2, 7]
        loss.backward()
        grads.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"give one \[R\] per read"):
        token_logprobs(tiny(), one_pack(), only=[torch.ones(3).bool()])


def test_a_head_that_bounds_its_logits_is_scored_as_the_model_does():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(**sizes, num_key_value_heads=1, head_dim=16, vocab_size=50)
    config.final_logit_softcapping = 0.5
    gemma = Gemma2ForCausalLM._from_config(config, attn_implementation="eager").float()
    (pack,) = pack_blocks([Block([4, 5, 6], [[7, 8, 9]])], 100)
    (score,) = token_logprobs(gemma, pack, with_entropy=True)
    row, targets = torch.tensor([[4, 5, 6, 7, 8, 9]]), torch.tensor([7, 8, 9])
    wanted = gemma(input_ids=row, use_cache=False).logits[0, 2:5].float().log_softmax(-1)
    torch.testing.assert_close(score.logp, wanted.gather(-1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score.entropy, -(wanted.exp() * wanted).sum(-1), rtol=1e-4, atol=1e-5)


def test_only_models_of_transformers_are_scored():
    with pytest.raises(ValueError, match="must be a transformers model"):
        token_logprobs(nn.Linear(2, 2), one_pack())
