"""One conversation in sound: the shell that performs what ``turn`` decides.

    Capture ── VAD events, audio clock ──> TurnTaking ── actions ──> transcribe
                                                               ├──> Dialogue.prepare ─> how likely is it all?
                                                               ├──> Dialogue.guess ─> PhraseCutter ─> Player, held back
                                                               ├──> Dialogue.answer ─> PhraseCutter ─> Player
                                                               └──> silence; Dialogue.heard: what was heard

It knows no agent, no history and no tools: what is said, and why, is the ``Dialogue``'s.

Everything runs on the job's event loop; inputs are fed to the table one at a time, and its actions
are performed before the next. Only what takes time (a transcription, a reply) is a task.

Within the silence that ends a turn an answer is begun on speculation: its first phrase lies in the ring, and the player
holds it back until the turn is committed. A caller who goes on costs no more than that.

The inference process may go away and come back: the caller's audio is kept meanwhile, what is being
said falls silent, and when the room is attached again, detection begins where it had got to, and what
was asked for and not answered is asked for again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable

from host.job import turn_events as t
from host.job.audio import CALLER_RATE, AnswerRecorder, Capture, Player, Utterance
from host.job.chat import truncate_to_heard
from host.job.dialogue import Dialogue, Source, UserState
from host.job.display import Display, agent_state
from host.job.phrasing import Guess, write_and_speak
from host.job.reply import AnsweredTurn, Reply, join
from host.job.room import AgentState, Room
from host.job.settings import SessionSettings
from host.job.transcripts import MAX_ATTEMPTS, Transcriptions
from host.job.turn import TurnTaking
from host.job.turn_rules import SAMPLES_PER_MS, Rules
from inference.client import InferenceError, InferenceRoom, InferenceUnavailableError, RequestFailedError

logger = logging.getLogger(__name__)

_MIN_SILENCE_MS = 256
_WATCH_S = 0.01
"""How often a reply's progress is looked at until it is heard; five times as rarely afterwards."""
_DETECTION_LAG = 128 * SAMPLES_PER_MS
"""How far the clock of the turns may be ahead of detection: what nobody has listened to is no silence."""
_WINDOW_MS = 32
"""Detection looks at so much audio at once."""
_RETENTION_MARGIN_S = 5.0
"""After a long absence, how much of the caller's oldest audio is given up, so that the rest is not overwritten
while it is transcribed."""


class Conversation:
    """The agent and one caller in one room, from the greeting to the end: an ``Outlet`` of ``dialogue``.

    ``run`` holds the conversation until ``aclose``. When the inference process goes away, ``attach_again``
    is awaited, which opens ``inference`` again; the ``InferenceUnavailableError`` that it raises when it
    gives up ends the conversation.
    """

    def __init__(
        self,
        room: Room,
        inference: InferenceRoom,
        dialogue: Dialogue,
        *,
        settings: SessionSettings,
        job_id: str,
        attach_again: Callable[[], Awaitable[None]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._room = room
        self._inference = inference
        self._dialogue = dialogue
        self._settings = settings
        self._job_id = job_id
        self._attach_again = attach_again
        self._now = now
        self._turns = TurnTaking(Rules.of(settings))
        self._capture = Capture(inference, self._on_clock, lambda: self._turns.needs_clock, now)
        self._player = Player(room, inference, now, dialogue.filter_speech)
        self._recorder = room if isinstance(room, AnswerRecorder) else None
        self._display = Display(room, dialogue.transcribed)
        self._tasks: asyncio.TaskGroup | None = None
        self._transcriptions = Transcriptions(
            inference, settings, self._feed, self._partly_transcribed, dialogue.filter_transcript
        )
        self._reply: Reply | None = None
        self._interrupted: Reply | None = None
        self._guess: Guess | None = None
        self._guesses_dropped = 0
        self._to_say: deque[Reply] = deque()
        self._turn_number = 0
        self._segments = 0
        self._event_at = 0.0
        self._inputs: deque[t.Input] = deque()
        self._feeding = False
        self._agent_state: AgentState = "initializing"
        self._user_state: UserState = "listening"
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Conversation {self._room.name!r} {self._turns.state.value} turn={self._turn_number}>"

    # --- for the dialogue -----------------------------------------------------------------------------

    def say(self, reply: Reply, *, interrupt: bool = False) -> None:
        """Queue ``reply``; it begins when the agent may speak. ``interrupt``: at once, after silence."""
        if self._ended.is_set():
            reply.over.set()
            return
        if interrupt:
            self.interrupt()
            self._to_say.appendleft(reply)
        else:
            self._to_say.append(reply)
        if self._tasks is not None:
            self._feed(t.Tick(self._turns.position))

    def interrupt(self, *, force: bool = False) -> bool:
        """Silence: what is being said, or thought about, is over. False where that may not be interrupted."""
        if self._reply is not None and not (force or self._allows_interruptions(self._reply)):
            return False
        self._note_heard()
        self._feed(t.InterruptAsked())
        return True

    def withdraw(self, reply: Reply) -> bool:
        """``reply`` is over if it has not begun, or was interrupted and may be resumed; False: it is being said."""
        if reply is self._reply:
            return False
        if reply is self._interrupted:
            self._feed(t.InterruptAsked())
        elif reply in self._to_say:
            self._to_say.remove(reply)
            reply.interrupted = True
            self._dialogue.heard(reply, over=True)
            reply.over.set()
        return True

    def keep(self, reply: Reply) -> None:
        """What is being done for ``reply`` cannot be undone: it, and the turn that it answers, stay."""
        if reply is self._reply and self._turns.state is t.State.THINKING:
            self._feed(t.AnswerHeard())

    def end_of_turn(self, ticket: int, probability: float) -> None:
        """So likely is what was prepared with ``ticket`` all that the caller says."""
        self._feed(t.EndOfTurn(ticket, probability))

    def commit_user_turn(self) -> None:
        """The caller's turn is over, whatever the pause."""
        self._note_heard()
        self._feed(t.CommitAsked())

    def clear_user_turn(self) -> None:
        """What the caller has said and was not answered yet is forgotten."""
        self._feed(t.ClearAsked())

    def configure(self, settings: SessionSettings) -> None:
        """Hold the conversation so from here on: language, voice, turn taking (detection as it was)."""
        self._settings = settings
        self._turns.adopt(Rules.of(settings))
        self._transcriptions.configure(settings)

    async def aclose(self) -> None:
        """End the conversation: silence, and every request is cancelled. Returns when that is done."""
        self._ending.set()
        if self._tasks is None:
            self._wind_up()
        await self._ended.wait()

    # --- running ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hold the conversation until ``aclose``. Raises the ``InferenceError`` that ended it."""
        failure: InferenceError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._display.run(), name="notes")
                tasks.create_task(self._player.run(), name="player")
                tasks.create_task(self._capture.run(self._room.caller_audio()), name="capture")
                tasks.create_task(self._watch_voice(), name="voice-activity")
                self._feed(t.Tick(self._inference.position))
                await self._ending.wait()
                raise _EndedError
        except* _EndedError:
            pass
        except* InferenceError as failures:
            failure = _first(failures)
        finally:
            self._wind_up()
        if failure is not None:
            raise failure

    @property
    def _group(self) -> asyncio.TaskGroup:
        assert self._tasks is not None, "the conversation is not running"
        return self._tasks

    def _wind_up(self) -> None:
        """Silence, and report the turns that the end cut off."""
        self._room.clear()
        if (reply := self._reply) is not None:
            self._reply = None
            if reply.utterance is not None:
                self._player.note_heard(reply.utterance)
                self._keep_heard(reply, reply.utterance)
            self._end(reply, interrupted=True)
        self._report_interrupted()
        if self._guess is not None:
            self._guess.reply.over.set()
        for waiting in self._to_say:
            waiting.over.set()
        self._display.close()
        self._ended.set()

    # --- inputs ---------------------------------------------------------------------------------------

    async def _watch_voice(self) -> None:
        start = -1
        while True:
            try:
                self._listen(start)
                async for event in self._inference.events():
                    logger.debug("%s", event)
                    # Whether this is a barge-in depends on what has been heard by now.
                    self._note_heard()
                    self._feed(event)
            except InferenceUnavailableError as lost:
                began = self._now()
                logger.warning("%s; the room stays, and waits for it to be back", lost)
                self._dialogue.failed("inference", lost)
                self._fall_silent()
                await self._attach_again()
                logger.info("the inference process is back after %.1f s", self._now() - began)
                start = self._restart_detection()
                self._dialogue.prepare(0, "")

    def _listen(self, start: int) -> None:
        settings = self._settings
        self._inference.listen(
            start=start,
            activation=settings.activation,
            min_speech_ms=settings.min_speech_ms,
            pause_ms=min(settings.pause_ms, max(_WINDOW_MS, self._turns.rules.shortest // SAMPLES_PER_MS)),
            min_silence_ms=_MIN_SILENCE_MS,
        )

    def _restart_detection(self) -> int:
        """Where detection begins again; what it had begun to take for speech, and not reported yet, is heard again."""
        inference = self._inference
        kept = min(inference.position, inference.oldest + round(_RETENTION_MARGIN_S * CALLER_RATE))
        oldest = kept if inference.oldest else 0
        unreported = (self._settings.min_speech_ms + 2 * _WINDOW_MS) * SAMPLES_PER_MS
        start = max(self._turns.detect_from(max(0, inference.heard - unreported)), oldest)
        self._feed(t.DetectionRestarted(start, oldest))
        return start

    def _on_clock(self, position: int) -> None:
        self._feed(t.Tick(min(position, self._inference.heard + _DETECTION_LAG)))

    def _partly_transcribed(self, text: str) -> None:
        # The turn has no number yet; this is the one that it will have.
        self._display.user_said(self._turn_number + 1, text, final=False)

    def _note_heard(self) -> None:
        reply = self._reply
        if reply is None or reply.utterance is None or reply.first_heard is not None:
            return
        if self._player.note_heard(reply.utterance):
            reply.first_heard = reply.utterance.first_heard
            self._dialogue.begun(reply)
            self._feed(t.AnswerHeard())

    def _feed(self, event: t.Input) -> None:
        """``event`` is next. One that comes of an action, or of somebody who is told of one, waits until it is done."""
        self._inputs.append(event)
        if self._feeding:
            return
        self._feeding, self._event_at = True, self._now()
        try:
            while self._inputs:
                self._take(self._inputs.popleft())
        finally:
            self._feeding = False
        self._transcriptions.follow(self._turns.unfinished(), self._group)
        self._show_state()

    def _take(self, event: t.Input) -> None:
        if self._reply is not None:
            allowed = self._allows_interruptions(self._reply)
            if allowed != self._turns.interruptible:
                self._turns.feed(t.Interruptible(allowed))
        for action in self._turns.feed(event):
            logger.debug("%s", action)
            self._perform(action)
        if not self._turns.may_resume:
            self._report_interrupted()
        if self._turns.state is t.State.LISTENING and self._to_say:
            self._turns.feed(t.SayStarted())
            self._start(self._to_say.popleft())

    def _allows_interruptions(self, reply: Reply) -> bool:
        allowed = reply.allow_interruptions
        return self._settings.allow_interruptions if allowed is None else allowed

    # --- actions --------------------------------------------------------------------------------------

    def _perform(self, action: t.Action) -> None:
        match action:
            case t.Transcribe():
                self._transcriptions.ask(action, self._group)
            case t.DropTranscript(ticket=ticket):
                self._transcriptions.drop(ticket)
            case t.PromoteTranscript(ticket=ticket):
                self._transcriptions.promote(ticket)
            case t.PrepareAnswer(ticket=ticket, text=text):
                self._dialogue.prepare(ticket, text)
            case t.AnswerAhead(ticket=ticket, text=text):
                self._begin_guess(ticket, text)
            case t.DropPreparation():
                self._drop_guess()
                self._dialogue.drop_preparation()
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
                self._display.withdraw_partial()
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
            delay_ms=turn.delay / SAMPLES_PER_MS,
        )
        self._display.user_said(self._turn_number, turn.text, final=True)
        guess = self._guess if self._guess is not None and self._guess.ticket == turn.ahead else None
        reply = self._dialogue.answer(measured, guess.reply if guess is not None else None)
        if guess is not None and reply is guess.reply:
            self._keep_guess(guess, measured)
        else:
            self._drop_guess()
            self._start(reply)
        measured.guesses_dropped, self._guesses_dropped = self._guesses_dropped, 0

    def _cancel_answer(self) -> None:
        reply = self._stop_reply()
        self._turn_number -= 1
        reply.interrupted = True
        self._dialogue.take_back(reply)
        reply.over.set()
        if reply.utterance is not None and self._recorder is not None:
            self._recorder.end_answer()

    def _interrupt(self) -> None:
        reply = self._stop_reply()
        reply.interrupted, reply.interrupted_at = True, self._event_at
        if reply.utterance is not None:
            self._keep_heard(reply, reply.utterance)
            self._dialogue.heard(reply, over=False)
        self._interrupted = reply
        # It may be resumed: it is final when it is over.
        self._display.agent_said(reply.segment, reply.said, final=False)

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
        reply, self._interrupted = self._interrupted, None
        assert reply is not None
        self._display.withdraw_partial()
        reply.go_on()
        self._dialogue.resumed(reply)
        self._start(reply)

    # --- answers on speculation -----------------------------------------------------------------------

    def _begin_guess(self, ticket: int, text: str) -> None:
        if not self._inference.is_attached:
            return
        reply = self._dialogue.guess(ticket, text)
        if reply is None:
            return
        self._guess = guess = Guess(ticket, reply, self._now())
        reply.task = self._group.create_task(self._speak(reply, guess), name="guess")

    def _keep_guess(self, guess: Guess, turn: AnsweredTurn) -> None:
        """The turn is over, and ``guess`` answers it: what lies in the ring may be heard."""
        self._guess = None
        turn.ahead_ms = (turn.committed - guess.asked) * 1000
        turn.asked = turn.committed
        turn.first_text = None if guess.first_text is None else turn.committed
        reply = self._reply = guess.reply
        self._name(reply)
        guess.committed.set()
        if reply.utterance is not None:
            self._player.release(reply.utterance)

    def _drop_guess(self) -> None:
        guess, self._guess = self._guess, None
        if guess is None:
            return
        self._guesses_dropped += 1
        assert guess.reply.task is not None
        guess.reply.task.cancel()
        if guess.reply.utterance is not None:
            self._player.interrupt(guess.reply.utterance)
        guess.reply.over.set()

    # --- replies --------------------------------------------------------------------------------------

    def _start(self, reply: Reply) -> None:
        self._reply = reply
        self._name(reply)
        reply.task = self._group.create_task(self._speak(reply), name=reply.segment)

    def _name(self, reply: Reply) -> None:
        if not reply.segment:
            self._segments += 1
            reply.segment = f"agent-{self._segments}"

    async def _speak(self, reply: Reply, guess: Guess | None = None) -> None:
        await self._inference.wait_attached()
        reply.utterance = await self._player.begin(held=guess is not None and not guess.committed.is_set())
        watch = self._group.create_task(self._watch(reply, guess), name="reply-watch")
        failed = False
        try:
            try:
                await write_and_speak(
                    reply, reply.utterance, guess, self._player, self._settings, self._dialogue, self._now
                )
            except RequestFailedError as exc:
                if guess is not None and guess is self._guess:
                    # The answer is asked for when the turn is over.
                    logger.debug("no answer on speculation: %s", exc)
                    self._drop_guess()
                    return
                failed = True
                self._failed("llm", "the answer failed: %s", exc)
            if guess is not None:
                await guess.committed.wait()
            try:
                await self._player.finish(reply.utterance)
            except RequestFailedError as exc:
                failed = True
                self._failed("tts", "a phrase was not spoken: %s", exc)
        except InferenceUnavailableError:
            # ``_fall_silent`` deals with it: whoever reads the events has been told, too.
            return
        finally:
            watch.cancel()
        self._note_heard()
        self._finish(reply, reply.utterance, failed=failed)

    def _failed(self, source: Source, what: str, error: InferenceError) -> None:
        logger.error(what, error)
        self._dialogue.failed(source, error)

    def _fall_silent(self) -> None:
        """The inference process is gone. What was heard of the reply stays said; the rest is for when it is back."""
        self._drop_guess()
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
        if reply.first_heard is None:
            reply.begin_again()
        else:
            self._dialogue.heard(reply, over=False)
            reply.go_on()
        self._start(reply)

    async def _watch(self, reply: Reply, guess: Guess | None) -> None:
        """Note when the reply begins to be heard, and show its text word by word, as it is heard."""
        assert reply.utterance is not None
        if guess is not None:
            await guess.committed.wait()
        rate = self._inference.speech_rate
        shown = 0
        while True:
            self._note_heard()
            if reply.first_heard is not None:
                self._player.note_heard(reply.utterance)
                heard = truncate_to_heard(self._player.phrases_heard(reply.utterance), rate)
                # A phrase whose length is estimated may turn out to be longer: nothing shown is taken back for it.
                if len(heard) > shown:
                    shown = len(heard)
                    self._display.agent_said(reply.segment, join(reply.said, heard), final=False)
            await asyncio.sleep(_WATCH_S if reply.first_heard is None else 5 * _WATCH_S)

    def _finish(self, reply: Reply, utterance: Utterance, *, failed: bool) -> None:
        self._keep_heard(reply, utterance)
        self._reply = None
        self._end(reply, interrupted=False)
        if not reply.said and not failed and not reply.silent:
            logger.warning("the model had nothing to say")
        self._feed(t.AnswerFinished())

    def _keep_heard(self, reply: Reply, utterance: Utterance) -> None:
        """What was heard of ``utterance`` joins the reply."""
        rate = self._inference.speech_rate
        reply.keep_heard(utterance, truncate_to_heard(self._player.phrases_heard(utterance), rate), rate)
        if self._recorder is not None:
            start, end = self._recorder.end_answer()
            reply.span = (reply.span[0] if reply.span[1] else start, end)

    # --- reports --------------------------------------------------------------------------------------

    def _report_interrupted(self) -> None:
        """An interrupted reply is over when it is clear that it is not resumed."""
        reply, self._interrupted = self._interrupted, None
        if reply is not None:
            self._end(reply, interrupted=True)

    def _end(self, reply: Reply, *, interrupted: bool) -> None:
        reply.interrupted = interrupted
        self._display.agent_said(reply.segment, reply.said, final=True)
        self._dialogue.heard(reply, over=True)
        report = reply.report(self._job_id, interrupted=interrupted)
        if report is not None:
            logger.info("turn %d: response after %.0f ms", report.turn, report.response_ms)
            self._dialogue.measured(report)
            if self._settings.publish_metrics:
                self._display.note(self._room.publish_metrics(report))
        reply.over.set()

    # --- states -----------------------------------------------------------------------------------------

    def _show_state(self) -> None:
        reply = self._reply
        # Something that was known is heard at once; what the model writes is thought about until then.
        thinks = reply is not None and reply.first_heard is None and not reply.known
        state = agent_state(self._turns, is_silent=thinks or not self._inference.is_attached)
        user: UserState = self._turns.user
        if (user, state) == (self._user_state, self._agent_state):
            return
        if state != self._agent_state:
            self._display.note(self._room.set_agent_state(state))
        self._user_state, self._agent_state = user, state
        self._dialogue.state_changed(user, state)


class _EndedError(Exception):
    """Ends the conversation's task group: not a failure."""


def _note_silence(reply: Reply, silenced: asyncio.Task[float]) -> None:
    if not silenced.cancelled() and silenced.exception() is None:
        reply.silent_at = silenced.result()


def _first(failure: BaseExceptionGroup[InferenceError]) -> InferenceError:
    found: BaseException = failure
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, InferenceError)
    return found
