"""Environment classes in TRL's style: the same tools as TRL collects, and the same prompts."""

import enum
import json
from pathlib import Path

import pytest
import transformers

from pact_lightning.credit.reward import make_reward
from pact_lightning.environments.checker.checker import check_environment
from pact_lightning.environments.protocol import Environment
from pact_lightning.environments.trl_style import TRLEnvironment, tool_methods
from pact_lightning.policy.loading import PolicyConfig, load_tokenizer
from pact_lightning.tasks.record import task_from_json, task_to_json
from pact_lightning.tasks.trl_rows import TRLRowTasks
from pact_lightning.types.trajectory import RolloutTurn, Trajectory
from pact_lightning.utils.errors import TaskFieldError, TaskFileError


class Counter:
    """In TRL's style."""

    limit = 3

    def reset(self, start=0, **row):
        self.count = start
        self.row = row
        return f" Count from {start}."

    @property
    def not_a_tool(self):
        raise AssertionError("a property is not to be evaluated")

    def up(self, by: int = 1) -> dict:
        """Counts up.

        Args:
            by: How far.
        """
        self.count += by
        if self.count > self.limit:
            raise ValueError(f"not beyond {self.limit}")
        return {"count": self.count}

    async def down(self, by: int) -> int:
        """Counts down.

        Args:
            by: How far.
        """
        self.count -= by
        return self.count

    @staticmethod
    def add(a: int, b: int | None = None) -> int:
        """Adds.

        Args:
            a: One.
            b: Another.
        """
        return a + (b or 0)

    def _hidden(self):
        raise AssertionError

    def get_reward(self) -> float:
        return self.count / 2


class Silent(Counter):
    """Resets without a word, and has an asynchronous reward."""

    def reset(self, **row):
        super().reset(**row)

    async def get_reward(self) -> float:
        return 7.0


class Unpaid:
    def __init__(self, answer=None):
        self.answer = answer

    def reset(self, **row):
        return self.answer

    def look(self) -> str:
        """Looks."""
        return "nothing"


class Way(enum.Enum):
    NORTH = "north"


class Walker(Unpaid):
    def walk(self, way: Way, steps: tuple[int, int] = (0, 0)) -> str:
        """Walks.

        Args:
            way: Where.
            steps: How far.
        """
        return repr([way, steps])


class Unready:
    def look(self) -> str:
        """Looks."""
        return "nothing"


def adapter(cls, init_args=None, row=None):
    return TRLEnvironment(f"{__name__}.{cls.__name__}", init_args, row)


def test_methods_get_what_their_type_hints_say():
    result = adapter(Walker).call("walk", {"way": "north", "steps": [1, 2]})
    assert result.text == repr([Way.NORTH, (1, 2)])


def test_the_text_of_a_reset_is_one_that_files_and_tokenizers_take():
    assert adapter(Unpaid, {"answer": "a\ud83d"}).observe({}) == "a?"


def test_tools_are_those_of_trl_s_trainer(tmp_path, monkeypatch):
    """The class goes, unchanged, into a real GRPOTrainer and into ours."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    tokenizer = load_tokenizer(PolicyConfig(model="bundled"))
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "head_dim": 8,
    }
    config = transformers.Qwen3Config(num_attention_heads=2, num_key_value_heads=1, **sizes)
    config._name_or_path = "tiny"
    trainer = trl.GRPOTrainer(
        model=transformers.Qwen3ForCausalLM(config),
        processing_class=tokenizer,
        args=trl.GRPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False),
        train_dataset=datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": "Count."}]}]),
        environment_factory=Counter,
    )
    theirs = [transformers.utils.get_json_schema(tool) for tool in trainer.tools]
    assert adapter(Counter).tools == theirs
    assert [tool["function"]["name"] for tool in theirs] == ["add", "down", "up"]
    assert len(trainer.reward_funcs) == 1  # get_reward is a reward there, and `reward` here


def test_verbs_and_calls():
    environment = adapter(Counter, row={"start": 1, "colour": "red"})
    assert isinstance(environment, Environment)
    task = TRLRowTasks([{"start": 1, "colour": "red"}], f"{__name__}.Counter").load()[0]
    environment.reset(task.prompt, 0)
    assert environment.call("up", {}).text == '{"count": 2}'
    assert environment.call("down", {"by": 2}).text == "0"
    assert environment.call("add", {"a": 1, "b": None}).text == "1"
    refused = environment.call("up", {"by": 9})
    assert (refused.text, refused.error) == ("The tool failed: ValueError: not beyond 3", True)
    assert environment.call("up", {"by": "one"}).error
    for name in ("reset", "get_reward", "_hidden", "not_a_tool"):
        assert "There is no tool" in environment.call(name, {}).text
    assert environment.reward() == 4.5
    environment.close()


def test_the_environment_s_reward_is_earned_by_the_last_turn():
    environment = adapter(Silent)
    environment.observe({})
    rollout = Trajectory("t", 0, (), turns=[RolloutTurn("a"), RolloutTurn("b")])
    rollout.environment_reward = environment.reward()
    assert make_reward("environment")(rollout, None) == [0.0, 7.0]
    assert not hasattr(adapter(Unpaid), "reward")
    environment.close()


def test_rows_become_tasks_and_come_back_from_a_file():
    rows = [
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}], "start": 2},
        {"prompt": "Go.", "start": 3, "goal": "5"},
        {"start": 4},
    ]
    before = json.dumps(rows)
    tasks = TRLRowTasks(rows, f"{__name__}.Counter", name="count").load()
    assert json.dumps(rows) == before
    assert [task.id for task in tasks] == ["count-0", "count-1", "count-2"]
    assert [task.prompt.messages[-1]["content"] for task in tasks] == [
        "Go. Count from 2.", "Go. Count from 3.", " Count from 4.",
    ]  # fmt: skip
    assert tasks[0].prompt.messages[0] == {"role": "system", "content": "Be brief."}
    assert [task_from_json(task_to_json(task)) for task in tasks] == tasks
    for task in tasks:
        spec = task.prompt.environment
        assert [f for f in check_environment(spec.build(), task, another=spec.build) if f.severity == "error"] == []


def test_reference_and_trace_columns_are_kept_from_the_class():
    calls = [{"name": "add", "arguments": {"a": 1}}]
    trace = {"turns": [{"reasoning": "CANARY", "calls": calls, "responses": ["1"]}]}
    row = {"prompt": "Go.", "goal": "5", "steps": {"calls": calls}, "expert": trace}
    task = TRLRowTasks(
        [row], f"{__name__}.Silent", answer_column="goal", reference_column="steps", trace_column="expert"
    ).load()[0]
    assert task.reference.answer == "5"
    assert task.reference.calls == tuple(calls)
    assert task.trace is not None
    assert task.prompt.environment.init_args["row"] == {"prompt": "Go.", "goal": "5"}
    assert "CANARY" not in repr(task.prompt)


def test_a_reset_that_says_something_else_is_no_silent_mismatch():
    task = TRLRowTasks([{"prompt": "Go.", "start": 1}], f"{__name__}.Counter").load()[0]
    with pytest.raises(ValueError, match=r"does not end with it.*TRLRowTasks"):
        adapter(Counter, row={"start": 2}).reset(task.prompt, 0)


@pytest.mark.parametrize(
    ("rows", "cls", "arguments", "field", "said"),
    [
        ([{"prompt": 3}], "Counter", {}, "rows[0].prompt", "must be a list, got int"),
        ([{}, {"prompt": []}], "Counter", {}, "rows[1].prompt", "must end with a message"),
        ([["a"]], "Counter", {}, "rows[0].(the row)", "must be an object, got list"),
        ([{"prompt": "Go."}], "Counter", {"trace_column": "expert"}, "rows[0].expert", "no such column"),
        ([{"start": "x" * 3, "by": 1}], "Refusing", {}, "rows[0].(the row)", "Refusing.reset failed: TypeError"),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], "Counter", {}, "rows[0].messages[0].role", "assistant"),
    ],
)
def test_wrong_rows_are_named(rows, cls, arguments, field, said):
    with pytest.raises(TaskFieldError) as caught:
        TRLRowTasks(rows, f"{__name__}.{cls}", **arguments).load()
    assert caught.value.field == field
    assert said in caught.value.problem


class Refusing(Unready):
    def reset(self, only):
        return only


def test_a_wrong_row_of_a_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Go."}\n\n{"prompt": 3}\n')
    with pytest.raises(TaskFileError, match=r"rows.jsonl, line 3: field `prompt`: must be a list"):
        TRLRowTasks(path, f"{__name__}.Counter").load()


@pytest.mark.parametrize("answer", [[{"type": "image"}], 3])
def test_observations_that_are_no_text_are_refused(answer):
    with pytest.raises(TypeError, match="must return a text or None"):
        adapter(Unpaid, {"answer": answer}).observe({})


def test_classes_that_cannot_be_used():
    with pytest.raises(ValueError, match="has no method `reset`"):
        adapter(Unready)
    with pytest.raises(ImportError, match=r"environment class 'no\.such\.Class' cannot be imported: No module"):
        TRLEnvironment("no.such.Class")
    with pytest.raises(ImportError, match="neither a class nor a Python function"):
        TRLEnvironment("sys.path")
    with pytest.raises(ImportError, match="neither a class nor a Python function without arguments"):
        TRLEnvironment(f"{__name__}.adapter")
    assert tool_methods(Unready())[0].__name__ == "look"
