"""One conversation: the shell that performs what ``turn`` decides.

    Capture ── VAD events, audio clock ──> TurnTaking ── actions ──> transcribe
                                                               ├──> generate ─> PhraseCutter ─> Player
                                                               └──> silence, history cut to what was heard

Everything runs on the job's event loop; inputs are fed to the table one at a time, and its actions
are performed before the next. Only what takes time (a transcription, a reply) is a task.

The inference process may go away and come back: the caller's audio is kept meanwhile, what is being
said falls silent, and when the room is attached again, detection begins where it had got to, and what
was asked for and not answered is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, runtime_checkable

from host.job import turn as t
from host.job.agent import VoiceAgent
from host.job.asking import LanguageModel
from host.job.audio import CALLER_RATE, Capture, Player, Utterance
from host.job.chat import ChatHistory, truncate_to_heard
from host.job.reply import AnsweredTurn, Reply, join, whole
from host.job.room import AgentState, Room
from host.job.settings import SessionSettings
from host.job.speech import PhraseCutter, SpeakablePhrase
from host.job.transcripts import MAX_ATTEMPTS, Transcriptions, UserTranscript
from inference.client import InferenceError, InferenceRoom, InferenceUnavailableError, RequestFailedError
from inference.wire.messages import ChatMessage
from inference.wire.supervision import TurnReport

logger = logging.getLogger(__name__)

_MIN_SILENCE_MS = 256
_WATCH_S = 0.01
"""How often a reply's progress is looked at until it is heard; five times as rarely afterwards."""
_DETECTION_LAG = 128 * t.SAMPLES_PER_MS
"""How far the clock of the turns may be ahead of detection: what nobody has listened to is no silence."""
_WINDOW_MS = 32
"""Detection looks at so much audio at once."""
_RETENTION_MARGIN_S = 5.0
"""After a long absence, how much of the caller's oldest audio is given up, so that the rest is not overwritten
while it is transcribed."""

_AGENT_STATES: dict[t.State, AgentState] = {
    t.State.LISTENING: "listening",
    t.State.USER_SPEAKING: "listening",
    t.State.ENDPOINTING: "listening",
    t.State.TRANSCRIBING: "thinking",
    t.State.THINKING: "thinking",
    t.State.SPEAKING: "speaking",
}


@runtime_checkable
class AnswerRecorder(Protocol):
    """A room that records the agent's answers and wants to know where one ends."""

    def end_answer(self) -> tuple[float, float]:
        """Where the answer that is over lies in the recording, in seconds."""


class VoiceSession:
    """The agent and one caller in one room, from the greeting to the end.

    ``run`` holds the conversation until ``aclose``. When the inference process goes away, ``attach_again``
    is awaited, which opens ``inference`` again; the ``InferenceUnavailableError`` that it raises when it
    gives up ends the conversation. ``report`` is called with each turn when it is over.
    """

    def __init__(
        self,
        room: Room,
        inference: InferenceRoom,
        agent: VoiceAgent,
        *,
        settings: SessionSettings,
        context_tokens: int,
        job_id: str,
        report: Callable[[TurnReport], None],
        attach_again: Callable[[], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        reply_tokens = min(settings.max_reply_tokens, context_tokens // 2)
        self.history = ChatHistory(agent.instructions, context_tokens=context_tokens, reply_tokens=reply_tokens)
        self.close_reason = ""
        self._room = room
        self._inference = inference
        self._agent = agent
        self._settings = settings
        self._job_id = job_id
        self._report = report
        self._attach_again = attach_again
        self._now = now
        self._turns = t.TurnTaking(settings.min_endpointing_delay_ms * t.SAMPLES_PER_MS, settings.allow_interruptions)
        self._capture = Capture(inference, self._on_clock, self._waits_for_clock, now)
        self._player = Player(room, inference, now)
        self._recorder = room if isinstance(room, AnswerRecorder) else None
        self._tasks: asyncio.TaskGroup | None = None
        self._model = LanguageModel(inference, self.history, settings, reply_tokens, now)
        self._transcriptions = Transcriptions(inference, settings, self._feed, self._show_partial)
        self._transcript_callbacks: list[Callable[[UserTranscript], None]] = []
        self._partial_segment = ""
        self._reply: Reply | None = None
        self._interrupted: Reply | None = None
        self._to_say: deque[Reply] = deque()
        self._turn_number = 0
        self._segments = 0
        self._event_at = 0.0
        self._state: AgentState | None = None
        self._notes: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()
        self._failure: InferenceError | None = None

    def __repr__(self) -> str:
        return f"<VoiceSession {self._room.name!r} {self._turns.state.value} turn={self._turn_number}>"

    # --- for the agent's author ---------------------------------------------------------------------

    async def say(self, text: str) -> str:
        """Say ``text`` as soon as the agent listens. Returns what was heard of it, which joins the history."""
        if self._ended.is_set():
            return ""
        reply = Reply.of(self._segment(), text)
        self._to_say.append(reply)
        if self._tasks is not None:
            self._feed(t.Tick(self._turns.position))
        await reply.over.wait()
        return reply.said

    def add_transcript_callback(self, callback: Callable[[UserTranscript], None]) -> None:
        """Have ``callback`` called with each transcript of the caller, as it comes; it must not block."""
        self._transcript_callbacks.append(callback)

    async def wait_closed(self) -> str:
        """Return the reason when the conversation is over. Raises the ``InferenceError`` that ended it."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self.close_reason

    async def aclose(self, reason: str = "") -> None:
        """End the conversation: silence, and every request is cancelled. Returns when that is done."""
        self.close_reason = self.close_reason or reason
        self._ending.set()
        await self._ended.wait()

    # --- running ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the conversation until ``aclose``. Raises the ``InferenceError`` that ended it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._show(), name="notes")
                tasks.create_task(self._player.run(), name="player")
                tasks.create_task(self._capture.run(self._room.caller_audio()), name="capture")
                tasks.create_task(self._watch_voice(), name="voice-activity")
                if self._agent.greeting:
                    self._to_say.appendleft(Reply.of(self._segment(), self._agent.greeting))
                self._prepare_opening()
                self._feed(t.Tick(self._inference.position))
                await self._ending.wait()
                raise _EndedError
        except* _EndedError:
            pass
        except* InferenceError as failures:
            self._failure = _first(failures)
            self.close_reason = str(self._failure)
        finally:
            self._wind_up()
        if self._failure is not None:
            raise self._failure

    @property
    def _group(self) -> asyncio.TaskGroup:
        assert self._tasks is not None, "the session is not running"
        return self._tasks

    def _wind_up(self) -> None:
        """Silence, and report the turns that the end cut off."""
        self._room.clear()
        if (reply := self._reply) is not None:
            self._reply = None
            if reply.utterance is not None:
                self._player.note_heard(reply.utterance)
                self._keep_heard(reply, reply.utterance)
            self._report_turn(reply, interrupted=True)
            reply.over.set()
        self._report_interrupted()
        for waiting in self._to_say:
            waiting.over.set()
        while not self._notes.empty():
            self._notes.get_nowait().close()
        self._ended.set()

    def _prepare_opening(self) -> None:
        """What every conversation begins with is read while the caller is greeted."""
        greeting = self._agent.greeting
        self._model.prepare(self._group, *([ChatMessage("assistant", greeting)] if greeting else []))

    # --- inputs ---------------------------------------------------------------------------------------

    async def _watch_voice(self) -> None:
        start = -1
        while True:
            try:
                self._listen(start)
                async for event in self._inference.events():
                    self._event_at = self._now()
                    logger.debug("%s", event)
                    # Whether this is a barge-in depends on what has been heard by now.
                    self._note_heard()
                    self._feed(event)
            except InferenceUnavailableError as lost:
                began = self._now()
                logger.warning("%s; the room stays, and waits for it to be back", lost)
                self._fall_silent()
                await self._attach_again()
                logger.info("the inference process is back after %.1f s", self._now() - began)
                start = self._restart_detection()
                self._model.prepare(self._group)

    def _listen(self, start: int) -> None:
        settings = self._settings
        self._inference.listen(
            start=start,
            activation=settings.activation,
            min_speech_ms=settings.min_speech_ms,
            pause_ms=min(settings.pause_ms, max(32, settings.min_endpointing_delay_ms)),
            min_silence_ms=_MIN_SILENCE_MS,
        )

    def _restart_detection(self) -> int:
        """Where detection begins again; what it had begun to take for speech, and not reported yet, is heard again."""
        inference = self._inference
        kept = min(inference.position, inference.oldest + round(_RETENTION_MARGIN_S * CALLER_RATE))
        oldest = kept if inference.oldest else 0
        unreported = (self._settings.min_speech_ms + 2 * _WINDOW_MS) * t.SAMPLES_PER_MS
        start = max(self._turns.detect_from(max(0, inference.heard - unreported)), oldest)
        self._feed(t.DetectionRestarted(start, oldest))
        return start

    def _on_clock(self, position: int) -> None:
        self._feed(t.Tick(min(position, self._inference.heard + _DETECTION_LAG)))

    def _waits_for_clock(self) -> bool:
        return self._turns.state in (t.State.USER_SPEAKING, t.State.ENDPOINTING)

    def _note_heard(self) -> None:
        reply = self._reply
        if reply is None or reply.utterance is None or reply.first_heard is not None:
            return
        if self._player.note_heard(reply.utterance):
            reply.first_heard = reply.utterance.first_heard
            self._feed(t.AnswerHeard())

    def _feed(self, event: t.Input) -> None:
        for action in self._turns.feed(event):
            logger.debug("%s", action)
            self._perform(action)
        if self._turns.state is t.State.LISTENING and self._to_say:
            self._turns.feed(t.SayStarted())
            self._start(self._to_say.popleft())
        self._transcriptions.follow(self._turns.unfinished(), self._group)
        self._show_state()

    # --- actions --------------------------------------------------------------------------------------

    def _perform(self, action: t.Action) -> None:
        match action:
            case t.Transcribe():
                self._transcriptions.ask(action, self._group)
            case t.DropTranscript(ticket=ticket):
                self._transcriptions.drop(ticket)
            case t.PrepareAnswer(text=text):
                self._model.prepare(self._group, ChatMessage("user", text))
            case t.DropPreparation():
                self._model.drop_preparation()
            case t.CommitTurn():
                self._answer(action)
            case t.CancelAnswer():
                self._cancel_answer()
            case t.Interrupt():
                self._interrupt()
            case t.ResumeAnswer():
                self._resume()
            case t.DropTurn():
                logger.info("no words in what was heard")
                self._withdraw_partial()
                self._report_interrupted()

    def _answer(self, turn: t.CommitTurn) -> None:
        self._report_interrupted()
        self._turn_number += 1
        measured = AnsweredTurn(
            self._turn_number,
            turn.text,
            audio_s=(turn.last_voiced - turn.start) / CALLER_RATE,
            last_voiced=self._capture.time_of(turn.last_voiced),
            decided=self._capture.time_of(turn.decided),
            committed=self._now(),
        )
        self.history.add_user(turn.text)
        self._show_transcript(UserTranscript(f"user-{self._turn_number}", turn.text, final=True))
        self._start(Reply(self._segment(), self._model.answer(measured), measured))

    def _cancel_answer(self) -> None:
        reply = self._stop_reply()
        assert reply.turn is not None
        self.history.take_back_user()
        self._turn_number -= 1
        if reply.utterance is not None and self._recorder is not None:
            self._recorder.end_answer()

    def _interrupt(self) -> None:
        reply = self._stop_reply()
        if reply.utterance is not None:
            self._keep_heard(reply, reply.utterance)
        reply.interrupted_at = self._event_at
        reply.over.set()
        self._interrupted = reply
        self._note(self._room.publish_transcript("agent", reply.segment, reply.said, final=True))

    def _stop_reply(self) -> Reply:
        """Silence first; then nothing of the reply can come any more."""
        reply, self._reply = self._reply, None
        assert reply is not None
        assert reply.task is not None
        if reply.utterance is not None:
            silenced = self._player.interrupt(reply.utterance)
            silenced.add_done_callback(lambda task: _note_silence(reply, task))
        reply.task.cancel()
        return reply

    def _resume(self) -> None:
        interrupted, self._interrupted = self._interrupted, None
        assert interrupted is not None
        self._withdraw_partial()
        self._start(interrupted.rest())

    # --- replies --------------------------------------------------------------------------------------

    def _start(self, reply: Reply) -> None:
        self._reply = reply
        reply.task = self._group.create_task(self._speak(reply), name=reply.segment)

    async def _speak(self, reply: Reply) -> None:
        await self._inference.wait_attached()
        reply.utterance = await self._player.begin()
        watch = self._group.create_task(self._watch(reply), name="reply-watch")
        failed = False
        try:
            try:
                await self._write(reply, reply.utterance)
            except RequestFailedError as exc:
                failed = True
                logger.error("the answer failed: %s", exc)  # noqa: TRY400
            try:
                await self._player.finish(reply.utterance)
            except RequestFailedError as exc:
                failed = True
                logger.error("a phrase was not spoken: %s", exc)  # noqa: TRY400
        except InferenceUnavailableError:
            # ``_fall_silent`` deals with it: whoever reads the events has been told, too.
            return
        finally:
            watch.cancel()
        self._note_heard()
        self._finish(reply, reply.utterance, failed=failed)

    def _fall_silent(self) -> None:
        """The inference process is gone. What was heard of the reply stays said; the rest is for when it is back."""
        self._note_heard()
        self._show_state()
        reply = self._reply
        if reply is None:
            return
        assert reply.task is not None
        reply.task.cancel()
        if reply.utterance is None:
            # It has not begun.
            self._start(reply)
            return
        self._player.interrupt(reply.utterance)
        reply.attempts += 1
        if reply.attempts == MAX_ATTEMPTS:
            logger.error("the answer failed: the inference process went away %d times", reply.attempts)
            self._finish(reply, reply.utterance, failed=True)
            return
        self._keep_heard(reply, reply.utterance)
        if self._turns.state is t.State.THINKING and reply.turn is not None:
            reply.begin_again(self._model.answer(reply.turn))
        else:
            left = reply.unsaid()
            reply.begin_again(whole(left), left)
        self._start(reply)

    async def _write(self, reply: Reply, utterance: Utterance) -> None:
        """Every phrase is asked for as soon as the model has written it."""
        settings = self._settings
        cutter = PhraseCutter(
            settings.first_phrase_chars, settings.phrase_chars, language=settings.language, before=reply.before
        )

        def speak(phrases: list[SpeakablePhrase]) -> None:
            for phrase in phrases:
                self._player.speak(utterance, phrase, speed=settings.speed, volume=settings.volume)

        async with aclosing(reply.source) as pieces:
            async for text in pieces:
                if reply.turn is not None and reply.turn.first_text is None:
                    reply.turn.first_text = self._now()
                reply.text += text
                speak(cutter.push(text))
        reply.complete = True
        speak(cutter.finish())

    async def _watch(self, reply: Reply) -> None:
        """Note when the reply begins to be heard, and show its text as it is spoken."""
        assert reply.utterance is not None
        begun = 0
        while True:
            self._note_heard()
            if reply.first_heard is not None:
                self._player.note_heard(reply.utterance)
                phrases = self._player.phrases_heard(reply.utterance)
                count = max((n for n, phrase in enumerate(phrases, 1) if phrase.heard), default=0)
                if count > begun:
                    begun = count
                    text = join(reply.said, "".join(phrase.text.shown for phrase in phrases[:count]))
                    self._note(self._room.publish_transcript("agent", reply.segment, text, final=False))
            await asyncio.sleep(_WATCH_S if reply.first_heard is None else 5 * _WATCH_S)

    def _finish(self, reply: Reply, utterance: Utterance, *, failed: bool) -> None:
        self._keep_heard(reply, utterance)
        self._note(self._room.publish_transcript("agent", reply.segment, reply.said, final=True))
        self._report_turn(reply, interrupted=False)
        if not reply.said and not failed:
            logger.warning("the model had nothing to say")
        self._reply = None
        reply.over.set()
        self._feed(t.AnswerFinished())

    def _keep_heard(self, reply: Reply, utterance: Utterance) -> None:
        """What was heard of ``utterance`` joins the reply and the history."""
        rate = self._inference.speech_rate
        reply.keep_heard(utterance, truncate_to_heard(self._player.phrases_heard(utterance), rate), rate)
        self.history.add_assistant(reply.shown.strip())
        if self._recorder is not None:
            start, end = self._recorder.end_answer()
            reply.span = (reply.span[0] if reply.span[1] else start, end)

    # --- reports --------------------------------------------------------------------------------------

    def _report_interrupted(self) -> None:
        """An interrupted turn is reported when it is clear that it is not resumed."""
        reply, self._interrupted = self._interrupted, None
        if reply is not None:
            self._report_turn(reply, interrupted=True)

    def _report_turn(self, reply: Reply, *, interrupted: bool) -> None:
        report = reply.report(self._job_id, interrupted=interrupted)
        if report is not None:
            logger.info("turn %d: response after %.0f ms", report.turn, report.response_ms)
            self._report(report)

    # --- what the caller's client shows ---------------------------------------------------------------

    def _show_partial(self, text: str) -> None:
        # The turn has no number yet; this is the one that it will have.
        self._partial_segment = f"user-{self._turn_number + 1}"
        self._show_transcript(UserTranscript(self._partial_segment, text, final=False))

    def _withdraw_partial(self) -> None:
        """There were no words in what was taken for some."""
        if self._partial_segment:
            self._show_transcript(UserTranscript(self._partial_segment, "", final=True))

    def _show_transcript(self, transcript: UserTranscript) -> None:
        if transcript.final:
            self._partial_segment = ""
        self._note(self._room.publish_transcript("user", transcript.segment, transcript.text, final=transcript.final))
        for callback in self._transcript_callbacks:
            try:
                callback(transcript)
            except Exception:
                logger.exception("a transcript callback failed")

    def _segment(self) -> str:
        self._segments += 1
        return f"agent-{self._segments}"

    def _show_state(self) -> None:
        state = _AGENT_STATES[self._turns.state]
        if state == "speaking" and not self._inference.is_attached:
            # It will go on; for now it is silent.
            state = "thinking"
        if state != self._state:
            self._state = state
            self._note(self._room.set_agent_state(state))

    def _note(self, note: Coroutine[Any, Any, None]) -> None:
        self._notes.put_nowait(note)

    async def _show(self) -> None:
        """States and transcripts go out in order, without anybody waiting for them."""
        while True:
            await (await self._notes.get())


class _EndedError(Exception):
    """Ends the session's task group: not a failure."""


def _note_silence(reply: Reply, silenced: asyncio.Task[float]) -> None:
    if not silenced.cancelled() and silenced.exception() is None:
        reply.silent_at = silenced.result()


def _first(failure: BaseExceptionGroup[InferenceError]) -> InferenceError:
    found: BaseException = failure
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, InferenceError)
    return found
