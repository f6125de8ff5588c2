"""What the model reads of tools, and what it writes to call one. Pure.

    system       instructions, the tools with their types, and how they are called
    user         a question
    assistant    <tool_call>
                 {"name": "opening_hours", "arguments": {"day": "friday"}}
                 </tool_call>
    user         <tool_response>
                 From nine to six.
                 </tool_response>
    assistant    an answer

It is text in messages of the ordinary roles: every model can read it, and the prompt only grows, so that the KV cache
is kept. Calls and results are to the letter what the chat template of Qwen's models makes of them, in the format of
Hermes that many others were trained on. The grammar admits calls, which always parse, or an answer without any "<".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from inference.wire.messages import ChatMessage

ToolChoice = str
""""auto": the model chooses between an answer and calls; "none": an answer; "required": calls; else the name of the
one tool that is called, once."""

CHOICES: Final = ("auto", "none", "required")

CALL_TOKENS: Final = 1024
"""What a call may take: enough for the longest that the grammar allows of a few arguments."""

MOST_CALLS: Final = 4
"""In one step."""

LONGEST_STRING: Final = (200, 40)
"""Characters of a string whose schema sets no limit, and of one within a list: a small model that has begun one may not
find its end."""

MOST_ITEMS: Final = (8, 3)
"""Of a list whose schema sets no limit, and of one within a list."""

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"

_INSTRUCTIONS: Final = """# Tools

You may call these functions when they help to answer:
{tools}

To call one, write nothing but its name and its arguments as JSON:
<tool_call>
{{"name": ..., "arguments": {{...}}}}
</tool_call>"""


class ToolDescription(Protocol):
    """What the model is told of a tool. ``parameters``: a JSON schema of the object that holds its arguments."""

    @property
    def name(self) -> str:
        """An identifier in ASCII."""

    @property
    def description(self) -> str:
        """What it does, and when it is of use."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Of its arguments."""

    @property
    def allowed(self) -> dict[str, Any]:
        """A JSON schema of the arguments that may be written: ``parameters``, or less."""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """``arguments``: a JSON object, as text. ``raw``: what the model wrote, "" where it was not the model."""

    name: str
    arguments: str = "{}"
    call_id: str = ""
    raw: str = ""

    @property
    def type(self) -> Literal["function_call"]:
        """Which item of a conversation this is."""
        return "function_call"


@dataclass(frozen=True, slots=True)
class FunctionCallOutput:
    """What came of a call, in words for the model."""

    call_id: str
    name: str
    output: str
    is_error: bool = False

    @property
    def type(self) -> Literal["function_call_output"]:
        """Which item of a conversation this is."""
        return "function_call_output"


# --- to the model -----------------------------------------------------------------------------------------


def instructions_for(tools: Iterable[ToolDescription]) -> str:
    """What follows the agent's own instructions; "" without tools."""
    lines = [_described(tool) for tool in tools]
    return _INSTRUCTIONS.format(tools="\n".join(lines)) if lines else ""


def _described(tool: ToolDescription) -> str:
    notes = [tool.description] if tool.description else []
    for name, schema in tool.parameters.get("properties", {}).items():
        if isinstance(schema, dict) and (note := schema.get("description")):
            notes.append(f"{name}: {note}")
    return f"- {tool.name}({_type(tool.parameters)}) {' '.join(' '.join(notes).split())}".rstrip()


def _type(schema: Any) -> str:
    """``schema`` in a notation that is a third as long, and that a small model is not tempted to repeat."""
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(one, ensure_ascii=False) for one in schema.get("enum", [schema.get("const")]))
    if ways := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " | ".join(map(_type, ways))
    types = schema.get("type", "object" if "properties" in schema else "any")
    return " | ".join(_plain_type(one, schema) for one in ([types] if isinstance(types, str) else types))


def _plain_type(name: str, schema: dict[str, Any]) -> str:
    if name == "object" and isinstance(properties := schema.get("properties"), dict):
        required = schema.get("required", [])
        fields = [f"{json.dumps(key)}{'' if key in required else '?'}: {_type(one)}" for key, one in properties.items()]
        return f"{{{', '.join(fields)}}}"
    if name == "object" and isinstance(others := schema.get("additionalProperties"), dict):
        return f"{{string: {_type(others)}, ...}}"
    if name == "array":
        return f"[{_type(schema.get('items', {}))}, ...]"
    if name == "integer" and "minimum" in schema and "maximum" in schema:
        return f"{schema['minimum']} to {schema['maximum']}"
    return str(schema.get("format", name)) if name == "string" else name


def call_message(calls: Sequence[FunctionCall]) -> ChatMessage:
    """``calls``, made in one step, as the model wrote them."""
    return ChatMessage("assistant", "\n".join(call.raw or _written(call) for call in calls))


def result_message(outputs: Sequence[FunctionCallOutput]) -> ChatMessage:
    """What came of the calls of one step."""
    return ChatMessage("user", "\n".join(f"<tool_response>\n{one.output}\n</tool_response>" for one in outputs))


def _written(call: FunctionCall) -> str:
    return f'{_OPEN}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{_CLOSE}'


# --- what it may write ------------------------------------------------------------------------------------


def grammar_for(tools: Iterable[ToolDescription], choice: ToolChoice) -> str:
    """What one step may be (GBNF, with schemas in rules of ``%json``); "" without tools: anything.

    Raises ``ValueError`` where no tool obeys ``choice``.
    """
    known = {tool.name: tool for tool in tools}
    if choice not in CHOICES and choice not in known:
        allowed = ", ".join([*CHOICES, *known])
        raise ValueError(f"tool_choice is {choice!r}, allowed: {allowed}")
    if not known:
        if choice == "required":
            raise ValueError("tool_choice is 'required', and there is no tool")
        return ""
    if choice == "none":
        return "root ::= [^<]+\n"
    called = known if choice in CHOICES else {choice: known[choice]}
    rules = ["root ::= calls" if choice != "auto" else "root ::= calls | [^<]+"]
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if choice in CHOICES else ""
    rules += [f"calls ::= call{more}"]
    ways = []
    for number, tool in enumerate(called.values()):
        begin = f'{_OPEN}\n{{"name": "{tool.name}", "arguments": '
        end = f"}}\n{_CLOSE}"
        ways.append(f"{_literal(begin)} arguments-{number} {_literal(end)}")
        rules.append(f"arguments-{number} ::= %json {json.dumps(_bounded(tool.allowed), ensure_ascii=False)}")
    rules.append(f"call ::= {' | '.join(ways)}")
    return "\n".join(rules) + "\n"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _bounded(schema: Any, *, listed: bool = False) -> Any:
    """``schema``, with an end to every string and list that has none: what has no end is not always ended.

    And an object has the properties that are named, also if there are none. ``listed``: it is of a list's items.
    """
    if isinstance(schema, list):
        return [_bounded(one, listed=listed) for one in schema]
    if not isinstance(schema, dict):
        return schema
    bounded: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            bounded[key] = {name: _bounded(one, listed=listed) for name, one in value.items()}
        else:
            is_plain = key in ("enum", "const", "default")
            bounded[key] = value if is_plain else _bounded(value, listed=listed or key in ("items", "prefixItems"))
    types = schema.get("type")
    types = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    if not {"enum", "const", "format", "maxLength"} & schema.keys() and "string" in types:
        bounded["maxLength"] = max(LONGEST_STRING[listed], schema.get("minLength", 0))
    if not {"enum", "const", "prefixItems", "maxItems"} & schema.keys() and "array" in types:
        bounded["maxItems"] = max(MOST_ITEMS[listed], schema.get("minItems", 0))
    if "properties" in schema:
        bounded.setdefault("additionalProperties", False)
    return bounded


# --- from the model ---------------------------------------------------------------------------------------


class CallParser:
    """One step of the model: give it the text as it comes. A step is an answer or calls, never both."""

    def __init__(self) -> None:
        self.pieces = 0
        """Of text that may be said."""
        self._held = ""
        self._is_answer = False

    def __repr__(self) -> str:
        return f"<CallParser {'answer' if self._is_answer else self._held!r}>"

    def push(self, text: str) -> str:
        """What of the text so far may be said, and was not given back before."""
        if not self._is_answer:
            self._held += text
            begun = self._held.lstrip()
            if begun.startswith(_OPEN) or _OPEN.startswith(begun):
                return ""
            self._is_answer = True
            text, self._held = self._held, ""
        self.pieces += 1
        return text

    def finish(self) -> tuple[FunctionCall, ...]:
        """The calls, when the text has ended; one that was not finished is not among them."""
        return () if self._is_answer else tuple(_read(self._held))


def _read(text: str) -> Iterator[FunctionCall]:
    decoder = json.JSONDecoder()
    at = 0
    while (begin := text.find(_OPEN, at)) >= 0:
        start = begin + len(_OPEN)
        start += len(text[start:]) - len(text[start:].lstrip())
        try:
            called, end = decoder.raw_decode(text, start)
        except ValueError:
            return
        close = text.find(_CLOSE, end)
        if close < 0 or text[end:close].strip() or not isinstance(called, dict):
            return
        at = close + len(_CLOSE)
        name, arguments = called.get("name"), called.get("arguments", {})
        if isinstance(name, str):
            yield FunctionCall(name, json.dumps(arguments, ensure_ascii=False), raw=text[begin:at])


def distinct(calls: Iterable[FunctionCall], numbers: Iterator[int]) -> tuple[FunctionCall, ...]:
    """``calls`` without what is asked twice, each with a ``call_id``, made with the next of ``numbers``."""
    once: dict[tuple[str, str], FunctionCall] = {}
    for call in calls:
        once.setdefault((call.name, call.arguments), call)
    return tuple(call if call.call_id else replace(call, call_id=f"call_{next(numbers)}") for call in once.values())
