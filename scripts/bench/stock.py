"""The stock way, the other side of every comparison: each library as its README shows it, one request at a time.

faster-whisper's ``transcribe``, llama-cpp-python's ``Llama.create_chat_completion`` and Piper's
``PiperVoice.synthesize``, on the same files, the same device and the same number of threads as ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StockSpeechToText:
    """faster-whisper: ``WhisperModel.transcribe`` with its defaults (beam of five, 30 s window), int8 on a CPU."""

    def __init__(self, model: Path, device: str, threads: int) -> None:
        from faster_whisper import WhisperModel

        compute_type = "float16" if device == "cuda" else "int8"
        self._model = WhisperModel(str(model), device=device, compute_type=compute_type, cpu_threads=threads)

    def transcribe(self, audio: NDArray[np.float32], language: str = "en") -> str:
        """What was said in ``audio`` (16 kHz)."""
        segments, _ = self._model.transcribe(audio, language=language)
        return " ".join(segment.text.strip() for segment in segments)


class StockLanguageModel:
    """llama-cpp-python: one ``Llama`` for all rooms, ``create_chat_completion``, streaming."""

    def __init__(self, model: Path, device: str, threads: int, context_tokens: int) -> None:
        from llama_cpp import Llama

        self._llama = Llama(
            str(model),
            n_ctx=context_tokens,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=-1 if device == "cuda" else 0,
            verbose=False,
        )

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int) -> tuple[float, float, str, int]:
        """Seconds to the first text and to the end, the text, and how many pieces (tokens) it came in. Greedy."""
        began = time.perf_counter()
        first = 0.0
        text, tokens = "", 0
        stream: Any = self._llama.create_chat_completion(
            list(messages),
            max_tokens=max_tokens,
            temperature=0.0,
            stream=True,  # type: ignore[arg-type]
        )
        for chunk in stream:
            piece = chunk["choices"][0]["delta"].get("content")
            if piece:
                first = first or time.perf_counter() - began
                text += piece
                tokens += 1
        taken = time.perf_counter() - began
        return first or taken, taken, text, tokens

    def close(self) -> None:
        """Free model and context."""
        self._llama.close()


class StockTextToSpeech:
    """piper-tts: ``PiperVoice.synthesize``, a chunk of audio a sentence."""

    def __init__(self, model: Path, device: str) -> None:
        from piper import PiperVoice

        self._voice = PiperVoice.load(str(model), use_cuda=device == "cuda")
        self.sample_rate = int(self._voice.config.sample_rate)

    def speak(self, text: str) -> tuple[float, float, NDArray[np.int16]]:
        """Seconds to the first audio and to the end, and the audio (int16)."""
        began = time.perf_counter()
        first = 0.0
        chunks = []
        for chunk in self._voice.synthesize(text):
            first = first or time.perf_counter() - began
            chunks.append(chunk.audio_int16_array)
        taken = time.perf_counter() - began
        return first or taken, taken, np.concatenate(chunks) if chunks else np.zeros(0, np.int16)

    def chunks(self, text: str) -> Iterator[NDArray[np.int16]]:
        """The audio of each sentence when it is ready (int16)."""
        for chunk in self._voice.synthesize(text):
            yield chunk.audio_int16_array
