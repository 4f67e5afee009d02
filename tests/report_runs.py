"""Runs as they lie on the disk, made by hand in a moment: the files that a fit of the bundled world leaves."""

import json

import yaml

from pact_lightning.tasks.bundled.tasks import make_task

BUNDLED = {"class_path": "pact_lightning.BundledTasks"}
METRICS = (
    "step,epoch,train/loss,train/sft_loss,rollout/reward,rollout/stop_answered,anneal/level,time/decode,val/solve_f1"
)
METRICS += """
0,,,,,,,,0.25
0,0,1.5,0.5,,,,,
1,0,1.25,0.25,,,,,
1,0,,,1.5,1.0,4.0,2.5,
2,1,1.0,0.5,,,,,
3,1,nan,0.25,,,,,
3,1,,,2.5,0.75,2.0,3.5,
3,1,,,,,,,0.75
"""


def config(**further):
    """The part of a ``config.yaml`` that the page asks for."""
    sources = {name: BUNDLED | {"init_args": {"split": name, "count": 40}} for name in ("train", "validation")}
    policy = {"model": "bundled", "adapter": "lora"}
    return {"seed_everything": 0, "model": {"init_args": {"policy": policy}}, "data": {"init_args": sources}} | further


def rollout(task, sample=0, *, right=True, text=None, **further):
    """A record of two turns; ``text`` stands in its reasoning, its call, its response and its answer."""
    said = text if text is not None else f"Looking up {task}."
    call = {"name": "population_of", "arguments": json.dumps({"place": text or "Porna", "year": 1950})}
    return {
        "task_id": task,
        "sample": sample,
        "kind": "single_hop",
        "stop_reason": "answered" if right else "max_turns",
        "messages": [
            {"role": "system", "content": "Find the answer by calling tools."},
            {"role": "user", "content": f"What is asked in {task}?"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": said,
                "tool_calls": [{"id": "call_0_0", "type": "function", "function": call}],
            },
            {"role": "tool", "content": text or '{"population": 8053}', "error": not right, "tool_call_id": "call_0_0"},
            {"role": "assistant", "content": text or "<answer>8053</answer>", "reasoning_content": "Done."},
        ],
        "tokens": 60 + sample,
        **further,
    }


def training(task, sample, phase, *, right=True, **further):
    """A record of a phase."""
    rewards = {"turn_rewards": [1.0, 1.0 if right else 0.0], "turn_advantages": [0.5, 1.25 if right else -1.25]}
    return rollout(task, sample, right=right, phase=phase, solved=right, **rewards, **further)


def scored(task, right, **further):
    """A record of an evaluation."""
    scores = {"answer_correct": float(right), "solve_f1": 1.0 if right else 0.5, "calls": 1.0}
    return rollout(task, right=right, scores=scores, temperature=0.0, **{"step": 0} | further)


def privilege(task, sample):
    """The tokens of a rollout as ``PrivilegeGap`` writes them."""
    return {
        "task_id": task,
        "sample": sample,
        "ids": [1, 2, 3, 4],
        "texts": ["Look", "ing ", "<call>", "8053"],
        "components": ["reasoning", "reasoning", "tool_call", "answer"],
        "turns": [0, 0, 0, 1],
        "logp_prompt": [-0.5, -1.0, -0.25, -2.0],
        "logp_trace": [-0.25, -3.0, -0.25, -0.5],
    }


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_run(folder, *, phases=2, tasks=4, samples=2, gain=2):
    """A run of some phases, validated before and after; ``gain`` tasks are solved after it and not before."""
    names = [f"validation-{number}" for number in range(tasks)]
    write(folder / "trajectories" / "validation-0000.jsonl", [scored(name, False) for name in names])
    after = [scored(name, number < gain, step=2 * phases) for number, name in enumerate(names)]
    write(folder / "trajectories" / f"validation-{phases:04d}.jsonl", after)
    for phase in range(phases):
        write_phase(folder, phase, tasks, samples)
    write(folder / "trajectories" / "privilege-0000.jsonl", [privilege("train-0", 0)])
    (folder / "metrics.csv").write_text(METRICS, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(config()), encoding="utf-8")
    return folder


def write_phase(folder, phase, tasks=4, samples=2):
    records = [
        training(f"train-{number}", sample, phase, right=(number + sample + phase) % 2 == 0)
        for number in range(tasks)
        for sample in range(samples)
    ]
    write(folder / "trajectories" / f"phase-{phase:04d}.jsonl", records)


HOSTILE = [
    "</script><script>window.taken = 1</script>",
    '"><img src=x onerror="window.taken = 1">',
    "\x1b[31mred\x1b[0m \x1b]8;;http://a.b\x07link\x1b]8;;\x07",
    "nothing \x00 here \x7f \x9b31m",
    "\u202etxt.exe \u2066turned\u2069",
    "{{ 7 * 7 }} {% raw %} ${window.taken = 1}",
    "x" * 1_000_000,
    "\ufeff \U0001f600 \ud7ff e\u0301",
]


def make_hostile_run(folder):
    """A run whose policy and tools wrote the worst that comes to mind, and whose last line is not finished."""
    records = [training(f"{text[:40]}", sample, 0, text=text) for sample, text in enumerate(HOSTILE)]
    write(folder / "trajectories" / "phase-0000.jsonl", records)
    with (folder / "trajectories" / "phase-0000.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"task_id": "half", "sample": 0, "stop_reason": "a", "messages": [{"role": "\\ud800"}]}\n')
        file.write(json.dumps(training("train-9", 0, 0))[:200])
    (folder / "metrics.csv").write_text(METRICS + "4,2,1.0", encoding="utf-8")
    return folder


def expert(split, index):
    return make_task(split, index).trace
