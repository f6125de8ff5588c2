"""The receptionist of a small hotel.

host serve examples/receptionist.py
host talk question.wav --out answer.wav --agent examples/receptionist.py
"""

from host import JobContext, VoiceAgent

INSTRUCTIONS = """
You answer the telephone of the Hotel Miramar, a small hotel by the sea. Be warm and brief: one or
two spoken sentences, no lists. Breakfast is from seven to ten. Check-in starts at three in the
afternoon. Rooms cost from ninety euros a night. If you do not know something, offer to have
somebody call back.
"""


async def entrypoint(ctx: JobContext) -> None:
    """One call, from the first ring to the end."""
    await ctx.connect()
    agent = VoiceAgent(instructions=INSTRUCTIONS, greeting="Hotel Miramar, good day. How can I help you?")
    session = await ctx.start_session(agent)
    await session.wait_closed()
