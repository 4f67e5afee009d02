"""Checks, the most valuable ones first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Check in a process of its own.

    Attributes:
        name: Its name, of the log too.
        what: What it shows.
        seconds: What it takes on a card, about; it is not begun with less time left.
        limit: Seconds after which it is ended.
        tests: Files of tests; those marked ``gpu`` are run, with ``--cpu`` the others.
        module: Module of this folder whose ``run`` is the check, where it is no test.
        argument: Passed to ``run``.
        alone: Whether nothing may run beside it, since it measures time or memory.
        only_a_card: What its run on a CPU does not show.
    """

    name: str
    what: str
    seconds: int
    limit: int
    only_a_card: str
    tests: tuple[str, ...] = ()
    module: str = ""
    argument: str = ""
    alone: bool = False


CHECKS: tuple[Check, ...] = (
    Check(
        "machine",
        "packages, products, NF4, torch.compile and pinned memory work",
        25,
        75,
        "that the driver, Triton's compiler, bitsandbytes' CUDA library and pinned memory work",
        module="machine",
        alone=True,
    ),
    Check(
        "gradients",
        "losses and gradients of two_calls, flex, rows, memory savers, NF4 and head are those of plain rows on a CPU",
        70,
        150,
        "CUDA's attention kernels, FlexAttention's backward pass, bitsandbytes' CUDA kernels",
        tests=("tests/policy/test_device_gradients.py", "tests/training/test_flex_attention.py"),
    ),
    Check(
        "resume",
        "interrupted runs end as undisturbed ones; checkpoints go from CPU to CUDA and back; 8-bit Adam",
        70,
        150,
        "CUDA's random numbers (dropout), its order of sums, 8-bit moments on a card, going from device to device",
        tests=("tests/resume/test_device_resume.py",),
    ),
    Check(
        "sampler",
        "rollouts draw the CPU's tokens; greedy is what transformers generates; sandboxed tools beside CUDA",
        30,
        90,
        "CUDA's kernels for cached attention and 4-bit products of few rows, processes beside a CUDA context",
        tests=("tests/rollout/test_device_sampler.py",),
    ),
    Check(
        "quickstart_lora",
        "the quickstart with a LoRA in bfloat16: three phases, interrupted after the first",
        50,
        120,
        "a whole fit, its validations and metrics on CUDA",
        module="quickstart",
        argument="lora",
    ),
    Check(
        "quickstart_qlora",
        "the same with a QLoRA, two phases",
        45,
        120,
        "a whole fit on 4-bit weights on CUDA",
        module="quickstart",
        argument="qlora",
    ),
    Check(
        "quickstart_full",
        "the same with all weights in float32 and 8-bit Adam, two phases",
        45,
        120,
        "a whole fit of all weights, its reference copy and 8-bit moments on CUDA",
        module="quickstart",
        argument="full",
    ),
    Check(
        "qlora_4b",
        "QLoRA on a Qwen3-4B of random weights: memory under 24 GiB, time and utilisation, beside TRL and the plan",
        90,
        180,
        "memory, time and utilisation: the CPU runs a tiny shape",
        module="qlora_4b",
        alone=True,
    ),
    Check(
        "plan_memory",
        "peaks that `plan` foretells, beside measured ones",
        35,
        90,
        "peaks of a card: on a CPU the row plan_error of `make bench` measures them",
        module="plan_memory",
        alone=True,
    ),
    Check(
        "rollouts_4b",
        "sampled tokens per second beside transformers.generate",
        45,
        100,
        "speed: the CPU runs a tiny shape",
        module="rollouts_4b",
        alone=True,
    ),
    Check(
        "smollm2",
        "ten phases of SmolLM2-135M on the bundled world, where its file is in .gpu",
        75,
        150,
        "a pretrained policy in training on CUDA",
        module="smollm2",
        alone=True,
    ),
    Check(
        "vllm_nf4",
        "a vLLM engine beside a QLoRA: mismatch with its base in NF4 and in 16 bits, asleep between two phases",
        150,
        300,
        "sleep, waking up, CUDA's 4-bit kernels in vLLM",
        module="vllm_nf4",
        alone=True,
    ),
)
