"""A restaurant's telephone: it looks up when it is open, and books tables.

host serve examples/restaurant.py

The tools are ordinary methods: what the model must write to call one comes from its signature, and a grammar keeps the
model to that. The default model is too small to know when a tool is of use and what to make of a result. So the agent's
own rules do, in ``llm_node``: words choose the tool, what was said narrows its arguments, what was not said is asked
for, and the result is said as it is. A model that can choose for itself (docs/tools.md) needs none of that:
``Restaurant(model_chooses=True)``.
"""

import dataclasses
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from host import (
    ChatContext,
    FunctionCall,
    FunctionCallOutput,
    FunctionTool,
    JobContext,
    ModelSettings,
    RunContext,
    ToolError,
    VoiceAgent,
    function_tool,
)

Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]

HOURS: dict[str, str] = {
    "tuesday": "six to ten in the evening",
    "wednesday": "six to ten in the evening",
    "thursday": "six to ten in the evening",
    "friday": "noon to eleven in the evening",
    "saturday": "noon to eleven in the evening",
    "sunday": "noon to five in the afternoon",
}
"""When it is open; on Mondays it is not."""

INSTRUCTIONS = "You answer the telephone of the restaurant Chez Ada. Answer in one or two short spoken sentences."

BOOKS = re.compile(r"\b(book|reserv|table)")
ASKS = re.compile(r"\b(open|opening|closed?|hours|when|until)\b")
DAYS = re.compile(r"monday|tuesday|wednesday|thursday|friday|saturday|sunday")
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}

Book = list[tuple[str, int]]
"""The reservations: a day and the number of people."""

logger = logging.getLogger("restaurant")


class Restaurant(VoiceAgent):
    """``session.userdata`` is a ``Book``."""

    def __init__(self, *, model_chooses: bool = False) -> None:
        super().__init__(INSTRUCTIONS, greeting="Chez Ada, good day. How can I help you?")
        self._model_chooses = model_chooses

    # --- what it can do -------------------------------------------------------------------------------

    @function_tool
    async def opening_hours(self, day: Day) -> str:
        """When the restaurant is open on a day.

        Args:
            day: The day of the week.
        """
        if day not in HOURS:
            return f"On {day.capitalize()}s we are closed."
        return f"On {day.capitalize()}s we are open from {HOURS[day]}."

    @function_tool(filler="One moment, please.")
    async def book_table(self, context: RunContext[Book], day: Day, people: Annotated[int, range(1, 9)]) -> str:
        """Book a table at the restaurant.

        Args:
            day: The day of the week.
            people: How many people come.
        """
        if day not in HOURS:
            raise ToolError(f"On {day.capitalize()}s we are closed.")
        # What is in the book is not undone by a caller who interrupts.
        context.disallow_interruptions()
        context.userdata.append((day, people))
        logger.info("booked: %s, %d", day, people)
        return f"A table for {people} on {day.capitalize()} is booked."

    # --- rules, for a model that cannot choose --------------------------------------------------------

    async def llm_node(
        self, chat_ctx: ChatContext, tools: Sequence[FunctionTool[..., Any]], model_settings: ModelSettings
    ) -> AsyncGenerator[str | FunctionCall, None]:
        """Words choose; the model fills in what the words leave open, and answers everything else."""
        if not self._model_chooses:
            if isinstance(last := chat_ctx.items[-1], FunctionCallOutput):
                yield last.output.removeprefix("Error: ")
                return
            said = _said_since_the_last_result(chat_ctx)
            days = DAYS.findall(said)
            people = [NUMBERS.get(word) or int(word) for word in re.findall(rf"\b({'|'.join(NUMBERS)}|[1-8])\b", said)]
            choice = "book_table" if BOOKS.search(said) else "opening_hours" if ASKS.search(said) else "none"
            if choice != "none" and not days:
                yield "For which day, please?"
                return
            if choice == "book_table" and not people:
                yield "For how many people? We have tables for up to eight."
                return
            allowed = {"opening_hours": {"day": days}, "book_table": {"day": days, "people": people}}.get(choice, {})
            tools = [tool.narrowed(**allowed) if tool.name == choice else tool for tool in tools]
            model_settings = dataclasses.replace(model_settings, tool_choice=choice)
        async for part in super().llm_node(chat_ctx, tools, model_settings):
            yield part


def _said_since_the_last_result(chat_ctx: ChatContext) -> str:
    words: list[str] = []
    for item in reversed(chat_ctx.items):
        if isinstance(item, FunctionCallOutput):
            break
        if item.type == "message" and item.role == "user":
            words.insert(0, item.content.lower())
    return " ".join(words)


async def entrypoint(ctx: JobContext) -> None:
    """One call."""
    await ctx.connect()
    session = await ctx.start_session(Restaurant(), userdata=[])
    await session.wait_closed()
