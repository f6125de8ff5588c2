"""``host talk``: a conversation between recorded waves and the agent, in a local room, on the real process tree."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from host.errors import ConfigError, ConversationError
from host.job.room_local import check_waves
from host.job.settings import SessionSettings
from host.job.waves import read_wave
from host.supervisor import Supervisor, SupervisorOptions
from inference.wire.supervision import JobUpdate, StartJob, TurnReport

_JSON_KEYS = (
    "transcript",
    "reply",
    "interrupted",
    "audio_s",
    "endpointing_ms",
    "endpointing_delay_ms",
    "stt_ms",
    "ahead_ms",
    "guesses_dropped",
    "ttft_ms",
    "ttfa_ms",
    "response_ms",
    "barge_in_ms",
    "reply_audio_s",
    "out_start_s",
    "out_end_s",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is played and where the answers go."""

    waves: tuple[Path, ...]
    out: Path
    record: Path | None = None
    interrupt_after_s: float | None = None

    def check(self) -> None:
        """Refuse what cannot be read or written before anything is started. Raises ``ConfigError``."""
        try:
            check_waves([str(path) for path in self.waves])
        except ValueError as exc:
            raise ConfigError(str(exc)) from exc
        for path in (self.out, self.record):
            if path is not None and not path.parent.is_dir():
                raise ConfigError(f"{path}: there is no folder {path.parent} to write it to")
        if self.interrupt_after_s is not None and self.interrupt_after_s < 0:
            raise ConfigError(f"--interrupt-after {self.interrupt_after_s}: seconds, 0 or more")


async def hold(
    conversation: Conversation, settings: SessionSettings, options: SupervisorOptions, *, as_json: bool
) -> None:
    """Hold the conversation and print it. Raises ``ConversationError`` if a turn was not heard or not answered."""
    status = Console(stderr=True)
    screen = Console()
    turns: list[TurnReport] = []
    if conversation.interrupt_after_s is not None:
        settings = dataclasses.replace(settings, interrupt_after_s=conversation.interrupt_after_s)

    def on_turn(turn: TurnReport) -> None:
        turns.append(turn)
        if as_json:
            print(json.dumps(_as_json(turn), ensure_ascii=False), flush=True)  # noqa: T201
        else:
            screen.print(_as_panel(turn))

    async def on_update(update: JobUpdate) -> None:
        if update.status == "running" and not as_json:
            seconds = sum(_seconds(path) for path in conversation.waves)
            screen.print(f"The caller speaks: {len(conversation.waves)} turn(s), {seconds:.1f} s, in real time.")

    began = time.monotonic()
    async with AsyncExitStack() as stack:
        with status.status("starting") as spinner:

            def say(text: str) -> None:
                if status.is_terminal:
                    spinner.update(text)
                else:
                    status.print(text)

            supervisor = await stack.enter_async_context(Supervisor(options, on_progress=say))
        if not as_json:
            screen.print(f"Ready after {time.monotonic() - began:.1f} s.")
        job = await supervisor.launch(
            StartJob(
                job_id="talk",
                room="local",
                transport="local",
                waves=tuple(str(path) for path in conversation.waves),
                out=str(conversation.out),
                record=str(conversation.record or ""),
                settings=settings.to_json(),
            ),
            on_update=on_update,
            on_turn=on_turn,
        )
        result = await job.wait()
    if result.status != "success":
        raise ConversationError(f"the conversation failed: {result.error}")
    answered = [turn for turn in turns if turn.transcript and turn.reply_audio_s > 0]
    if len(answered) < len(conversation.waves):
        raise ConversationError(
            f"{len(answered)} of {len(conversation.waves)} turns were answered; is there speech in every wave?"
        )
    if not as_json:
        screen.print(f"The agent's side is in [bold]{conversation.out}[/bold].", highlight=False)


def _as_json(turn: TurnReport) -> dict[str, object]:
    values = {key: getattr(turn, key) for key in _JSON_KEYS}
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}


def _as_panel(turn: TurnReport) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_row("[dim]heard[/]", Text(turn.transcript))
    table.add_row("[dim]answered[/]", Text(turn.reply + (" — interrupted" if turn.interrupted else "")))
    stages = (
        ("end of turn", turn.endpointing_ms),
        ("speech to text", turn.stt_ms),
        ("first token", turn.ttft_ms),
        ("first audio", turn.ttfa_ms),
    )
    table.add_row("[dim]stages[/]", "   ".join(f"{name} [bold]{ms:.0f}[/] ms" for name, ms in stages))
    table.add_row(
        "[dim]response[/]",
        f"[bold green]{turn.response_ms:.0f} ms[/] from the caller's last sound to the first of the answer;"
        f" {turn.audio_s:.1f} s heard, {turn.reply_audio_s:.1f} s answered",
    )
    return Panel(table, title=f"turn {turn.turn}", title_align="left")


def _seconds(path: Path) -> float:
    samples, rate = read_wave(str(path))
    return len(samples) / rate
