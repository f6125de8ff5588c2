"""Reads of the model files what ``budget`` needs to know: headers, no weights.

The formats are small and fixed, and what is needed of them are a few numbers at the beginning. The libraries that
read them whole are slow where a vocabulary is long (the ``gguf`` package makes an array of every token), load
the model (CTranslate2), or belong to an engine (llama.cpp).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from inference.budget import Facts, LanguageModelFacts, TranscriberFacts, VoiceFacts

_GGUF_TYPES: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_GGUF_STRING: Final = 8
_GGUF_ARRAY: Final = 9
_LARGEST_STRING: Final = 1 << 24
_LARGEST_COUNT: Final = 1 << 24


class ModelFileError(Exception):
    """A file is not what its name says; the message names it."""


def read_facts(stt: Path, llm: Path, tts: Path) -> Facts:
    """What the budget needs of a Whisper folder, a GGUF file and a voice. Raises ``ModelFileError``."""
    return Facts(_read(llm, read_gguf), _read(stt / "model.bin", read_whisper), _read(tts, _read_voice))


def _read(path: Path, reader: Callable[[BinaryIO, int], Any]) -> Any:
    try:
        with path.open("rb") as file:
            return reader(file, path.stat().st_size)
    except OSError as exc:
        raise ModelFileError(f"{path}: cannot be read: {exc.strerror}") from exc
    except KeyError as exc:
        raise ModelFileError(f"{path}: no {exc.args[0]}") from exc
    except ValueError as exc:
        raise ModelFileError(f"{path}: {exc}") from exc


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = f"<{layout}"
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise ValueError("the file ends in its header")
    return struct.unpack(layout, data)


# --- GGUF -----------------------------------------------------------------------------------------


def read_gguf(file: BinaryIO, size: int) -> LanguageModelFacts:
    """A GGUF file of version 2 or 3 (ggml's ``docs/gguf.md``), ``size`` bytes long."""
    if file.read(4) != b"GGUF":
        raise ValueError("no GGUF file")
    (version,) = _unpack(file, "I")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}, known are 2 and 3")
    tensors, count = _unpack(file, "QQ")
    values: dict[str, Any] = {}
    for _ in range(_checked(count)):
        key = _gguf_string(file).decode("utf-8", "replace")
        (kind,) = _unpack(file, "I")
        values[key] = _gguf_value(file, kind)
    for _ in range(_checked(tensors)):
        _gguf_string(file)
        (rank,) = _unpack(file, "I")
        _unpack(file, f"{_checked(rank)}QIQ")
    return _language_model(values, size - file.tell())


def _language_model(values: Mapping[str, Any], weights: int) -> LanguageModelFacts:
    architecture = values["general.architecture"].decode()

    def number(key: str, default: int | None = None) -> int:
        value = values.get(f"{architecture}.{key}", default)
        if value is None:
            raise ValueError(f"no {architecture}.{key}")
        return max(value) if isinstance(value, list) else int(value)

    def sum_of_layers(key: str, default: int) -> int:
        value = values.get(f"{architecture}.{key}", default)
        return sum(value) if isinstance(value, list) else int(value) * layers

    layers, width, heads = number("block_count"), number("embedding_length"), number("attention.head_count", 1)
    head = width // heads
    key, value = number("attention.key_length", head), number("attention.value_length", head)
    tokens = values.get("tokenizer.ggml.tokens", 0)
    return LanguageModelFacts(
        weights=weights,
        cell=sum_of_layers("attention.head_count_kv", heads) * (key + value) * 2,
        vocabulary=tokens if isinstance(tokens, int) and tokens else number("vocab_size", 0),
        width=width,
        inner_width=number("feed_forward_length", 4 * width),
        context=number("context_length", 0),
    )


def _gguf_string(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    if length > _LARGEST_STRING:
        raise ValueError(f"a string of {length} bytes in the header")
    text = file.read(length)
    if len(text) != length:
        raise ValueError("the file ends in its header")
    return text


def _gguf_value(file: BinaryIO, kind: int) -> Any:
    """A value; of an array of strings only how many there are."""
    if kind in _GGUF_TYPES:
        return _unpack(file, _GGUF_TYPES[kind])[0]
    if kind == _GGUF_STRING:
        return _gguf_string(file)
    if kind != _GGUF_ARRAY:
        raise ValueError(f"a value of type {kind} in the header")
    kind, count = _unpack(file, "IQ")
    _checked(count)
    if kind == _GGUF_STRING:
        for _ in range(count):
            _gguf_string(file)
        return count
    if kind == _GGUF_ARRAY:
        return [_gguf_value(file, kind) for _ in range(count)]
    return list(_unpack(file, f"{count}{_GGUF_TYPES[kind]}"))


def _checked(count: int) -> int:
    if count > _LARGEST_COUNT:
        raise ValueError(f"a count of {count} in the header")
    return count


# --- CTranslate2 ----------------------------------------------------------------------------------

_NUMBER_BYTES: Final[Mapping[int, int]] = {0: 4, 1: 1, 2: 2, 3: 4, 4: 2, 5: 2}
"""``ctranslate2::DataType`` to bytes of one number."""


def read_whisper(file: BinaryIO, size: int) -> TranscriberFacts:
    """A ``model.bin`` of CTranslate2 (``serialize`` in its ``specs/model_spec.py``), ``size`` bytes long."""
    (version,) = _unpack(file, "I")
    if version not in (5, 6):
        raise ValueError(f"no CTranslate2 model of version 5 or 6 (it begins with {version})")
    spec = _ct2_string(file)
    if spec != "WhisperSpec":
        raise ValueError(f"a CTranslate2 model of another kind: {spec}")
    _revision, count = _unpack(file, "II")
    matrices = others = width = 0
    layers = set()
    for _ in range(_checked(count)):
        name = _ct2_string(file)
        (rank,) = _unpack(file, "B")
        shape = _unpack(file, f"{rank}I")
        kind, length = _unpack(file, "BI")
        if file.tell() + length > size:
            raise ValueError("the file is cut")
        file.seek(length, 1)
        numbers = length // _NUMBER_BYTES[kind]
        if rank == 2 and name.endswith("weight"):
            matrices += numbers
        else:
            others += numbers
        if name == "decoder/embeddings/weight":
            width = shape[1]
        if match := re.match(r"decoder/layer_(\d+)/", name):
            layers.add(match[1])
    if not width:
        raise ValueError("no decoder/embeddings/weight")
    return TranscriberFacts(matrices, others, width, len(layers))


def _ct2_string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "H")
    return str(file.read(length)[:-1].decode())


# --- Piper ----------------------------------------------------------------------------------------


def _read_voice(_file: BinaryIO, size: int) -> VoiceFacts:
    return VoiceFacts(size)
