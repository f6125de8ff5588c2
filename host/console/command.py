"""``host console``: talk with the agent at this machine's microphone and loudspeaker, or write to it. No server."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from host.config import Config, worker_options
from host.errors import ConfigError
from host.flags import (
    ConfigOption,
    DeviceOption,
    LogFormatOption,
    LogLevelOption,
    ModelsDirOption,
    ProfileOption,
    errors,
    load,
    output,
)
from host.prepare import agent_functions
from host.signals import Stopping, run

if TYPE_CHECKING:
    from host.console.call import EchoMode
    from host.console.sound import EchoCanceller

SOUND = "Sound"
"""Panel of ``--help``."""


def console(
    agent: Annotated[Path | None, typer.Argument(help="Your agent's Python file. Default: a built-in one.")] = None,
    text: Annotated[bool, typer.Option("--text", help="Write instead of speaking: no sound at all.")] = False,
    input_device: Annotated[
        str, typer.Option("--input-device", help="Microphone: number or part of the name.", rich_help_panel=SOUND)
    ] = "",
    output_device: Annotated[
        str, typer.Option("--output-device", help="Loudspeaker: number or part of the name.", rich_help_panel=SOUND)
    ] = "",
    echo: Annotated[
        str,
        typer.Option(
            "--echo",
            help="What keeps the agent from hearing itself through a loudspeaker. cancel: taken out, as in a browser. "
            "mute: the microphone is off while the agent speaks: no interruptions. off: for headphones.",
            rich_help_panel=SOUND,
        ),
    ] = "cancel",
    list_devices: Annotated[
        bool, typer.Option("--list-devices", help="Show microphones and loudspeakers, and end.", rich_help_panel=SOUND)
    ] = False,
    partial: Annotated[bool, typer.Option("--partial/--no-partial", help="Show what you say while you say it.")] = True,
    profile: ProfileOption = None,
    models_dir: ModelsDirOption = None,
    device: DeviceOption = None,
    config: ConfigOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Talk with the agent here and now: microphone and loudspeaker, or --text. Needs no server; Ctrl-C ends.

    Through a loudspeaker the microphone hears the agent, too: see --echo. Headphones are best.
    """
    if list_devices:
        _list_devices()
        return
    settings = load(
        config,
        profile=profile,
        models_dir=models_dir,
        device=device,
        log_level=log_level,
        log_format=log_format,
        # One caller: no place for others is kept, and nobody needs to reach the host.
        inference={"max_rooms": 1, "resident_rooms": 0},
        worker={"host": "127.0.0.1", "port": 0, "max_jobs": 1, "num_idle_processes": 1},
        quiet=True,
    )
    settings = msgspec.structs.replace(
        settings, session=dataclasses.replace(settings.session, partial_transcripts=partial)
    )
    _hold(settings, agent, text=text, microphone=input_device, loudspeaker=output_device, echo=_echo_mode(echo))


def _hold(
    settings: Config, agent: Path | None, *, text: bool, microphone: str, loudspeaker: str, echo: EchoMode
) -> None:
    from host.console.call import Call
    from host.console.conversation import Conversation
    from host.console.screen import Screen, summary
    from host.console.terminal import Keyboard
    from host.worker import Worker

    options = worker_options(settings, agent_functions(agent))
    if text:
        call = Call(None)
    else:
        from host.console.portaudio import PortAudio

        call = Call(PortAudio(microphone, loudspeaker), echo, _make_echo)
    screen = Screen(output, errors, call)
    worker = Worker(options, settings, on_turn=call.script.measured, on_progress=screen.progress)
    keyboard = Keyboard() if sys.stdin.isatty() and output.is_terminal else None
    conversation = Conversation(worker, call, screen, keyboard, reads=text and not sys.stdin.isatty())

    def leave(code: int) -> None:
        if keyboard is not None:
            keyboard.restore()
        os._exit(code)

    run(conversation.hold(), Stopping(conversation.close, conversation.close, at_once=True, leave=leave))
    if line := summary(call):
        output.print(line, style="dim")


def _make_echo(rate: int, delay_s: float) -> EchoCanceller:
    from host.console.echo import WebRtcEcho

    return WebRtcEcho(rate, delay_s)


def _echo_mode(text: str) -> EchoMode:
    modes: tuple[EchoMode, ...] = ("cancel", "mute", "off")
    for mode in modes:
        if text == mode:
            return mode
    raise ConfigError(f"--echo {text}: allowed is cancel, mute or off")


def _list_devices() -> None:
    from host.console.portaudio import list_devices
    from host.console.screen import devices_table

    output.print(devices_table(list_devices()))
