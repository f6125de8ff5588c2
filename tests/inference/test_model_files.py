from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from inference.budget import Facts, LanguageModelFacts, TranscriberFacts
from inference.model_files import ModelFileError, read_facts
from models.catalog import resolve

STRING, ARRAY, UINT32 = 8, 9, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value_of(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(text(one) for one in value)
    return struct.pack("<IIQ", ARRAY, UINT32, len(value)) + struct.pack(f"<{len(value)}I", *value)


def gguf(values: dict[str, Any], weights: int = 1000) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values))
    for key, value in values.items():
        header += text(key) + value_of(value)
    header += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)
    return header + bytes(weights)


VALUES: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 160,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 4096,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}


def ct2(spec: str = "WhisperSpec", layers: int = 2, cut: int = 0) -> bytes:
    def name(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    def variable(called: str, *shape: int) -> bytes:
        numbers = 1
        for length in shape:
            numbers *= length
        head = name(called) + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        return head + struct.pack("<BI", 4, 2 * numbers) + bytes(2 * numbers)  # float16

    variables = [variable("decoder/embeddings/weight", 10, 8), variable("decoder/layer_norm/gamma", 8)]
    for layer in range(layers):
        variables.append(variable(f"decoder/layer_{layer}/attention/linear_0/weight", 8, 8))
        variables.append(variable(f"decoder/layer_{layer}/attention/linear_0/bias", 8))
    variables.append(variable("encoder/conv1/weight", 8, 80, 3))
    made = struct.pack("<I", 6) + name(spec) + struct.pack("<II", 3, len(variables)) + b"".join(variables)
    return made[: len(made) - cut]


def facts(folder: Path, *, llm: bytes | None = None, stt: bytes | None = None) -> Facts:
    (folder / "whisper").mkdir(exist_ok=True)
    (folder / "whisper" / "model.bin").write_bytes(ct2() if stt is None else stt)
    (folder / "llm.gguf").write_bytes(gguf(VALUES) if llm is None else llm)
    (folder / "voice.onnx").write_bytes(bytes(123))
    return read_facts(folder / "whisper", folder / "llm.gguf", folder / "voice.onnx")


def test_what_the_files_say(tmp_path: Path) -> None:
    found = facts(tmp_path)
    # Two heads of 16 numbers for keys and as many for values, two bytes each, in three layers.
    assert found.llm == LanguageModelFacts(1000, 3 * 2 * 32 * 2, 3, 64, 160, 4096)
    assert found.stt == TranscriberFacts(10 * 8 + 2 * 64, 8 + 2 * 8 + 8 * 80 * 3, 8, 2)
    assert found.tts.file == 123


def test_heads_of_their_own_size_and_layers_that_differ(tmp_path: Path) -> None:
    values = VALUES | {
        "llama.attention.key_length": 24,
        "llama.attention.value_length": 8,
        "llama.attention.head_count_kv": [2, 0, 1],
        "llama.feed_forward_length": [100, 300, 200],
    }
    found = facts(tmp_path, llm=gguf(values)).llm
    assert found.cell == 3 * (24 + 8) * 2
    assert found.inner_width == 300


def test_a_model_without_tokens_in_its_header(tmp_path: Path) -> None:
    values = {key: value for key, value in VALUES.items() if key != "tokenizer.ggml.tokens"}
    assert facts(tmp_path, llm=gguf(values | {"llama.vocab_size": 77})).llm.vocabulary == 77


@pytest.mark.parametrize(
    ("llm", "complaint"),
    [
        (b"PK\3\4 something else", "no GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, known are 2 and 3"),
        (gguf(VALUES)[:60], "the file ends in its header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "a count of"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40), "a string of"),
        (gguf({"general.architecture": "llama"}), "no llama.block_count"),
        (gguf({"general.name": "nobody"}), "no general.architecture"),
    ],
)
def test_a_language_model_that_is_none(tmp_path: Path, llm: bytes, complaint: str) -> None:
    with pytest.raises(ModelFileError, match=rf"llm\.gguf: .*{complaint}"):
        facts(tmp_path, llm=llm)


@pytest.mark.parametrize(
    ("stt", "complaint"),
    [
        (b"", "the file ends in its header"),
        (struct.pack("<I", 99), "no CTranslate2 model of version 5 or 6"),
        (ct2("TransformerSpec"), "of another kind: TransformerSpec"),
        (ct2(cut=20), "the file is cut"),
    ],
)
def test_a_transcriber_that_is_none(tmp_path: Path, stt: bytes, complaint: str) -> None:
    with pytest.raises(ModelFileError, match=rf"model\.bin: .*{complaint}"):
        facts(tmp_path, stt=stt)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"llm\.gguf: cannot be read: No such file"):
        read_facts(tmp_path, tmp_path / "llm.gguf", tmp_path)


@pytest.mark.models
def test_the_default_models() -> None:
    profile = resolve("cpu-small")
    found = read_facts(profile.stt.path, profile.llm.path, profile.tts.path)
    assert found.llm == LanguageModelFacts(96_576_768, 23_040, 49_152, 576, 1536, 8192)
    assert (found.stt.width, found.stt.decoder_layers) == (512, 6)
    assert found.stt.matrices + found.stt.others == pytest.approx(72_600_000, rel=0.01)
