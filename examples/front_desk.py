"""A worker in a program of its own, with options in code: python examples/front_desk.py

It takes the rooms of one hotel, at most eight at once, and leaves others to other workers.
"""

from host import JobContext, JobRequest, VoiceAgent, WorkerOptions, run_worker


async def entrypoint(ctx: JobContext) -> None:
    """One call."""
    agent = VoiceAgent(instructions="You answer at the front desk of a hotel.", greeting="Front desk, good day.")
    session = await ctx.start_session(agent)
    await session.wait_closed()


async def request_fnc(request: JobRequest) -> None:
    """Asked in the supervisor before each job, within five seconds."""
    if request.room.name.startswith("hotel-miramar-"):
        await request.accept(name="Front desk")
    else:
        await request.reject(terminate=False)


if __name__ == "__main__":
    run_worker(WorkerOptions(entrypoint_fnc=entrypoint, request_fnc=request_fnc, max_jobs=8))
