"""Format of a model family by the library ``renderers``, over streams of characters and control tokens."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, get_args

from pact_lightning.dialogue.characters import CHARACTERS, CharacterTokenizer, of_tokens
from pact_lightning.dialogue.harmony import vocabulary_of
from pact_lightning.dialogue.text_codec import TextCodec
from pact_lightning.types.prompt import Message, ToolSchema

_SWITCHES: dict[str, Any] = {"enable_thinking": True, "thinking": True}
"""PACT trains the thinking, so it is on in every family that can be without [D]."""
_DATE = "2025-08-05"  # A date of the day would change the prompts of a run that is resumed.
_SETTINGS: dict[str, dict[str, Any]] = {
    "gpt-oss": {"conversation_start_date": _DATE, "auto_drop_analysis": False},
    "hy3": {"reasoning_effort": "high"},
}
_CUT_OPENING = {"gpt-oss": "<|channel|>analysis<|message|>"}
"""What the library opens of a turn beyond the family's own template."""
_THOUGHT = "First the distance."

Stream = list[int]
"""Control tokens and characters; see :mod:`~pact_lightning.dialogue.characters`."""

ASKED: dict[str, Any] = {"role": "user", "content": "a"}


def call_message(name: str, arguments: Mapping[str, Any], number: int, own_id: str | None = None) -> dict[str, Any]:
    """Return a call in OpenAI's format; its id is the call's own, or in the form that Kimi writes."""
    call_id = own_id or f"functions.{name}:{number}"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


# With thinking, since some families open it in the prompt.
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "t",
    "tool_calls": [call_message("f", {}, 0)],
}
REPLIED: dict[str, Any] = {"role": "assistant", "content": "a", "reasoning_content": "t"}
_RESPONDED: dict[str, Any] = {"role": "tool", "content": "b", "tool_call_id": "functions.f:0", "name": "f"}
_PLACE = "\ufdd2"  # a code point that is no character, by which a place is found


def library_families() -> tuple[str, ...]:
    """Return the names of the library's families.

    Raises:
        ImportError: The library is not installed.
    """
    try:
        from renderers.configs import RendererConfig
    except ImportError as error:
        raise ImportError(
            "formats other than ChatML are written by the library renderers: pip install 'pact-lightning[families]'"
        ) from error
    kinds = get_args(get_args(RendererConfig)[0])
    names = [str(kind.model_fields["name"].default) for kind in kinds]
    return tuple(name for name in names if name not in ("auto", "default", "custom", "qwen3"))


class LibraryFormat:
    """Format of one family.

    Args:
        codec: Codec of the tokenizer.
        family: Name of the family in ``renderers``.

    Attributes:
        stops: Tokens of the family that end a turn.
        arguments: Arguments under which the family's own template renders the same.

    Raises:
        ImportError: ``renderers`` is not installed.
        ValueError: The library has no such family, or the tokenizer lacks its control tokens.
    """

    def __init__(self, codec: TextCodec, family: str) -> None:
        self.codec = codec
        self.family = family
        self.characters = CharacterTokenizer(codec)
        self._library = _library_renderer(self.characters, family)
        self.stops = frozenset(self._library.get_stop_token_ids())
        config = self._library.config
        self.arguments = {name: getattr(config, name) for name in sorted(config.template_field_names())}
        self._cut = self.characters.encode(_CUT_OPENING.get(family, ""))
        self._openings: dict[int, Stream] = {}

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = (), *, opened: bool = False) -> Stream:
        """Render messages, with an opened assistant turn or without.

        Raises:
            ValueError: The family has no such messages.
        """
        given = [dict(message) for message in messages]
        try:
            stream = self._library.render_ids(given, tools=list(tools) or None, add_generation_prompt=opened)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the format {self.family!r} cannot write this: {error}") from error
        return self._uncut(stream) if opened else self._spelt(stream)

    def opened(self, past: Sequence[Message]) -> Stream:
        """Return an opened turn behind messages of :meth:`past`."""
        if len(past) not in self._openings:
            self._openings[len(past)] = self.render(past, opened=True)
        return self._openings[len(past)]

    def after(self, said: Message, new: Sequence[Message], ended_by: int | None) -> Stream:
        """Render what follows a turn: new messages, and the next opened turn.

        Args:
            said: A turn like the one that ended; only its end is seen.
            new: The messages.
            ended_by: The token that ended it; by default the family's own.

        Raises:
            ValueError: The family's turns cannot be continued so.
        """
        opened = self.opened([ASKED])
        whole = self.turn(said, [ASKED])
        ends = [place for place, index in enumerate(whole) if index in self.stops]
        closing = whole[ends[-1]] if ends else self.closing(has_calls="tool_calls" in said)
        # A token that the family does not know stays, and the family's own end follows it.
        foreign = ended_by is not None and ended_by not in self.stops
        last = closing if ended_by is None or foreign else ended_by
        completion = [*(whole[: ends[-1]] if ends else whole), last]
        bridged = self._library.bridge_to_next_turn(opened, completion, [dict(message) for message in new])
        start = len(opened) + len(completion)
        stream = [] if bridged is None else self._uncut(bridged.token_ids)
        if bridged is None and ends and len(new) > 1:  # as DeepSeek V4 behind several responses
            stream = [*opened, *completion, *self._behind(said, new)]
        if stream[:start] != [*opened, *completion]:
            raise ValueError(
                f"the format {self.family!r} does not go on behind a turn with {new[0]['role']!r} messages; its model "
                "cannot be trained on tasks of several turns"
            )
        return [closing] * foreign + stream[start:]

    def _behind(self, said: Message, new: Sequence[Message]) -> Stream:
        """Take what follows a turn out of a whole conversation, in which its thinking may be missing."""
        count = sum(index in self.stops for index in self.render([ASKED, said]))
        whole = self.render([ASKED, said, *new], opened=True)
        places = [place for place, index in enumerate(whole) if index in self.stops]
        return whole[places[count - 1] + 1 :]

    def turn(self, message: Message, past: Sequence[Message]) -> Stream:
        """Render an assistant's message behind its opening, without an end that the next message brings.

        Raises:
            ValueError: The family cannot write it there.
        """
        opened = self.opened(past)
        whole = self.render([*past, message])
        if whole[: len(opened)] != opened and self.thinks and not message.get("reasoning_content"):
            # Where thinking is opened in the prompt, a turn without any closes it at once.
            whole = self.render([*past, {**message, "reasoning_content": _PLACE}])
            whole = [index for index in whole if index != CHARACTERS + ord(_PLACE)]
        if whole[: len(opened)] != opened:
            raise ValueError(
                f"a turn in the format {self.family!r} begins with {self.characters.decode(opened[-16:])!r}, behind "
                "which this one cannot be written"
            )
        return whole[len(opened) :]

    def closing(self, *, has_calls: bool) -> int:
        """Return the next message's marker, which ends a turn in families without an end of their own."""
        called = {**CALLED, "tool_calls": [call_message(_PLACE, {}, 0)]}
        said, following = (called, _RESPONDED) if has_calls else ({**REPLIED, "content": _PLACE}, ASKED)
        stream = self.render([ASKED, said, following])
        start = stream.index(CHARACTERS + ord(_PLACE))
        found = [index for index in stream[start:] if index in self.stops]
        if not found:
            raise ValueError(f"the format {self.family!r} never ends a turn")
        return found[0]

    def parse(self, said: Stream, past: Sequence[Message], tools: Sequence[ToolSchema]) -> tuple[Any, int]:
        """Parse a turn.

        Args:
            said: The turn.
            past: Messages behind which it was opened.
            tools: The tools on offer.

        Returns:
            The library's ``ParsedResponse``, and what its places have to be moved by.
        """
        opened = self.opened(past)
        given = list(tools) or None
        if not self._cut:  # all families but gpt-oss
            return self._library.parse_response(said, tools=given, prompt_ids=opened), 0
        # What the library would have opened is part of the turn, and so is the head of its message.
        mark = self.codec.control_id("<|start|>")
        head = opened[len(opened) - 1 - opened[::-1].index(mark) :]
        return self._library.parse_response([*head, *said], tools=given), -len(head)

    def past(self, before: Sequence[int]) -> list[Message]:
        """Return messages behind which a turn opens as it does behind these tokens."""
        behind_responses: list[Message] = [ASKED, CALLED, _RESPONDED]
        if not before or not self._opens_apart:
            return [ASKED]
        tail = self.opened(behind_responses)[-8:]
        stream, _ = of_tokens(self.codec, before[-64:])
        return behind_responses if stream[-len(tail) :] == tail else [ASKED]

    @cached_property
    def _opens_apart(self) -> bool:
        """Tell whether a turn behind tool responses opens otherwise than one behind a user's words."""
        tails = [self.opened(past)[-3:] for past in ([ASKED], [ASKED, CALLED, _RESPONDED])]
        return tails[0] != tails[1]

    @cached_property
    def thinks(self) -> bool:
        """Tell whether the family writes an expert's thinking."""
        said = self.render([ASKED, {**CALLED, "reasoning_content": _THOUGHT}])
        return _THOUGHT in self.characters.decode(said)

    @cached_property
    def one_call(self) -> bool:
        """Tell whether a turn has one call at most."""
        calls = [call_message("f", {}, number) for number in range(2)]
        try:
            ends = [
                sum(index in self.stops for index in self.render([ASKED, {**CALLED, "tool_calls": calls[:count]}]))
                for count in (1, 2)
            ]
        except ValueError:
            return True
        return ends[1] > ends[0]  # as in gpt-oss, where a call ends the turn

    def _spelt(self, stream: Stream) -> Stream:
        """Spell the tokens that the library has encoded by itself, as for gpt-oss."""
        spelt: Stream = []
        run: list[int] = []
        for index in stream:
            if index < CHARACTERS and not self.codec.is_control(index):
                run.append(index)
            else:
                spelt += [*of_tokens(self.codec, run)[0], index]
                run = []
        return spelt + of_tokens(self.codec, run)[0]

    def _uncut(self, stream: Stream) -> Stream:
        """Take off what the library opens of a turn beyond the template."""
        spelt = self._spelt(stream)
        cut = len(self._cut)
        return spelt[:-cut] if cut and spelt[-cut:] == self._cut else spelt


def _library_renderer(characters: CharacterTokenizer, family: str) -> Any:
    known = library_families()
    if family not in known:
        raise ValueError(f"there is no format {family!r}; choose one of {', '.join(known)}")
    from pydantic import TypeAdapter
    from renderers import create_renderer
    from renderers.configs import RendererConfig

    adapter: Any = TypeAdapter(RendererConfig)
    fields = type(adapter.validate_python({"name": family})).model_fields
    settings = {name: value for name, value in _SWITCHES.items() if name in fields} | _SETTINGS.get(family, {})
    config = adapter.validate_python({"name": family, "thinking_retention": "all", **settings})
    if family == "gpt-oss" and not characters.codec.has_control("<|channel|>"):
        raise ValueError("the tokenizer lacks what the format 'gpt-oss' needs: Special token '<|channel|>'")
    tokenizer: Any = characters
    try:
        with vocabulary_of(characters.codec, needed=family == "gpt-oss"):
            return create_renderer(tokenizer, config)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"the tokenizer lacks what the format {family!r} needs: {error.args[0]}") from error
