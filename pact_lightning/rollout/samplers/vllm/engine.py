"""Sampler backend by a vLLM engine in the same process, asleep while the policy is trained."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from pact_lightning.policy.loading import PolicyConfig, policy_source
from pact_lightning.rollout.samplers.base import LentPolicy, Sampler, SamplingConfig, TurnOutput, TurnRequest
from pact_lightning.rollout.samplers.vllm.quantized_base import NF4_ARGUMENTS, check_nf4, check_plugin
from pact_lightning.rollout.samplers.vllm.turns import VLLMTurns, check_has_adapter, saved_adapter


class VLLMEngine:
    """vLLM engine beside the policy on the same GPU, made at the first rollouts and asleep between them.

    Asleep it has its weights in the machine's memory and no key-value cache, which leaves the GPU to the training. On a
    CPU vLLM does not sleep. The base is loaded once; only the adapter is handed over, never merged.

    Args:
        base: Folder or hub id of the base to sample from, if it is not the policy's own ``model``. It is taken as it
            is, and not quantised.
        quantize_base: Whether the base of a QLoRA is quantised to NF4 in vLLM too, as the trainer has it; ``False``
            samples it in 16 bits. Of no effect with ``adapter: lora`` or a ``base``.
        gpu_memory_utilization: Share of the GPU's memory that vLLM may take while it is awake, beside the policy.
        sleep_level: 1 sleeps between the rollouts; 0 stays awake, for a GPU with room for both. There is no level 2,
            which throws the weights away: the base is loaded once and never sent again.
        max_model_len: Most tokens of a dialogue, prompt included; ``None`` for the model's own limit.
        engine_args: Further arguments of ``vllm.LLM``.

    Raises:
        ValueError: There is no such level of sleep.
    """

    def __init__(
        self,
        *,
        base: str | None = None,
        quantize_base: bool = True,
        gpu_memory_utilization: float = 0.4,
        sleep_level: int = 1,
        max_model_len: int | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        if sleep_level not in (0, 1):
            raise ValueError(
                f"sampler.sleep_level must be 0 (stays awake) or 1 (its weights wait in the machine's memory), not "
                f"{sleep_level}: vLLM's level 2 throws the base away, which is loaded once and never sent again"
            )
        self.base = base
        self.quantize_base = quantize_base
        self.sleep_level = sleep_level
        self.gpu_memory_utilization = gpu_memory_utilization
        self.max_model_len = max_model_len
        self.engine_args = dict(engine_args or {})
        self._llm: Any = None

    def check(self, config: PolicyConfig) -> None:
        """Check that vLLM is here and can sample from the policy.

        Raises:
            ImportError: vLLM is missing or too old for a 4-bit base, or its plugin is missing.
            ValueError: The policy has no adapter, is a GGUF file, or its 4-bit base would differ in vLLM.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ImportError("sampling by a vLLM engine needs vLLM: pip install 'pact-lightning[vllm]'")
        self.check_policy(config)
        if self.in_nf4(config):
            check_plugin()

    def check_policy(self, config: PolicyConfig) -> None:
        """Check that vLLM can sample from the policy, wherever that will be.

        Raises:
            ValueError: The policy has no adapter, is a GGUF file, or its 4-bit base would differ in vLLM.
        """
        check_has_adapter(config)
        if config.gguf_file is not None and self.base is None:
            raise ValueError(
                f"the vLLM engine does not read the GGUF file {config.gguf_file}; save the model with save_pretrained, "
                "and give that folder as model.policy.model"
            )
        if self.in_nf4(config):
            check_nf4(config)

    @contextmanager
    def lend(self, policy: LentPolicy, sampling: SamplingConfig) -> Iterator[Sampler]:
        """Wake the engine, lend a sampler for the policy's adapter, and put the engine to sleep again."""
        from vllm.lora.request import LoRARequest

        torch.cuda.empty_cache()  # memory that training has freed, but torch's allocator still holds
        if self._llm is None:
            self._llm = self._make(policy.config)
        elif self._sleeps:
            self._llm.wake_up()
        engine = self._llm.llm_engine
        try:
            with saved_adapter(policy.model) as version:
                lora = LoRARequest(version.name, version.number, str(version.folder))
                engine.add_lora(lora)
                sampler = _EngineSampler(engine, lora, VLLMTurns(policy.stop_ids, sampling))
                try:
                    yield sampler
                finally:
                    sampler.abort()
                    engine.remove_lora(version.number)
        finally:
            if self._sleeps:
                self._llm.sleep(level=self.sleep_level)

    @property
    def _sleeps(self) -> bool:
        return self.sleep_level > 0 and torch.cuda.is_available()

    def in_nf4(self, config: PolicyConfig) -> bool:
        """Return whether vLLM quantises the base of a policy to 4 bits."""
        return config.adapter == "qlora" and self.quantize_base and self.base is None

    def arguments(self, config: PolicyConfig) -> dict[str, Any]:
        """Return the arguments of ``vllm.LLM`` for a policy.

        Args:
            config: Configuration of the policy.
        """
        settings: dict[str, Any] = {
            "model": self.base or policy_source(config),
            "dtype": config.dtype,
            "skip_tokenizer_init": True,
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": _vllm_rank(config.lora_r),
            "logprobs_mode": "processed_logprobs",  # at the temperature of the draws
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_sleep_mode": self._sleeps,
        }
        return settings | (NF4_ARGUMENTS if self.in_nf4(config) else {}) | self.engine_args

    def _make(self, config: PolicyConfig) -> Any:
        # A second process would cost copies, and a killed run could leave it behind.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        with isolate_rng():  # vLLM would seed the trainer's generators with its own seed
            return LLM(**self.arguments(config))


class _EngineSampler:
    """Sampler that steps the engine token by token."""

    def __init__(self, engine: Any, lora: Any, turns: VLLMTurns) -> None:
        self._engine = engine
        self._lora = lora
        self._turns = turns
        self._row_of: dict[str, int] = {}
        self._requests = 0

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Add turns to the engine."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        for request in requests:
            name = f"{self._lora.lora_name}-{self._requests}"
            self._requests += 1
            self._row_of[name] = request.row
            params = SamplingParams(
                **self._turns.fields(request), detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
            )
            prompt = {"prompt_token_ids": self._turns.open(request)}
            self._engine.add_request(name, prompt, params, lora_request=self._lora)

    def step(self) -> list[TurnOutput]:
        """Advance all turns by a token and return those that ended."""
        outputs = []
        for output in self._engine.step() if self._row_of else []:
            if output.finished:
                (completion,) = output.outputs
                ids = list(completion.token_ids)
                logps = [entry[token].logprob for entry, token in zip(completion.logprobs, ids, strict=True)]
                outputs.append(self._turns.close(self._row_of.pop(output.request_id), ids, logps))
        return outputs

    def release(self, row: int) -> None:
        """Forget a finished row."""
        self._turns.release(row)

    def abort(self) -> None:
        """Abort the turns that an error has left in work."""
        if self._row_of:
            self._engine.abort_request(list(self._row_of))


def _vllm_rank(rank: int) -> int:
    """Return the smallest rank with kernels in vLLM that an adapter of this rank fits into."""
    return next((allowed for allowed in (8, 16, 32, 64, 128, 256, 320, 512) if allowed >= rank), rank)
