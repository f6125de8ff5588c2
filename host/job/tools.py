"""Tools: functions that the model may call.

    @function_tool
    async def opening_hours(context: RunContext, day: Literal["monday", ...]) -> str:
        \"\"\"When the restaurant is open.

        Args:
            day: The day of the week.
        \"\"\"

The signature becomes the JSON schema that constrains what the model writes, the docstring what it reads.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, overload

from host.job.docstring import read_docstring
from host.job.tool_schema import Json, Parameter, Parameters, SchemaError, parameter, read_object
from host.job.tool_text import CHOICES, FunctionCall

if TYPE_CHECKING:
    from host.job.session import VoiceSession
    from host.job.speech_handle import SpeechHandle

P = ParamSpec("P")
R = TypeVar("R")
UserData = TypeVar("UserData")

TIMEOUT_S: Final = 10.0
"""How long a tool may take, unless it says otherwise."""

FILLER_AFTER_MS: Final = 700
"""How long the caller waits in silence for a tool that has a filler."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

mocked: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("mocked_tools", default=MappingProxyType({}))
"""For tests: what is called in a tool's place, by its name."""


@dataclass(eq=False, slots=True)
class RunningTool:
    """The call of a tool. ``is_waited_for``: an answer goes on only when it has ended."""

    name: str
    is_waited_for: bool = True


running_tool: ContextVar[RunningTool | None] = ContextVar("running_tool", default=None)
"""The call that this code runs in, or was started by; None outside."""


def check_wait() -> None:
    """Raises ``RuntimeError`` where waiting for the agent to speak would never end: in a tool that it waits for."""
    if (tool := running_tool.get()) is not None and tool.is_waited_for:
        raise RuntimeError(
            f"the tool {tool.name} waits for speech that comes after the answer, which waits for the tool; "
            "context.say says something at once"
        )


class ToolError(Exception):
    """Raised by a tool: the message is for the model, which says it in its own words."""


class StopResponse(Exception):  # noqa: N818 (the name that LiveKit's users know)
    """Raised by a tool, or by ``on_user_turn_completed``: nothing is to be answered."""


@dataclass(eq=False)
class RunContext(Generic[UserData]):
    """What a tool knows of the conversation that it is called in.

    ``speech_handle``: the answer that waits for the tool; ``function_call``: the call.
    """

    session: VoiceSession
    speech_handle: SpeechHandle
    function_call: FunctionCall
    _say: Callable[[str], None] = field(default=lambda _: None, repr=False)

    @property
    def userdata(self) -> UserData:
        """The session's."""
        userdata: UserData = self.session.userdata
        return userdata

    def disallow_interruptions(self) -> None:
        """What the caller says does not stop this answer: what the tool does cannot be taken back."""
        self.speech_handle.allow_interruptions = False

    def say(self, text: str) -> None:
        """Say ``text`` at once, as the beginning of this answer. (``session.say`` waits until the answer is over.)"""
        self._say(text)

    def spoken_by(self, say: Callable[[str], None]) -> RunContext[UserData]:
        """This, with ``say`` for what is said meanwhile."""
        self._say = say
        return self


class FunctionTool(Generic[P, R]):
    """A function that the model may call. It can still be called like the function.

    ``timeout_s``: how long a coroutine function may take. ``filler``: what is said when it takes longer than
    ``filler_after_ms``. ``parameters``: the JSON schema of its arguments.

    Raises ``SchemaError`` for a signature that cannot be said in JSON.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str = "",
        description: str = "",
        timeout_s: float = TIMEOUT_S,
        filler: str = "",
        filler_after_ms: int = FILLER_AFTER_MS,
        raw_schema: Json | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        docstring = read_docstring(function.__doc__)
        raw = raw_schema or {}
        self.name = name or raw.get("name") or function.__name__
        if not _NAME.fullmatch(self.name) or self.name in CHOICES:
            raise SchemaError(
                f"{self.name!r} is no name for a tool: letters, digits and _, and not {', '.join(CHOICES)}"
            )
        if timeout_s <= 0 or filler_after_ms < 0:
            raise ValueError(f"{self.name}: timeout_s is {timeout_s}, filler_after_ms {filler_after_ms}: too small")
        self.description = description or raw.get("description") or docstring.description
        self.timeout_s = timeout_s
        self.filler = filler
        self.filler_after_ms = filler_after_ms
        self._described = docstring.arguments
        self._raw = None if raw_schema is None else dict(raw.get("parameters", {"type": "object", "properties": {}}))
        self._instance: object = None
        self._narrowed: dict[str, list[str | int]] = {}
        self._signature: _Signature | None = None
        names = list(inspect.signature(function).parameters)
        self._is_method = names[:1] == ["self"]
        # What the annotations name may be defined further down in the file.
        with contextlib.suppress(_LaterError):
            self._read_signature()

    def __repr__(self) -> str:
        return f"<FunctionTool {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        if self._instance is not None:
            return self._function(self._instance, *args, **kwargs)  # type: ignore[arg-type]
        return self._function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> FunctionTool[..., R]:
        """The tool of one agent."""
        if instance is None:
            return self
        bound = self._copy()
        bound._instance = instance
        return bound

    def _copy(self) -> FunctionTool[..., R]:
        copied: FunctionTool[..., R] = object.__new__(FunctionTool)
        copied.__dict__.update(self.__dict__)
        return copied

    @property
    def is_method(self) -> bool:
        """Whether it is a method that was not taken from an agent."""
        return self._is_method and self._instance is None

    @property
    def parameters(self) -> Json:
        """The JSON schema of the object that holds its arguments."""
        return self._read_signature().parameters.schema() if self._raw is None else self._raw

    @property
    def allowed(self) -> Json:
        """The JSON schema of what the model may write: ``parameters``, or less where it was ``narrowed``."""
        schema = self.parameters
        properties = schema.get("properties", {}) | {name: {"enum": one} for name, one in self._narrowed.items()}
        required = dict.fromkeys([*schema.get("required", []), *self._narrowed])
        return {**schema, "properties": properties, "required": list(required)} if self._narrowed else schema

    def narrowed(self, **values: Iterable[str | int]) -> FunctionTool[..., R]:
        """The same tool, whose arguments can only be one of ``values``, as they stand in JSON.

        What the model is told of it stays the same. Raises ``ValueError`` for an argument that it does not have, and
        for none to choose from.
        """
        known = self.parameters.get("properties", {})
        narrowed = {name: list(allowed) for name, allowed in values.items()}
        for name, allowed in narrowed.items():
            if name not in known or not allowed:
                raise ValueError(f"{self.name}: {name} is narrowed to {allowed}, allowed: some of {', '.join(known)}")
        tool = self._copy()
        tool._narrowed = {**self._narrowed, **narrowed}
        return tool

    def call(self, arguments: str, context: RunContext[Any]) -> Any:
        """Call it as the model asks to: what the function returns, or its coroutine.

        Raises ``ArgumentError`` for ``arguments`` (a JSON object) that are not what the schema says.
        """
        signature = self._read_signature()
        given: dict[str, Any] = {_RAW: read_object(arguments)}
        if self._raw is None:
            given = signature.parameters.decode(arguments)
        context_parameter = signature.context
        function: Callable[..., Any] = self
        if (in_its_place := mocked.get().get(self.name)) is not None:
            function = in_its_place
            if context_parameter not in inspect.signature(function).parameters:
                context_parameter = ""
        if context_parameter:
            given[context_parameter] = context
        return function(**given)

    def _read_signature(self) -> _Signature:
        if self._signature is None:
            self._signature = _read_signature(self.name, self._function, self._described, raw=self._raw is not None)
        return self._signature


_RAW: Final = "raw_arguments"
"""The argument of a tool whose schema was given: all that the model gave it, as a dict."""


@dataclass(frozen=True, slots=True)
class _Signature:
    """``context``: the name of the parameter that takes the ``RunContext``, "" without one."""

    parameters: Parameters
    context: str


class _LaterError(SchemaError):
    """An annotation names what is not defined yet."""


def _read_signature(name: str, function: Callable[..., Any], described: Mapping[str, str], *, raw: bool) -> _Signature:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as exc:
        raise _LaterError(f"{name}: an annotation is not defined where the tool is: {exc}") from exc
    found: list[Parameter] = []
    context = ""
    for position, one in enumerate(inspect.signature(function).parameters.values()):
        where = f"{name}: {one.name}"
        if position == 0 and one.name == "self":
            continue
        if one.kind is one.POSITIONAL_ONLY or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            raise SchemaError(f"{where}: a tool is called with arguments by name; no *, ** or / in its signature")
        hint = hints.get(one.name)
        if hint is RunContext or typing.get_origin(hint) is RunContext:
            context = one.name
        elif raw:
            if one.name != _RAW:
                raise SchemaError(f"{where}: a tool with a raw_schema takes {_RAW}: dict[str, Any] alone")
        elif one.name not in hints:
            raise SchemaError(f"{where}: it has no annotation")
        else:
            required = one.default is one.empty
            found.append(parameter_of(name, one.name, hint, required=required, description=described.get(one.name, "")))
    return _Signature(Parameters(tuple(found)), context)


def parameter_of(tool: str, name: str, hint: Any, *, required: bool, description: str) -> Parameter:
    """An argument, with the tool's name in the ``SchemaError`` it may raise."""
    try:
        return parameter(name, hint, required=required, description=description)
    except SchemaError as exc:
        raise SchemaError(f"{tool}: {exc}") from None


@overload
def function_tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def function_tool(
    *,
    name: str = "",
    description: str = "",
    timeout_s: float = TIMEOUT_S,
    filler: str = "",
    filler_after_ms: int = FILLER_AFTER_MS,
    raw_schema: Json | None = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def function_tool(function: Callable[P, R] | None = None, /, **settings: Any) -> Any:
    """Make a tool of a function, or of a method of a ``VoiceAgent``; with or without settings.

    ``name``, ``description``: instead of the function's own. ``timeout_s``: how long it may take. ``filler``: what is
    said when it takes longer than ``filler_after_ms``. ``raw_schema``: ``name``, ``description`` and ``parameters``
    (a JSON schema) instead of the signature's; the arguments come as one dict, ``raw_arguments``.

    Raises ``SchemaError``, a ``TypeError``, for a signature that cannot be said in JSON.
    """
    if function is not None:
        return FunctionTool(function, **settings)
    return lambda function: FunctionTool(function, **settings)


def find_tools(*sources: object) -> tuple[FunctionTool[..., Any], ...]:
    """The tools that ``sources`` are or have: a ``FunctionTool``, or an object with methods that are.

    Raises ``TypeError`` for a function that is none, and ``ValueError`` for two of one name.
    """
    found: dict[str, FunctionTool[..., Any]] = {}
    for source in sources:
        tools: list[FunctionTool[..., Any]]
        if isinstance(source, FunctionTool):
            if source.is_method:
                raise TypeError(
                    f"{source.name} is a method: give it as an attribute of its object, like agent.{source.name}"
                )
            tools = [source]
        elif inspect.isroutine(source):
            raise TypeError(f"{source.__name__} is no tool; decorate it with @function_tool")
        else:
            tools = _methods(source)
        for tool in tools:
            # What could not be read at its definition is said here, and not in a call.
            _ = tool.parameters
            if found.setdefault(tool.name, tool) is not tool:
                raise ValueError(f"two tools are called {tool.name!r}")
    return tuple(found.values())


def _methods(source: object) -> list[FunctionTool[..., Any]]:
    """In the order of their definition, those of base classes first."""
    names: dict[str, None] = {}
    for cls in reversed(type(source).__mro__):
        names.update(dict.fromkeys(name for name, value in vars(cls).items() if isinstance(value, FunctionTool)))
    tools = [getattr(source, name) for name in names]
    return [tool for tool in tools if isinstance(tool, FunctionTool)]
