"""How many threads the engines take of the cores that are there, and how long they spin. Pure.

One lane runs one batch at a time, so the teams of the engines never work side by side: each may have what is left
beside everything else. That is voice activity detection, the event loops, and above all the jobs, which decode and
encode the audio of their rooms in threads of WebRTC. A team that is a thread smaller loses that thread's work. One
whose thread waits for a core that somebody else has loses everything: the others stand at the next barrier.
``scripts/bench/threads.py`` measures both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPIN_COUNT: Final = 100
"""GOMP_SPINCOUNT: looks at a barrier before a thread gives its core up (a look is some ten nanoseconds).

Two threads of the language model beside one busy process took 0.5 s for 24 tokens with 0 and with 100, 0.7 s with
1,000 and 7 s with 10,000. Speech to text hardly has barriers: there it made no difference.
"""

_JOBS_SHARE: Final = 4
"""One core of so many is for the jobs."""
_LARGEST: Final = 16
"""More threads than this wait for each other longer than they work, for models that a CPU can serve. Not measured
here: the figure is what llama.cpp's users find."""


@dataclass(frozen=True, slots=True)
class ThreadTeams:
    """Threads of the speech engines, which seldom meet at a barrier, and of the language model, which always does.

    Several tokens at once, a prompt or a step of several rooms, are more work between two barriers: there the language
    model has as many threads as speech. Two of them on two cores: a prompt in 0.57 of the time of one, a step of 2, 4
    and 8 rooms in 0.73, 0.61 and 0.60; beside a busy process 1.09 and (2 rooms) 1.30.
    """

    speech: int
    language: int


def thread_teams(cores: int) -> ThreadTeams:
    """Of ``cores`` (at least 1).

    Speech has them all as long as there are fewer than four; the language model always leaves one, so that
    its barriers, thousands a second, need not wait for the jobs.
    """
    share = cores // _JOBS_SHARE
    return ThreadTeams(
        speech=min(_LARGEST, max(1, cores - share)),
        language=min(_LARGEST, max(1, cores - max(1, share))),
    )
