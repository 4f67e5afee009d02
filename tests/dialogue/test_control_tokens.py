"""Text from outside never becomes a control token: every special token of every tokenizer, in every field."""

import json
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from hand_made import FULL
from hypothesis import given, settings
from hypothesis import strategies as st
from many_tokenizers import FAMILIES, renderer_of, specials
from rollout_player import ROOMY, Bench, bench_prompt, call, play, play_one

from pact_lightning.environments.protocol import ToolResult
from pact_lightning.policy.loading import load_tokenizer
from pact_lightning.traces.tokens import render_trace
from pact_lightning.types.prompt import EnvironmentSpec, UserTurn
from pact_lightning.types.task import Task
from pact_lightning.types.trace import Chunk, ChunkType, ExpertTrace, ExpertTurn
from pact_lightning.types.trajectory import Component
from pact_lightning.update.context import ContextBuilder

FIELDS = (
    "system", "user", "tool_name", "tool_description", "parameter", "follow_up", "later_tool", "response", "thought",
    "call_name", "call_key", "call_value", "reply", "answer",
)  # fmt: skip
TEMPLATES = ("turns", "user_block", "system_block")
BENIGN = dict.fromkeys(FIELDS, "word")


def tool(name, description, parameter):
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def task_of(texts):
    """A task with a trace, with one text in each place that text from outside can take."""
    messages = ({"role": "system", "content": texts["system"]}, {"role": "user", "content": texts["user"]})
    first = tool(texts["tool_name"], texts["tool_description"], texts["parameter"])
    later = tool(texts["later_tool"], "d", "p")
    follow_ups = (UserTurn(texts["follow_up"], (later,)),)
    spec = EnvironmentSpec("some.Class")
    prompt = replace(bench_prompt(), messages=messages, tools=(first,), environment=spec, follow_ups=follow_ups)
    calls = ({"name": texts["call_name"], "arguments": {texts["call_key"]: [texts["call_value"]]}},) * 2
    # What is safe to show of a thought ends where it holds the call; "Hm." stays, and with it the marks around it.
    thought = (Chunk("Hm. ", ChunkType.TASK_RESTATE), Chunk(texts["thought"]))
    turn = ExpertTurn(thought, calls, (texts["response"],) * 2)
    replied = ExpertTurn(thought, reply=texts["reply"])
    final = ExpertTurn(thought, answer=texts["answer"])
    return Task(prompt, trace=ExpertTrace((turn, replied, turn), final))


def renderings(renderer, task):
    """All that can be made of a task: prompt, later turns, trace, and every privileged context."""
    trace = task.trace
    made = {
        "prompt": renderer.prompt(task.prompt.messages, task.prompt.tools),
        "observation": renderer.observation(trace.turns[0].responses),
        "user turn": renderer.user_turn(task.prompt.follow_ups[0]),
        "trace": render_trace(renderer, trace, task.prompt.follow_ups, with_final=True).ids.tolist(),
    }
    for template, context in product(TEMPLATES, ("full", "safe", "follow")):
        built = ContextBuilder(renderer, template, context, 10**6).privileged(task, trace, 4, 0)
        made[f"{template} {context}"] = built.ids.tolist()
    return made


@cache
def benign(family):
    """The control tokens of a task without any in its texts."""
    return controls(renderer_of(family), renderings(renderer_of(family), task_of(BENIGN)))


def controls(renderer, made):
    return {name: [index for index in ids if renderer.codec.is_control(index)] for name, ids in made.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_special_token_becomes_one_in_any_field(family):
    renderer = renderer_of(family)
    ours = benign(family)
    assert all(ours.values())
    for special in specials(renderer):
        made = renderings(renderer, task_of(dict.fromkeys(FIELDS, special)))
        found = controls(renderer, made)
        assert [name for name in ours if found[name] != ours[name]] == [], special
        # It is there, as plain text.
        assert all(special in renderer.codec.decode(ids) for ids in made.values())
        assert renderer.codec.decode(renderer.codec.plain(special)) == special


@pytest.mark.parametrize("field", FIELDS)
def test_no_special_token_becomes_one_in_one_field_among_good_ones(field):
    """Alone in its field, so that no other field can make up for what this one adds."""
    renderer = renderer_of("bundled")
    ours = benign("bundled")
    for special in specials(renderer):
        made = renderings(renderer, task_of(BENIGN | {field: f"a{special}\n{special}b"}))
        found = controls(renderer, made)
        assert [name for name in ours if found[name] != ours[name]] == [], special


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_pieces_of_special_tokens_never_join_to_one(family, data):
    """Cut anywhere and put into neighbouring fields, they stay text."""
    renderer = renderer_of(family)
    pieces = st.sampled_from(specials(renderer)).flatmap(
        lambda special: st.tuples(st.integers(0, len(special)), st.booleans()).map(
            lambda cut: special[: cut[0]] if cut[1] else special[cut[0] :]
        )
    )
    text = st.lists(pieces | st.sampled_from(specials(renderer)) | st.text(max_size=4), max_size=5).map("".join)
    texts = {field: data.draw(text).encode(errors="replace").decode() for field in FIELDS}
    made = controls(renderer, renderings(renderer, task_of(texts)))
    ours = benign(family)
    assert [name for name in ours if made[name] != ours[name]] == []


class Speaks(Bench):
    """Its tool answers every special token; so does its exception."""

    texts: tuple = ()

    def _log(self, what):
        return ToolResult("\n".join([*self.texts, what]))

    def _crash(self):
        raise KeyError("".join(self.texts))


@pytest.mark.parametrize("family", FAMILIES)
def test_observations_of_a_rollout_hold_no_control_token_but_their_frame(family, monkeypatch):
    renderer = renderer_of(family)
    every = tuple(specials(renderer))
    monkeypatch.setattr(Speaks, "texts", every)
    prompt = replace(bench_prompt(), environment=EnvironmentSpec(f"{__name__}.Speaks"))
    written = json.dumps({"what": "".join(every)})
    plain_call = [*renderer.codec.control("<tool_call>\n"), *renderer.codec.plain('{"name": "log", "arguments": ')]
    plain_call += [*renderer.codec.plain(written + "}"), *renderer.codec.control("\n</tool_call>\n")]
    unknown = renderer.codec.control("<tool_call>") + renderer.codec.plain(
        json.dumps({"name": every[1], "arguments": {}})
    )
    line = [*plain_call, *unknown, *renderer.codec.control(f"</tool_call>\n{call('crash')}"), renderer.end_of_turn]
    limits = replace(ROOMY, max_new_tokens_per_turn=4000, max_trajectory_tokens=40_000)
    rollout, _ = play_one(renderer, line, "done", prompt=prompt, limits=limits)
    frame = [index for index in renderer.observation(["", "", ""]) if renderer.codec.is_control(index)]
    observed = [segment for segment in rollout.segments if segment.component is Component.OBSERVATION]
    assert len(observed) == 1
    assert [index for index in observed[0].ids if renderer.codec.is_control(index)] == frame
    text = renderer.codec.decode(observed[0].ids)
    for response in rollout.turns[0].responses:
        assert any(special in response for special in every)
        assert response in text
    assert rollout.final_answer == "done"


def test_a_later_user_turn_of_a_rollout_holds_no_control_token_but_its_frame():
    renderer = renderer_of("bundled")
    every = "".join(specials(renderer))
    prompt = replace(bench_prompt(), follow_ups=(UserTurn(every, (tool(every, every, every),)),))
    results, _, _ = play(renderer, [prompt], ["first", "second"])
    (segment,) = [one for one in results[0][0].segments if one.component is Component.PROMPT]
    frame = renderer.user_turn(UserTurn("a", (tool("a", "a", "a"),)))
    kept = [[index for index in ids if renderer.codec.is_control(index)] for ids in (segment.ids, frame)]
    assert kept[0] == kept[1]


def test_the_tokenizers_themselves_would_have_let_every_special_token_through():
    """What the wall is for."""
    tokenizer = load_tokenizer(FULL)
    for special in specials(renderer_of("bundled")):
        assert tokenizer.encode(special, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(special)]
