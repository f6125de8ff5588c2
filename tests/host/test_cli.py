"""Bad input to the real command: one clear message, the exit code of the table, nothing half-done."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.catalog import default_models_dir

pytestmark = pytest.mark.processes

HOST = str(Path(sys.executable).parent / "host")
WAVE = Path(__file__).parents[1] / "data" / "speech" / "set-a-timer.wav"


@dataclass
class Ended:
    code: int
    stdout: str
    message: str


def host(*arguments: str | Path, cwd: Path) -> Ended:
    done = subprocess.run(
        [HOST, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**os.environ, "TMPDIR": str(temporary(cwd))},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


def temporary(cwd: Path) -> Path:
    """A folder of this test's own, because others run on this machine."""
    folder = cwd / "tmp"
    folder.mkdir(exist_ok=True)
    return folder


def refused(*arguments: str | Path, cwd: Path, code: int, says: tuple[str, ...]) -> None:
    """The command ends with ``code`` and names ``says``; no answer, no socket folder is left."""
    ended = host(*arguments, cwd=cwd)
    assert ended.code == code, ended.message
    for part in says:
        assert part in ended.message, ended.message
    assert ended.stdout == ""
    assert not (cwd / "reply.wav").exists()
    assert list(temporary(cwd).glob("*roomful-*")) == []


def test_help_names_every_command(tmp_path: Path) -> None:
    ended = host("--help", cwd=tmp_path)
    assert ended.code == 0
    assert all(name in ended.stdout for name in ("talk", "serve", "simulate", "status", "models"))


def test_a_wave_that_is_not_there(tmp_path: Path) -> None:
    refused("talk", "nobody.wav", "--out", "reply.wav", cwd=tmp_path, code=2, says=("nobody.wav",))


def test_a_wave_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"ID3\x03 not a wave at all")
    refused("talk", "song.wav", "--out", "reply.wav", cwd=tmp_path, code=2, says=("song.wav",))


def test_a_wave_without_a_sample(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "empty.wav"), "wb") as empty:
        empty.setparams((1, 2, 16_000, 0, "NONE", ""))
    refused("talk", "empty.wav", "--out", "reply.wav", cwd=tmp_path, code=2, says=("empty.wav",))


def test_an_answer_that_could_not_be_written(tmp_path: Path) -> None:
    refused("talk", WAVE, "--out", "no/such/reply.wav", cwd=tmp_path, code=2, says=("no/such",))


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[inference]\nmax_rooms = -1\n", ("inference.max_rooms = -1", ">= 0")),
        ("[inference]\ndevice = 'tpu'\n", ("inference.device = 'tpu'", "auto, cpu, cuda")),
        ("[session]\nspeed = 9\n", ("session.speed = 9", "0.25 to 4")),
        ("[session]\nvoice = 'x'\n", ("session.voice", "known are")),
        ("[worker]\nworker_type = 'all'\n", ("worker.worker_type = 'all'", "room, publisher, participant")),
        ("[worker.permissions]\nhidden = 1\n", ("worker.permissions.hidden = 1", "bool")),
        ("[worker]\nports = 1\n", ("unknown field", "ports")),
        ("[session\n", ("not valid TOML",)),
    ],
)
def test_a_wrong_configuration_value(tmp_path: Path, toml: str, says: tuple[str, ...]) -> None:
    (tmp_path / "roomful.toml").write_text(toml)
    refused("talk", WAVE, "--out", "reply.wav", cwd=tmp_path, code=2, says=("roomful.toml", *says))


def test_an_unknown_profile_lists_those_there_are(tmp_path: Path) -> None:
    refused("talk", WAVE, "--out", "reply.wav", "-p", "tpu", cwd=tmp_path, code=2, says=("'tpu'", "cpu-small"))


def test_missing_models_are_named_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    refused(
        "talk", WAVE, "--out", "reply.wav", "--models-dir", tmp_path / "none",
        cwd=tmp_path, code=3, says=("model.bin", "host models download cpu-small"),
    )  # fmt: skip


@pytest.mark.models
def test_a_model_with_a_wrong_checksum_is_named_and_removed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(default_models_dir(), models, symlinks=True, ignore=shutil.ignore_patterns(".verified.json"))
    voice = models / "en_US-joe-medium" / "en_US-joe-medium.onnx"
    with voice.open("r+b") as opened:
        opened.seek(1_000_000)
        byte = opened.read(1)
        opened.seek(1_000_000)
        opened.write(bytes([byte[0] ^ 1]))
    refused(
        "talk", WAVE, "--out", "reply.wav", "--models-dir", models,
        cwd=tmp_path, code=3, says=("en_US-joe-medium.onnx", "host models download cpu-small"),
    )  # fmt: skip
    assert not voice.exists()
    assert host("models", "verify", "--models-dir", models, cwd=tmp_path).code == 3


@pytest.mark.models
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA driver")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    refused("talk", WAVE, "--out", "reply.wav", "--device", "cuda", cwd=tmp_path, code=4, says=("device 'cuda'",))


def test_an_agent_that_is_not_there_or_not_python(tmp_path: Path) -> None:
    refused("talk", WAVE, "--out", "reply.wav", "--agent", "a.py", cwd=tmp_path, code=2, says=("a.py",))
    (tmp_path / "b.py").write_text("async def entrypoint(ctx:\n")
    refused("talk", WAVE, "--out", "reply.wav", "--agent", "b.py", cwd=tmp_path, code=2, says=("b.py", "line 1"))


def test_serve_without_a_server_says_what_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET"):
        monkeypatch.delenv(name, raising=False)
    refused("serve", cwd=tmp_path, code=2, says=("LIVEKIT_URL",))


def test_serve_names_a_wrong_option_before_anything_starts(tmp_path: Path) -> None:
    server = ("--url", "ws://127.0.0.1:1", "--api-key", "k", "--api-secret", "s")
    (tmp_path / "roomful.toml").write_text("[inference]\nengines = 'fake'\n")
    refused(
        "serve", *server, "--ping-timeout", "2",
        cwd=tmp_path, code=2, says=("worker.ping_timeout = 2", "more than worker.ping_interval, which is 2.5"),
    )  # fmt: skip
    refused("serve", *server, "--worker-type", "x", cwd=tmp_path, code=2, says=("--worker-type", "publisher"))
    (tmp_path / "agent.py").write_text("def entrypoint(ctx): ...\n")
    refused("serve", *server, "agent.py", cwd=tmp_path, code=2, says=("agent.py, line 1", "async def"))


def test_status_of_a_host_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for how in ((), ("--json",), ("--watch",)):
        refused("status", "--url", address, *how, cwd=tmp_path, code=6, says=(address,))


@pytest.mark.parametrize(
    ("worker", "code", "says"),
    [
        ('host = "127.0.0.2"\nport = 9', 6, "http://127.0.0.2:9"),
        ('host = "0.0.0.0"\nport = 9', 6, "http://127.0.0.1:9"),
        ('host = "::1"\nport = 9', 6, "http://[::1]:9"),
        ("port = 0", 2, "--url"),
        ("dev = true", 2, "--url"),
    ],
)
def test_status_looks_where_the_configuration_says(tmp_path: Path, worker: str, code: int, says: str) -> None:
    (tmp_path / "roomful.toml").write_text(f"[worker]\n{worker}\n")
    refused("status", "--once", cwd=tmp_path, code=code, says=(says,))


@pytest.mark.models
def test_silence_is_a_turn_that_was_not_heard(tmp_path: Path) -> None:
    (tmp_path / "roomful.toml").write_text("[session]\nresponse_timeout_s = 1\n")
    with wave.open(str(tmp_path / "silence.wav"), "wb") as silence:
        silence.setparams((1, 2, 16_000, 0, "NONE", ""))
        silence.writeframes(bytes(32_000))
    ended = host("talk", "silence.wav", "--out", "reply.wav", "--json", cwd=tmp_path)
    assert ended.code == 9, ended.message
    assert "0 of 1 turns" in ended.message


def test_models_list_shows_every_model_of_the_catalogue(tmp_path: Path) -> None:
    from models.catalog import load_catalog

    ended = host("models", "list", cwd=tmp_path)
    assert ended.code == 0
    missing = [model.name for model in load_catalog().models if model.name not in ended.stdout]
    assert not missing, ended.stdout
