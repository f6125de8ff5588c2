"""What the caller says, from the first sound to a turn that is committed: the caller's half of the turn table. Pure.

At a pause the utterance so far is transcribed and an answer to it prepared, on speculation. How long the silence
must be is ``endpointing``'s to say, from the words and from what the model makes of them; evidence that comes late
is waited for within bounds. A caller who goes on continues the turn: it is transcribed from its first start. What is
longer than one transcription may be is cut into parts, whose texts are joined.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from host.job import turn_events as t
from host.job.backchannel import is_backchannel, words
from host.job.endpointing import Endpointing
from host.job.turn_events import State
from host.job.turn_rules import SAMPLE_RATE, SAMPLES_PER_MS, Rules
from inference.wire.messages import AudioLost, SpeechEnded, SpeechPaused, SpeechResumed, SpeechStarted

PADDING = 250 * SAMPLES_PER_MS
"""Heard before the first voiced window as well: detection is late on soft consonants."""
MAX_PART = 28 * SAMPLE_RATE
"""Longest stretch transcribed in one piece: Whisper's window is 30 s."""
CLOSE_PART = 20 * SAMPLE_RATE
"""A part that has reached this length at a pause is kept when the caller goes on, and a new one begins."""
MAX_TRIES = 2
"""How often a part is transcribed before it counts as nothing said."""
EVIDENCE_WAIT = 600 * SAMPLES_PER_MS
"""How long the model's word on a transcript is waited for, after the transcript has come.

It comes as soon as the model has read it, which the answer needs, too: little is lost by waiting.
"""
AHEAD = 600 * SAMPLES_PER_MS
"""An answer is begun this long before the turn is expected to be committed: about what one takes to its first sound."""
EARLIEST_AHEAD = 200 * SAMPLES_PER_MS
"""After less silence no answer is begun: most pauses between words are shorter."""


@dataclass(slots=True)
class Part:
    """A stretch of the utterance that is transcribed in one piece. ``ticket`` 0: nothing asked.

    ``needed``: it is waited for. ``asked``: how often.
    """

    start: int
    end: int = 0
    ticket: int = 0
    needed: bool = False
    asked: int = 0
    text: str | None = None


@dataclass(slots=True)
class Turn:
    """``stretch``: where the caller began to speak last. ``last_voiced``: where the caller last fell silent.

    ``interrupted``: it interrupted the agent. ``ordered``: where its end was asked for. ``prepared``: ticket of what
    was prepared at ``prepared_at``, 0: nothing. ``over``: the probability of that, None: not told yet. ``ahead``:
    ticket of an answer that was begun. ``probe``: ticket of a transcript that only decides whether it interrupts;
    the last one was asked at ``probed``.
    """

    start: int
    stretch: int
    last_voiced: int
    parts: list[Part]
    interrupted: bool = False
    failed: bool = False
    ordered: int | None = None
    prepared: int = 0
    prepared_at: int = 0
    over: float | None = None
    ahead: int = 0
    probe: int = 0
    probed: int = 0
    committed: str = ""

    def text(self) -> str | None:
        """What was said; None while a transcript of it is missing."""
        texts = [part.text for part in self.parts if part.text is not None]
        # Whatever is heard of a caller who goes on, this much has been said.
        return (" ".join(filter(None, texts)) or self.committed) if len(texts) == len(self.parts) else None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What the caller has said of a turn so far: ``said``, and then what lies from ``start`` to ``end``."""

    said: str
    start: int
    end: int


def began_at(event: SpeechStarted | SpeechResumed) -> int:
    """Where the caller began to speak."""
    return event.start if isinstance(event, SpeechStarted) else event.at


def fell_silent_at(event: SpeechPaused | SpeechEnded | AudioLost) -> int:
    """Where the caller was last heard. Where audio was lost, detection begins anew and reports no end of speech."""
    return event.resumed - event.lost_samples if isinstance(event, AudioLost) else event.end


@dataclass(slots=True)
class UserTurn:
    """The caller's turn, by ``rules``. Handlers of the table's rows, which return the state that follows."""

    rules: Rules = field(default_factory=Rules)
    state: State = State.LISTENING
    position: int = 0
    away: bool = False
    endpointing: Endpointing = field(init=False)
    turn: Turn | None = None
    floor: int = 0
    """Audio before it belongs to a turn that is over."""
    actions: list[t.Action] = field(default_factory=list)
    _tickets: int = 0
    _preparations: int = 0

    def __post_init__(self) -> None:
        self.endpointing = Endpointing(self.rules.min_delay, self.rules.max_delay, self.rules.language)

    @property
    def open_turn(self) -> Turn:
        """The turn that the caller is in."""
        assert self.turn is not None
        return self.turn

    @property
    def is_manual(self) -> bool:
        """Whether turns end and agents are interrupted only by who asks for it."""
        return self.rules.detection == "manual"

    @property
    def is_decided(self) -> bool:
        """Whether the turn is over whatever is transcribed, and nothing but that is waited for."""
        return self.state is State.TRANSCRIBING and (
            self.rules.detection != "model" or self.open_turn.ordered is not None
        )

    @property
    def may_resume(self) -> bool:
        """Whether what the caller interrupted may yet go on."""
        return self.turn is not None and self.turn.interrupted and not self.turn.committed

    def unfinished(self) -> Unfinished | None:
        """What could be transcribed of a caller who is speaking; None while nobody speaks to the agent."""
        if self.state is not State.USER_SPEAKING:
            return None
        *before, part = self.open_turn.parts
        said = " ".join(earlier.text for earlier in before if earlier.text)
        return Unfinished(said, part.start, max(part.start, self.position))

    # --- the caller speaks --------------------------------------------------------------------------

    def open(self, at: int) -> Turn:
        """The caller begins a turn at ``at``."""
        self.away = False
        self.turn = Turn(at, at, at, [Part(max(at - PADDING, self.floor, 0))])
        return self.turn

    def begin(self, event: SpeechStarted | SpeechResumed) -> State:
        """The caller begins a turn."""
        self.open(began_at(event))
        return State.USER_SPEAKING

    def go_on(self, event: SpeechStarted | SpeechResumed) -> State:
        """The caller goes on after a pause: what was found out about it is of no use."""
        at = began_at(event)
        turn = self.open_turn
        if turn.ordered is not None:
            # Its end was asked for. What is said from there on is not listened to before the agent answers.
            return self.state
        if turn.text() != "":
            self.endpointing.went_on(at - turn.last_voiced)
        turn.stretch = at
        self.drop_preparation(turn)
        part = turn.parts[-1]
        if at - part.start > CLOSE_PART:
            if part.text is None and not part.ticket:
                self.ask(part, part.end, speculative=False)
            turn.parts.append(Part(max(at - PADDING, part.end)))
        else:
            if part.text is None and part.ticket:
                self.actions.append(t.DropTranscript(part.ticket))
            turn.parts[-1] = Part(part.start)
        return State.USER_SPEAKING

    def tick(self, event: t.Tick) -> State:
        """Time passes."""
        self.position = max(self.position, event.position)
        return self.state

    def tick_speaking(self, event: t.Tick) -> State:
        """Time passes while the caller speaks: what grows too long for one transcription is cut."""
        self.tick(event)
        part = self.open_turn.parts[-1]
        if self.position - part.start >= MAX_PART:
            # Nobody talks this long without a pause that detection sees; music and noise do.
            self.ask(part, part.start + MAX_PART, speculative=False)
            self.open_turn.parts.append(Part(part.end))
        return self.state

    # --- the caller pauses --------------------------------------------------------------------------

    def pause(self, event: SpeechPaused | SpeechEnded | AudioLost) -> State:
        """The caller has fallen silent, perhaps for good."""
        turn = self.open_turn
        turn.last_voiced = fell_silent_at(event)
        speculative = self.position - turn.last_voiced < self.rules.shortest
        self.ask(turn.parts[-1], max(self.position, turn.last_voiced), speculative=speculative)
        return self.decide()

    def tick_endpointing(self, event: t.Tick) -> State:
        """Time passes in silence."""
        self.tick(event)
        return self.decide()

    def decide(self) -> State:
        """Whether the silence so far ends the turn."""
        turn = self.open_turn
        if self.is_manual and turn.ordered is None:
            return State.ENDPOINTING
        silence = self.position - turn.last_voiced
        text = turn.text()
        if text is None:
            if silence < self.rules.shortest and turn.ordered is None:
                return State.ENDPOINTING
            self._need_transcripts(turn)
            return State.TRANSCRIBING
        if not text or (turn.interrupted and not self.interrupts(text)):
            return self._no_words(turn, silence)
        delay, wait = self._delay(turn, text)
        if silence >= max(delay, wait):
            return self._commit(turn, text, delay)
        may_begin = self.rules.preemptive and turn.prepared and not (turn.ahead or wait)
        if may_begin and silence >= max(delay - AHEAD, EARLIEST_AHEAD):
            turn.ahead = turn.prepared
            self.actions.append(t.AnswerAhead(turn.ahead, text))
        return State.ENDPOINTING

    def _delay(self, turn: Turn, text: str) -> tuple[int, int]:
        """The silence that ends ``turn``, and how long what may still change that is waited for (0: nothing may)."""
        if turn.ordered is not None:
            return turn.ordered - turn.last_voiced, 0
        if self.rules.detection == "vad":
            return self.rules.vad_delay, 0
        delay = self.endpointing.delay(text, -1.0 if turn.over is None else turn.over)
        if not turn.prepared or turn.over is not None:
            return delay, 0
        return delay, min(turn.prepared_at + EVIDENCE_WAIT - turn.last_voiced, self.rules.max_delay)

    def _need_transcripts(self, turn: Turn) -> None:
        for part in turn.parts:
            if part.text is not None or part.needed:
                continue
            if part.ticket:
                part.needed = True
                self.actions.append(t.PromoteTranscript(part.ticket))
            else:
                self.ask(part, part.end, speculative=False)

    def _commit(self, turn: Turn, text: str, delay: int) -> State:
        decided = min(self.position, turn.last_voiced + delay)
        self.actions.append(t.CommitTurn(text, turn.start, turn.last_voiced, decided, delay, turn.ahead))
        turn.committed, turn.prepared, turn.ahead = text, 0, 0
        return State.THINKING

    def _no_words(self, turn: Turn, silence: int) -> State:
        if turn.interrupted and not turn.failed and turn.ordered is None:
            if silence < self.rules.false_interruption:
                return State.HELD
            self.actions.append(t.ResumeAnswer())
            self.close()
            return State.SPEAKING
        if silence < self.rules.shortest and turn.ordered is None:
            return State.ENDPOINTING
        return self.drop()

    # --- what was said ------------------------------------------------------------------------------

    def interrupts(self, text: str) -> bool:
        """Whether ``text``, said over the agent, was said to stop it."""
        if self.rules.backchannels and is_backchannel(text, self.rules.language):
            return False
        return len(words(text)) >= max(1, self.rules.min_interruption_words)

    def take_text(self, event: t.TranscriptArrived) -> Part | None:
        """The part that ``event`` is the transcript of; None: nobody waits for it."""
        part = self._asked(event.ticket)
        if part is not None:
            part.text = event.text if words(event.text) else ""
        return part

    def transcript(self, event: t.TranscriptArrived) -> State:
        """What was said is known."""
        if self.take_text(event) is None or self.state is State.USER_SPEAKING:
            return self.state
        self.prepare()
        return self.decide()

    def prepare(self) -> None:
        """Have an answer prepared, once all that was said is transcribed."""
        turn = self.open_turn
        text = turn.text()
        if text and not turn.prepared and not (turn.interrupted and not self.interrupts(text)):
            self._preparations += 1
            turn.prepared, turn.prepared_at, turn.over = self._preparations, self.position, None
            self.actions.append(t.PrepareAnswer(turn.prepared, text))

    def end_of_turn(self, event: t.EndOfTurn) -> State:
        """What the model makes of it is known."""
        if event.ticket != self.open_turn.prepared:
            return self.state
        self.open_turn.over = event.probability
        return self.decide()

    def transcript_failed(self, event: t.TranscriptFailed) -> State:
        """What was said is not known."""
        self.fail(event.ticket)
        return self.state if self.state is State.USER_SPEAKING else self.decide()

    def fail(self, ticket: int) -> None:
        """``ticket`` failed: what it was to say is asked for again once, when it is needed."""
        part = self._asked(ticket)
        if part is None:
            return
        part.ticket, part.needed = 0, False
        if part.asked == MAX_TRIES:
            part.text, self.open_turn.failed = "", True
        elif self.state in (State.USER_SPEAKING, State.OVERLAP) or part is not self.open_turn.parts[-1]:
            self.ask(part, part.end, speculative=False)

    # --- the open turn ------------------------------------------------------------------------------

    def ticket(self) -> int:
        """A number for a transcription."""
        self._tickets += 1
        return self._tickets

    def ask(self, part: Part, end: int, *, speculative: bool) -> None:
        """Have ``part`` transcribed up to ``end``."""
        part.ticket, part.end, part.needed = self.ticket(), end, not speculative
        part.asked += 1
        self.actions.append(t.Transcribe(part.ticket, part.start, end, speculative))

    def _asked(self, ticket: int) -> Part | None:
        if self.turn is None:
            return None
        return next((part for part in self.turn.parts if part.ticket == ticket and part.text is None), None)

    def close(self) -> None:
        """The turn, if there is one, is over."""
        if self.turn is not None:
            self.floor = self.turn.last_voiced
            self.turn = None

    def drop(self) -> State:
        """Forget the open turn."""
        self.drop_requests(self.open_turn)
        self.actions.append(t.DropTurn())
        self.close()
        return State.LISTENING

    def drop_preparation(self, turn: Turn) -> None:
        """What was prepared for ``turn`` is of no use."""
        if turn.prepared:
            self.actions.append(t.DropPreparation())
        turn.prepared, turn.ahead, turn.over = 0, 0, None

    def drop_probe(self, turn: Turn) -> None:
        """Nobody needs to know whether ``turn`` interrupts."""
        if turn.probe:
            self.actions.append(t.DropTranscript(turn.probe))
            turn.probe = 0

    def drop_requests(self, turn: Turn) -> None:
        """Nothing that was asked for ``turn`` is needed."""
        self.drop_probe(turn)
        self.drop_preparation(turn)
        for part in turn.parts:
            if part.ticket and part.text is None:
                self.actions.append(t.DropTranscript(part.ticket))
