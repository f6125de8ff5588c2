"""``host console`` as a person runs it: on real processes with made-up engines, with and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import wave
from pathlib import Path

import pytest

from host.job.resample import resample
from host.job.waves import read_wave

pytestmark = pytest.mark.processes

HOST = str(Path(sys.executable).parent / "host")
FAKE = Path(__file__).parent / "fake_sounddevice"
WAVES = Path(__file__).parents[2] / "data" / "speech"
WAVE = WAVES / "set-a-timer.wav"
TIMEOUT_S = 90
CONFIG = """
[inference]
engines = "fake"
max_rooms = 3
"""
AGENTS = {
    "greets.py": """
from host import VoiceAgent

async def entrypoint(ctx):
    async def note(reason):
        print("callback:", reason, flush=True)

    ctx.add_shutdown_callback(note)
    print("first line of the agent's own", flush=True)
    session = await ctx.start_session(VoiceAgent("Be kind.", greeting="Good day to you."))
    await session.wait_closed()
""",
    "raises.py": """
async def entrypoint(ctx):
    await ctx.connect()
    raise RuntimeError("no kitchen today")
""",
    "leaves.py": """
from host import VoiceAgent

async def entrypoint(ctx):
    session = await ctx.start_session(VoiceAgent("Be kind."))
    await session.say("We are closed.")
    ctx.shutdown("closed")
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "roomful.toml").write_text(CONFIG)
    (tmp_path / "tmp").mkdir()
    for name, source in AGENTS.items():
        (tmp_path / name).write_text(source)
    return tmp_path


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LIVEKIT_", "ROOMFUL_", "SOUND_"))}
    path = os.pathsep.join(part for part in (more.get("PYTHONPATH"), os.environ.get("PYTHONPATH")) if part)
    return {**kept, "TMPDIR": str(folder / "tmp"), "TERM": "xterm", **more, "PYTHONPATH": path}


def console(folder: Path, *arguments: str, typed: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [HOST, "console", *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=folder,
        env=environment(folder, **more),
    )
    assert list((folder / "tmp").glob("*roomful-*")) == []
    return done


class Terminal:
    """A person at a terminal: types, and reads what is on it."""

    def __init__(self, folder: Path, *arguments: str, **more: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.text = ""
        self.process = subprocess.Popen(
            [HOST, "console", *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=folder,
            env=environment(folder, COLUMNS="100", LINES="30", **more),
            start_new_session=True,
            # Its own terminal, so that Ctrl-C is a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, pattern: str) -> str:
        """What is new on the terminal, up to and with the first match of ``pattern``."""
        deadline = time.monotonic() + TIMEOUT_S
        while (found := re.search(pattern, self.text)) is None:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in:\n{self.text}"
            raw = os.read(self.master, 65536).decode(errors="replace")
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw)
        seen, self.text = self.text[: found.end()], self.text[found.end() :]
        return seen

    def end(self) -> int:
        """Read on until the program has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 65536).decode(errors="replace")
        return self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def test_lines_of_a_pipe_are_answered_one_after_the_other(folder: Path) -> None:
    done = console(folder, "greets.py", "--text", typed="Hello there\n\nAnd again\n")
    assert done.returncode == 0, done.stderr
    said = [re.sub(r" \[.*", "", line) for line in done.stdout.splitlines()]
    assert said[:2] == ["Agent: Good day to you.", "You: Hello there"]
    assert said[3] == "You: And again"
    assert [line.partition(":")[0] for line in said[:5]] == ["Agent", "You", "Agent", "You", "Agent"]
    assert said[5].startswith("answers after ")
    # Models take their time, and somebody waits.
    assert "warming up" in done.stderr
    assert "callback:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_person_types_and_ends_with_ctrl_c(folder: Path) -> None:
    terminal = Terminal(folder, "greets.py", "--text")
    try:
        # What a job prints goes above what moves.
        terminal.read_until("first line of the agent's own *\r?\n")
        terminal.read_until(r"Agent  Good day to you\.")
        terminal.read_until("Enter sends")
        terminal.type("Hello the\x7fe\r")
        terminal.read_until("You    Hello the")
        terminal.read_until(r"Agent  \S[^\n]*\s+\d+ ms to the first words")
        terminal.type("\x03")
        assert terminal.end() == 0
        assert "callback: the caller has left" in terminal.text
        assert "Traceback" not in terminal.text
        # As it was: echo, and whole lines.
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()
    assert list((folder / "tmp").glob("*roomful-*")) == []


def test_ctrl_d_ends_it_too(folder: Path) -> None:
    terminal = Terminal(folder, "--text")
    try:
        terminal.read_until("listening")
        terminal.type("\x04")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_ctrl_c_while_the_host_comes_up(folder: Path) -> None:
    terminal = Terminal(folder, "--text")
    try:
        terminal.read_until("●")
        terminal.type("\x03")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()
    assert list((folder / "tmp").glob("*roomful-*")) == []


def test_a_conversation_by_microphone_and_loudspeaker(folder: Path) -> None:
    heard = folder / "heard"
    terminal = Terminal(
        folder, "greets.py", "--echo", "off", PYTHONPATH=str(FAKE), SOUND_SAYS=str(WAVE), SOUND_HEARS=str(heard)
    )
    try:
        terminal.read_until(r"Agent  Good day to you\.")
        terminal.read_until("Tab mutes")
        terminal.read_until(r"You    \S")
        terminal.read_until(r"Agent  \S")
        terminal.read_until(r"\d+ ms: end of turn \d+")
        # What is typed in a spoken call is answered aloud.
        terminal.type("And now?\r")
        terminal.read_until(r"You    And now\?")
        terminal.read_until(r"Agent  \S")
        terminal.type("\t")
        terminal.read_until("muted")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()
    played = memoryview(heard.read_bytes()).cast("h")
    assert max(played) > 1000


@pytest.mark.models
@pytest.mark.parametrize("rate", ["", "48000"])
def test_a_spoken_question_is_understood_and_answered(folder: Path, rate: str) -> None:
    """Real models. At 48 kHz both ways are resampled; and the canceller, in a room without echo, does no harm."""
    (folder / "roomful.toml").write_text("")
    question = folder / "question.wav"
    samples, found = read_wave(str(WAVES / "whats-the-date-today.wav"))
    with wave.open(str(question), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(int(rate or 16_000))
        recording.writeframes(resample(samples.tobytes(), found, int(rate or 16_000)))
    sound = {"PYTHONPATH": str(FAKE), "SOUND_SAYS": str(question), "SOUND_HEARS": str(folder / "heard")}
    terminal = Terminal(folder, "greets.py", **sound, **({"SOUND_RATE": rate} if rate else {}))
    try:
        terminal.read_until(r"Agent  Good day to you\.")
        terminal.read_until(r"You    What's the date today\?")
        terminal.read_until(r"\d+ ms: end of turn \d+")
        terminal.type("\x03")
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert max(memoryview((folder / "heard").read_bytes()).cast("h")) > 1000


def test_an_agent_that_hangs_up_ends_it(folder: Path) -> None:
    done = console(folder, "leaves.py", PYTHONPATH=str(FAKE))
    assert done.returncode == 0, done.stderr
    assert "Agent: We are closed." in done.stdout


def test_a_job_that_fails_is_told(folder: Path) -> None:
    done = console(folder, "raises.py", "--text")
    assert done.returncode == 9, done.stderr
    assert "error: the job failed: RuntimeError: no kitchen today" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("nobody.py",), 2, "nobody.py"),
        (("--echo", "loud"), 2, "--echo loud: allowed is cancel, mute or off"),
        (("--input-device", "nobody"), 4, "--input-device nobody: no such input"),
        (("--output-device", "hd"), 2, "--output-device hd: that fits several"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    folder: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = console(folder, *arguments, PYTHONPATH=str(FAKE))
    assert done.returncode == code
    assert says in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_without_the_library_the_command_that_installs_it_is_named(folder: Path) -> None:
    (folder / "sounddevice.py").write_text("raise ImportError('no such module')")
    for arguments in ((), ("--list-devices",)):
        done = console(folder, *arguments, PYTHONPATH=str(folder))
        assert done.returncode == 4
        assert "-m pip install sounddevice;" in " ".join(done.stderr.split())


def test_the_list_of_devices(folder: Path) -> None:
    done = console(folder, "--list-devices", PYTHONPATH=str(FAKE))
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 +Headset +1 channel +2 channels +48000 +ALSA", done.stdout)
