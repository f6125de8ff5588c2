"""What has been said on the call, as it is shown: who, what, whether it may still change, how long it took. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from host.job.line import Text
    from host.job.room import Side
    from inference.wire.supervision import TurnReport


@dataclass(slots=True)
class Entry:
    """One segment of speech, or one message typed.

    ``turn``: of an answer that is over, what was measured. ``waited_s``: of an answer to something typed, from Enter to
    its first text, on the console's clock.
    """

    side: Side
    segment: str
    text: str
    final: bool
    typed: bool = False
    turn: TurnReport | None = None
    waited_s: float | None = None


@dataclass(slots=True)
class Script:
    """The entries in their order; those that cannot change any more are taken out to be printed.

    An answer that was interrupted may go on, in the same segment, and what was measured of it comes by another way than
    its text. So it stays open until that is there, or something is said after it.
    """

    reports: list[TurnReport] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    _entries: list[Entry] = field(default_factory=list)
    _taken: int = 0
    _asked_at: float | None = None

    def typed(self, text: str, now: float) -> None:
        """The caller has sent a message."""
        self._asked_at = now
        self._entries.append(Entry("user", "", text, final=True, typed=True))

    def shown(self, shown: Text, now: float) -> None:
        """The job tells a segment's text so far."""
        entry = self._find(shown.side, shown.segment)
        if entry is None and shown.side == "user":
            entry = self._echoed(shown)
        if entry is None:
            if not shown.text:
                return
            entry = Entry(shown.side, shown.segment, shown.text, shown.final)
            self._entries.append(entry)
        entry.text, entry.final = shown.text, shown.final
        if shown.side == "agent" and shown.text and self._asked_at is not None:
            entry.waited_s, self._asked_at = now - self._asked_at, None
            self.waits_s.append(entry.waited_s)

    def measured(self, report: TurnReport) -> None:
        """A turn is over."""
        self.reports.append(report)
        asked = ""
        candidates = []
        for entry in self._entries:
            if entry.side == "user":
                asked = entry.text
            elif entry.turn is None and asked == report.transcript:
                candidates.append(entry)
        if candidates:
            candidates[-1].turn = report

    def take_settled(self) -> list[Entry]:
        """What will not change any more, in order, and was not taken before."""
        settled = []
        while self._taken < len(self._entries) and self._is_settled(self._taken):
            entry = self._entries[self._taken]
            self._taken += 1
            if entry.text:
                settled.append(entry)
        return settled

    def take_all(self) -> list[Entry]:
        """All that was not taken before: the call is over."""
        rest = [entry for entry in self.open if entry.text]
        self._taken = len(self._entries)
        return rest

    @property
    def open(self) -> Sequence[Entry]:
        """What may still change, and what comes after it."""
        return self._entries[self._taken :]

    def is_answered(self) -> bool:
        """Whether the latest of what was said for good is the agent's."""
        said = [entry for entry in self._entries if entry.final and entry.text]
        return bool(said) and said[-1].side == "agent"

    def responses_s(self) -> tuple[float, float] | None:
        """Median and longest time to an answer, in seconds; None without any."""
        times = [report.response_ms / 1000 for report in self.reports if report.response_ms >= 0] or self.waits_s
        return (statistics.median(times), max(times)) if times else None

    def _is_settled(self, index: int) -> bool:
        entry = self._entries[index]
        if not entry.final:
            return False
        if entry.side == "user" or entry.turn is not None:
            return True
        return any(later.final and later.text for later in self._entries[index + 1 :])

    def _find(self, side: Side, segment: str) -> Entry | None:
        for entry in self._entries[self._taken :]:
            if entry.side == side and entry.segment == segment:
                return entry
        return None

    def _echoed(self, shown: Text) -> Entry | None:
        """What the caller typed, as the job tells it back."""
        for entry in self._entries:
            if entry.typed and not entry.segment and entry.text == shown.text:
                entry.segment = shown.segment
                return entry
        return None
