"""A language model that answers what the test says: words, calls of tools, or a failure.

    model = ScriptedModel(Call("book", day="monday", people=2), "You have a table on Monday.")

Everything around it is the real thing: what it is asked with is the real prompt (``asked``), and a call is written as
a model writes one and read as from one.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from host.job.tool_text import FunctionCall, call_message
from inference.client import RequestFailedError
from inference.wire.messages import ChatMessage, GenerateDone


class Call:
    """The model calls the tool ``name``, with these arguments."""

    def __init__(self, name: str, /, **arguments: Any) -> None:
        self.name = name
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"Call({', '.join([repr(self.name), *(f'{key}={value!r}' for key, value in self.arguments.items())])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and (self.name, self.arguments) == (other.name, other.arguments)

    __hash__ = None  # type: ignore[assignment]


Answer: TypeAlias = "str | Call | Sequence[Call] | Exception | Callable[[Sequence[ChatMessage]], Any]"
"""What the model does once. A function is given what the model was asked with, and returns one of the others, or an
asynchronous iterator of pieces of text, which come when it yields them."""


class ScriptEndedError(AssertionError):
    """The model was asked once more than the script has answers."""


class ScriptedModel:
    """Gives ``answers`` one after the other, then ``otherwise`` for ever; None: being asked again fails the test.

    ``asked``: what it was asked with, each time, oldest first. ``end_of_turn``: how likely it is that what the caller
    has said is all, 0 to 1 (-1: it cannot tell); or a function of the caller's words that says so.
    """

    def __init__(
        self,
        *answers: Answer,
        otherwise: Answer | None = None,
        end_of_turn: float | Callable[[str], float] = 1.0,
    ) -> None:
        self.asked: list[tuple[ChatMessage, ...]] = []
        self.failure: ScriptEndedError | None = None
        self._answers = deque(answers)
        self._otherwise = otherwise
        self._end_of_turn = end_of_turn

    def __repr__(self) -> str:
        return f"<ScriptedModel asked {len(self.asked)} times, {len(self._answers)} answers left>"

    def add(self, *answers: Answer) -> None:
        """These come after those that are left."""
        self._answers.extend(answers)

    def generate(
        self,
        messages: Sequence[ChatMessage],
        *,
        max_tokens: int = 256,
        speculative: bool = False,
        **_: Any,
    ) -> ScriptedGeneration:
        """As ``InferenceRoom.generate``."""
        generation = ScriptedGeneration(self, tuple(messages), max_tokens, speculative=speculative)
        said = next((message.content for message in reversed(messages) if message.role == "user"), "")
        likely = self._end_of_turn(said) if callable(self._end_of_turn) else self._end_of_turn
        generation.end_of_turn.set_result(likely)
        return generation

    def take(self, messages: tuple[ChatMessage, ...]) -> Answer:
        """The next answer, to ``messages``. Raises ``ScriptEndedError``."""
        self.asked.append(messages)
        if self._answers:
            return self._answers.popleft()
        if self._otherwise is None:
            self.failure = ScriptEndedError(
                f"the script has no answer left; the model was asked {len(self.asked)} times, lastly with:\n"
                + "\n".join(f"  {message.role}: {message.content}" for message in messages if message.role != "system")
            )
            raise self.failure
        return self._otherwise

    def give_back(self, answer: Answer) -> None:
        """The answer taken last was not wanted after all."""
        self.asked.pop()
        if answer is not self._otherwise:
            self._answers.appendleft(answer)


class ScriptedGeneration:
    """As ``inference.client.Generation``: a reply that the script writes. With ``max_tokens`` 0 it is empty."""

    def __init__(
        self, model: ScriptedModel, messages: tuple[ChatMessage, ...], max_tokens: int, *, speculative: bool
    ) -> None:
        self.done: GenerateDone | None = None
        self.end_of_turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._model = model
        self._messages = messages
        self._max_tokens = max_tokens
        self._speculative = speculative
        self._cancelled = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[str]:
        count = 0
        if self._max_tokens:
            answer = self._take()
            ended = False
            try:
                async for piece in _pieces(answer, self._messages):
                    self._check()
                    yield piece
                    count += 1
                    # As a model's pieces come: with the event loop's other work in between.
                    await asyncio.sleep(0)
                self._check()
                ended = True
            finally:
                if self._speculative and not ended:
                    self._model.give_back(answer)
        self.done = GenerateDone(1, "stop" if self._max_tokens else "length", len(self._messages), 0, count)

    def promote(self) -> None:
        """It is wanted."""
        self._speculative = False

    def cancel(self) -> None:
        """Stop writing; the iteration then raises ``RequestFailedError("cancelled")``."""
        if self.done is None:
            self._cancelled.set()

    def _take(self) -> Answer:
        self._check()
        try:
            return self._model.take(self._messages)
        except ScriptEndedError as exc:
            raise RequestFailedError("engine", str(exc)) from exc

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise RequestFailedError("cancelled", "cancelled by the job")


async def _pieces(answer: Answer, messages: Sequence[ChatMessage]) -> AsyncIterator[str]:
    if callable(answer) and not isinstance(answer, Call):
        made = answer(messages)
        if isinstance(made, Awaitable):
            made = await made
        if isinstance(made, AsyncIterator):
            async for piece in made:
                yield piece
            return
        answer = made
    match answer:
        case Exception():
            raise answer
        case Call():
            yield _written([answer])
        case str():
            for number, word in enumerate(answer.split(" ")):
                yield f" {word}" if number else word
        case _:
            yield _written(answer)


def _written(calls: Any) -> str:
    if not isinstance(calls, Sequence) or not all(isinstance(call, Call) for call in calls):
        raise TypeError(f"a script has texts, calls and failures in it, and functions that return one; not {calls!r}")
    return call_message([FunctionCall(call.name, json.dumps(call.arguments)) for call in calls]).content


Layer = tuple[type, Mapping[str, Callable[..., Any]]]

_everywhere: list[Layer] = []


@contextmanager
def mock_tools(agent: type, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, in every session of a test, these are called in the place of the tools of agents of this type.

    The model knows the tools as they are. ``Rehearsal.mock_tools`` is for one session, and goes first.
    """
    layer = (agent, dict(functions))
    _everywhere.append(layer)
    try:
        yield
    finally:
        _everywhere[:] = [other for other in _everywhere if other is not layer]


class Mocks(Mapping[str, Callable[..., Any]]):
    """What is called in the place of tools, by name; ``agent()`` is who has the tools now.

    A function may take fewer arguments than the tool: those that it does not name are left out.
    """

    def __init__(self, agent: Callable[[], object]) -> None:
        self._agent = agent
        self._layers: list[Layer] = []

    def add(self, agent_type: type, functions: Mapping[str, Callable[..., Any]]) -> Callable[[], None]:
        """Mock the tools of agents of ``agent_type``; the newest goes first. Returns what takes them away."""
        layer = (agent_type, dict(functions))
        self._layers.append(layer)

        def remove() -> None:
            self._layers[:] = [other for other in self._layers if other is not layer]

        return remove

    def __getitem__(self, name: str) -> Callable[..., Any]:
        agent = self._agent()
        for agent_type, functions in reversed([*_everywhere, *self._layers]):
            if isinstance(agent, agent_type) and name in functions:
                return _taking_less(functions[name])
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({name for _, functions in (*_everywhere, *self._layers) for name in functions})

    def __len__(self) -> int:
        return len(list(iter(self)))


def _taking_less(function: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function
    known = {parameter.name for parameter in parameters}

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        return function(**{name: value for name, value in arguments.items() if name in known})

    return call
