"""Voices in parts, on small voices with random weights, exported by Piper's own model code."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from inference.engines.base import Audio, EngineError, EngineOptions, SpeechOut
from inference.engines.piper_graph import CannotSplitError, Stage, split, split_file
from inference.engines.piper_load import load_voice, split_voice
from inference.engines.piper_voice import Order, Scales
from inference.engines.piper_windows import EXACT, FIRST_FRAMES, SplitVoice
from inference.engines.tts import PiperTextToSpeech

SYMBOLS = 60
SPEAKERS = 8
MEDIUM = {
    "resblock": "2",
    "upsample_rates": (8, 8, 4),
    "upsample_kernel_sizes": (16, 16, 8),
    "resblock_kernel_sizes": (3, 5, 7),
    "resblock_dilation_sizes": ((1, 2), (2, 6), (3, 12)),
}
HIGH = {
    "resblock": "1",
    "upsample_rates": (8, 8, 2, 2),
    "upsample_kernel_sizes": (16, 16, 4, 4),
    "resblock_kernel_sizes": (3, 7, 11),
    "resblock_dilation_sizes": ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
}
VOICES: dict[str, dict[str, Any]] = {
    "medium": {"n_speakers": 1, **MEDIUM},
    "several speakers": {"n_speakers": SPEAKERS, "gin_channels": 16, **MEDIUM},
    "high, several speakers": {"n_speakers": SPEAKERS, "gin_channels": 16, **HIGH},
    "plain durations": {"n_speakers": 1, "use_sdp": False, **MEDIUM},
}


def export(path: Path, **settings: Any) -> None:
    """What Piper's export_onnx does, for a voice that nobody has trained."""
    import torch
    from piper.train.vits.models import SynthesizerTrn

    torch.manual_seed(1)
    network = SynthesizerTrn(
        n_vocab=SYMBOLS,
        spec_channels=33,
        segment_size=32,
        inter_channels=16,
        hidden_channels=16,
        filter_channels=32,
        n_heads=2,
        n_layers=2,
        kernel_size=3,
        p_dropout=0.1,
        upsample_initial_channel=32,
        **settings,
    ).eval()

    def infer(text: Any, lengths: Any, scales: Any, sid: Any = None) -> Any:
        spoken = network.infer(
            text, lengths, noise_scale=scales[0], length_scale=scales[1], noise_scale_w=scales[2], sid=sid
        )
        return spoken[0].unsqueeze(1)

    several = settings["n_speakers"] > 1
    example = (
        torch.randint(0, SYMBOLS, (1, 50)),
        torch.LongTensor([50]),
        torch.FloatTensor([0.667, 1.0, 0.8]),
        torch.LongTensor([0]) if several else None,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)  # layers that do nothing before training
        network.dec.remove_weight_norm()
        network.forward = infer
        torch.onnx.export(
            network,
            example,
            path,
            opset_version=15,
            dynamo=False,
            input_names=["input", "input_lengths", "scales", "sid"][: 4 if several else 3],
            output_names=["output"],
            dynamic_axes={
                "input": {0: "batch_size", 1: "phonemes"},
                "input_lengths": {0: "batch_size"},
                "output": {0: "batch_size", 2: "time"},
            },
        )


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("voices")

    def voice(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Piper's code and exporter use what torch would like to see go
                export(path, **VOICES[name])
        return path

    return voice


def scales_of(name: str) -> Scales:
    return Scales(noise=0.667, noise_w=0.8, speaker=3 if VOICES[name]["n_speakers"] > 1 else None)


def order(length: int, length_scale: float = 1.0) -> Order:
    """A sentence of ``length`` phonemes, spoken the same every time."""
    ids = np.random.default_rng(length).integers(0, SYMBOLS, length)
    return Order([int(phoneme) for phoneme in ids], length_scale, noise=0.0)


def one_shots(path: Path, scales: Scales, orders: list[Order]) -> list[Audio]:
    """What the graph as it came makes of each."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(None, scales.feeds(order))[0].reshape(-1) for order in orders]


def in_windows(voice: SplitVoice, orders: list[Order]) -> list[list[Audio]]:
    """The blocks of each, all decoded side by side."""
    sentences = []
    for sentence in voice.encode(orders):
        assert not isinstance(sentence, EngineError)
        sentences.append(sentence)
    blocks: list[list[Audio]] = [[] for _ in orders]
    while going_on := [row for row, sentence in enumerate(sentences) if not sentence.finished]:
        for row, block in zip(going_on, voice.decode([sentences[row] for row in going_on]), strict=True):
            assert not isinstance(block, EngineError)
            blocks[row].append(block)
    return blocks


@pytest.fixture(params=["cpu", "torch"])
def make_voice(request: pytest.FixtureRequest) -> Iterator[Callable[[Path, Scales], SplitVoice]]:
    """A split voice as it runs on a CPU, and as it runs on a GPU (here torch's CPU device)."""
    made = []

    def make(path: Path, scales: Scales) -> SplitVoice:
        if request.param == "torch":
            voice = split_voice(split_file(path, wide=False), scales, 2, torch_device="cpu")
        else:
            voice = split_voice(split_file(path, wide=True), scales, 2)
        made.append(voice)
        return voice

    yield make
    for voice in made:
        voice.close()


@pytest.mark.parametrize("name", VOICES)
def test_windows_of_several_rooms_are_one_shot(
    name: str, voices: Callable[[str], Path], make_voice: Callable[[Path, Scales], SplitVoice]
) -> None:
    path, scales = voices(name), scales_of(name)
    voice = make_voice(path, scales)
    orders = [order(160), order(90), order(90, length_scale=0.5), order(5), order(1)]
    for expected, blocks in zip(one_shots(path, scales, orders), in_windows(voice, orders), strict=True):
        spoken = np.concatenate(blocks)
        assert spoken.shape == expected.shape
        assert np.abs(spoken - expected).max() <= EXACT
        assert np.abs(expected).max() > 100 * EXACT


def test_rooms_with_different_speakers_share_a_batch(
    voices: Callable[[str], Path], make_voice: Callable[[Path, Scales], SplitVoice]
) -> None:
    path, scales = voices("several speakers"), scales_of("several speakers")
    orders = [dataclasses.replace(order(90), speaker=speaker) for speaker in (None, *range(SPEAKERS))]
    spoken = [np.concatenate(blocks) for blocks in in_windows(make_voice(path, scales), orders)]
    for expected, one in zip(one_shots(path, scales, orders), spoken, strict=True):
        assert one.shape == expected.shape
        assert np.abs(one - expected).max() <= EXACT
    own, *others = spoken
    assert scales.speaker is not None
    assert np.array_equal(own, others[scales.speaker])
    for one, other in itertools.combinations(others, 2):
        assert one.shape != other.shape or np.abs(one - other).max() > 10 * EXACT


@pytest.mark.parametrize(("name", "before", "after"), [("medium", 12, 11), ("high, several speakers", 14, 13)])
def test_the_latent_is_found_and_how_far_each_stage_sees(
    name: str, before: int, after: int, voices: Callable[[str], Path]
) -> None:
    flow, decoder = split_file(voices(name), wide=False).stages
    assert (flow.before, flow.after, flow.hop, len(flow.masks)) == (32, 32, 1, 1)
    assert (decoder.before, decoder.after, decoder.hop, decoder.masks) == (before, after, 256, ())
    assert decoder.latent == flow.output
    several = VOICES[name]["n_speakers"] > 1
    assert (len(decoder.conditions), bool(flow.conditions)) == (int(several), several)
    # The far ends of the kernels weigh so little that float32 does not show them.
    for really, computed in zip(seen(decoder), (before, after), strict=True):
        assert computed - 2 <= really <= computed


def seen(stage: Stage) -> tuple[int, int]:
    """How far an output frame really sees, measured: one frame of the latent is touched."""
    session = onnxruntime.InferenceSession(stage.model, providers=["CPUExecutionProvider"])
    frames, touched = 81, 40
    feeds = {}
    for info in session.get_inputs():
        channels = 16 if info.name == stage.latent else 32
        length = frames if info.name == stage.latent else 1
        feeds[info.name] = np.zeros((1, channels, length), np.float32)
    quiet = session.run(None, feeds)[0].reshape(frames, stage.hop)
    feeds[stage.latent][:, :, touched] = 10.0
    changed = np.flatnonzero((session.run(None, feeds)[0].reshape(frames, stage.hop) != quiet).any(axis=1))
    return int(changed[-1]) - touched, touched - int(changed[0])


def test_the_first_window_is_short_and_the_next_ones_grow(voices: Callable[[str], Path]) -> None:
    voice, _ = load_voice(voices("medium"), scales_of("medium"), EngineOptions("cpu", 2, 4), order(60).ids)
    (blocks,) = in_windows(voice, [order(200)])
    frames = [block.size // 256 for block in blocks]
    assert frames[0] == FIRST_FRAMES
    assert frames[:-1] == sorted(frames[:-1])
    assert min(frames) >= FIRST_FRAMES
    voice.close()


def test_noise_is_drawn_once_a_sentence_and_differs_between_two(voices: Callable[[str], Path]) -> None:
    voice = split_voice(split_file(voices("medium"), wide=True), scales_of("medium"), 1)
    same = Order(order(80).ids)
    first, second = (np.concatenate(blocks) for blocks in in_windows(voice, [same, same]))
    length = min(first.size, second.size)
    assert np.abs(first[:length] - second[:length]).max() > EXACT


def test_a_sentence_that_fails_fails_alone(voices: Callable[[str], Path]) -> None:
    voice = split_voice(split_file(voices("medium"), wide=True), scales_of("medium"), 2)
    unknown, known = voice.encode([Order([SYMBOLS + 99]), order(60)])
    assert isinstance(unknown, EngineError)
    assert not isinstance(known, EngineError)
    poisoned, healthy = voice.encode([order(60), order(60)])
    assert not isinstance(poisoned, EngineError)
    assert not isinstance(healthy, EngineError)
    poisoned.values = {name: value[:, :1] for name, value in poisoned.values.items()}
    failed, spoken = voice.decode([poisoned, healthy])
    assert isinstance(failed, EngineError)
    assert not isinstance(spoken, EngineError)
    assert spoken.size == FIRST_FRAMES * 256
    voice.close()


# --- what cannot be split -------------------------------------------------------------------------


def normalised(path: Path, to: Path) -> Path:
    """The voice with its samples scaled to full level, which needs all of them."""
    model = onnx.load(str(path))
    graph = model.graph
    name = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["unscaled" if output == name else output for output in node.output]
    graph.node.extend(
        [
            helper.make_node("Abs", ["unscaled"], ["level"]),
            helper.make_node("ReduceMax", ["level"], ["peak"], keepdims=0),
            helper.make_node("Div", ["unscaled", "peak"], [name]),
        ]
    )
    onnx.save(model, str(to))
    return to


def graph_of(nodes: list[Any], weights: dict[str, tuple[int, ...]]) -> Any:
    """A model from ``input`` (rows, 4 channels, frames) to ``output``."""
    rng = np.random.default_rng(0)
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4, "frames"])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
            [
                helper.make_tensor(name, TensorProto.FLOAT, shape, rng.normal(size=shape).reshape(-1))
                for name, shape in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 15)],
        ir_version=8,
    )


def mixed() -> Any:
    """Something that depends on all frames: here the input times its largest value."""
    return [
        helper.make_node("ReduceMax", ["input"], ["largest"]),
        helper.make_node("MatMul", ["mixing", "input"], ["all"]),
        helper.make_node("Mul", ["all", "largest"], ["latent"]),
    ]


def conv(source: str, target: str, **attributes: Any) -> Any:
    attributes = {"kernel_shape": [3], "pads": [1, 1], **attributes}
    return helper.make_node("Conv", [source, "conv"], [target], name=f"conv of {source}", **attributes)


def upsample(source: str, target: str, **attributes: Any) -> Any:
    attributes = {"kernel_shape": [4], "strides": [2], "pads": [1, 1], **attributes}
    return helper.make_node("ConvTranspose", [source, "up"], [target], name=f"up of {source}", **attributes)


WEIGHTS = {"mixing": (4, 4), "conv": (4, 4, 3), "up": (4, 4, 4)}


def test_a_small_graph_that_can_be_split() -> None:
    parts = split(graph_of([*mixed(), conv("latent", "a"), upsample("a", "output")], WEIGHTS))
    (decoder,) = parts.stages
    # The kernel of 4 sees (4 - 1 - 1) / 2 = 1 step back and 1 / 2 forward, the kernel of 3 one each way.
    assert (decoder.latent, decoder.before, decoder.after, decoder.hop) == ("latent", 2, 2, 2)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([*mixed(), conv("latent", "output")], "no upsampling"),
        ([*mixed(), upsample("latent", "output")], "more than one tensor"),
        ([*mixed(), conv("latent", "a"), upsample("a", "output", strides=[3])], "exactly 3 steps"),
        ([*mixed(), conv("latent", "a", pads=[1, 0]), upsample("a", "output")], "changes the length"),
        (
            [
                *mixed(),
                conv("latent", "a"),
                helper.make_node("MatMul", ["mixing", "latent"], ["b"]),
                conv("b", "c"),
                helper.make_node("Add", ["a", "c"], ["d"]),
                upsample("d", "output"),
            ],
            "more than one tensor",
        ),
        (
            [
                *mixed(),
                conv("latent", "a"),
                upsample("a", "b"),
                helper.make_node("ReduceMax", ["b"], ["peak"]),
                helper.make_node("Div", ["b", "peak"], ["output"]),
            ],
            "beside latent",
        ),
        (
            [
                *mixed(),
                conv("latent", "a"),
                upsample("a", "b"),
                helper.make_node("Slice", ["b", "one", "end", "axis"], ["output"]),
            ],
            "no upsampling",
        ),
    ],
)
def test_what_stands_in_the_way_is_said(nodes: list[Any], why: str) -> None:
    model = graph_of(nodes, WEIGHTS)
    for name, number in (("one", 1), ("end", 2**31), ("axis", 2)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [number]))
    with pytest.raises(CannotSplitError, match=why):
        split(model)


def test_no_model_at_all(tmp_path: Path) -> None:
    path = tmp_path / "voice.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(CannotSplitError, match="no ONNX model"):
        split_file(path, wide=True)


def test_a_voice_that_cannot_be_split_speaks_whole_and_says_so(
    voices: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = normalised(voices("several speakers"), tmp_path / "loud.onnx")
    letters = {letter: [3 + index] for index, letter in enumerate("abcdefghijklmnopqrstuvwxyz ,.")}
    settings = {
        "audio": {"sample_rate": 16_000},
        "espeak": {"voice": "en"},
        "phoneme_type": "text",
        "num_symbols": SYMBOLS,
        "num_speakers": SPEAKERS,
        "default_speaker_id": 3,
        "phoneme_id_map": {"_": [0], "^": [1], "$": [2], **letters},
    }
    path.with_name("loud.onnx.json").write_text(json.dumps(settings))
    tts = PiperTextToSpeech()
    with caplog.at_level(logging.WARNING):
        tts.load(path, EngineOptions("cpu", 1, 4))
    assert "the voice loud.onnx works a sentence at a time" in caplog.text
    tts.start(1, "one phrase")
    tts.start(2, "another phrase")
    spoken = [tts.step([1, 2]), tts.step([1, 2])]
    assert [(out.request, out.last) for outs in spoken for out in outs if isinstance(out, SpeechOut)] == [
        (1, True),
        (2, True),
    ]
    tts.close()
