"""What a caller said and heard in one call, on one clock. Pure.

All times are seconds on the machine's monotonic clock, placed by the caller's own audio clock: the moment
of sample n is the start of the call plus n / rate, whenever the caller's process came to handle it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from host.job.room import AgentState, Side


@dataclass(frozen=True, slots=True)
class Said:
    """One utterance of the caller: from its first to its last voiced sample.

    ``clip``: the recording's name. ``interrupts``: it began while the agent was heard. ``hesitation_s``:
    silence that the caller made in the middle of it.
    """

    turn: int
    clip: str
    begin_s: float
    end_s: float
    interrupts: bool = False
    hesitation_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Heard:
    """One stretch of the agent's voice, first to last voiced sample. ``end_s`` None: it goes on."""

    begin_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """An underrun: for ``ms`` there was nothing to hear in the middle of an answer."""

    at_s: float
    ms: float


@dataclass(frozen=True, slots=True)
class Shown:
    """A transcript as the caller's end got it."""

    at_s: float
    side: Side
    segment: str
    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class AgentDoes:
    """The agent's state changed."""

    at_s: float
    state: AgentState


@dataclass(frozen=True, slots=True)
class Joined:
    """The agent is there. ``asked_s``: when the call began."""

    at_s: float
    asked_s: float


@dataclass(frozen=True, slots=True)
class Left:
    """The call is over. ``error``: "" or why it ended before its time. ``late_ms``: of the caller's own ticks,
    p99 and maximum: how late its process came to handle them.
    """

    at_s: float
    error: str = ""
    late_p99_ms: float = 0.0
    late_max_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it was heard, kept in ``file`` (int16 PCM at ``rate``; "": not kept). ``text``: what the agent says
    it said.
    """

    at_s: float
    segment: str
    text: str
    file: str
    rate: int
    seconds: float


Event = Said | Heard | Gap | Shown | AgentDoes | Joined | Left | Answer
_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Said, Heard, Gap, Shown, AgentDoes, Joined, Left, Answer)
}


def to_json(event: Event) -> dict[str, Any]:
    """For a line of JSON."""
    return {"event": type(event).__name__, **asdict(event)}


def from_json(data: dict[str, Any]) -> Event:
    """The inverse of ``to_json``. Raises ``KeyError`` and ``TypeError``."""
    values = dict(data)
    return _KINDS[values.pop("event")](**values)


@dataclass(slots=True)
class Timeline:
    """One call. ``seat``: which of the callers; ``call``: its how manieth call; ``name``: of this room's agent."""

    room: str
    seat: int
    call: int
    name: str
    said: list[Said] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    joined: Joined | None = None
    left: Left | None = None

    def since(self, begin_s: float) -> Timeline:
        """What happened from ``begin_s`` on."""
        return Timeline(
            self.room,
            self.seat,
            self.call,
            self.name,
            [said for said in self.said if said.end_s >= begin_s],
            [heard for heard in self.heard if heard.end_s is None or heard.end_s >= begin_s],
            [gap for gap in self.gaps if gap.at_s >= begin_s],
            [shown for shown in self.shown if shown.at_s >= begin_s],
            [answer for answer in self.answers if answer.at_s >= begin_s],
            self.joined,
            self.left,
        )

    def add(self, event: Event) -> None:
        """The next event; a ``Heard`` that ends takes the place of the one that began."""
        match event:
            case Said():
                self.said.append(event)
            case Heard():
                if self.heard and self.heard[-1].end_s is None:
                    self.heard[-1] = event
                else:
                    self.heard.append(event)
            case Gap():
                self.gaps.append(event)
            case Shown():
                self.shown.append(event)
            case Answer():
                self.answers.append(event)
            case Joined():
                self.joined = event
            case Left():
                self.left = event
            case AgentDoes():
                # For the caller, who goes by it; nothing is measured by it.
                return
