"""Where a Piper voice's graph can be cut, found from the graph itself.

A Piper voice is VITS in one ONNX graph::

    phonemes ── text encoder, durations ──> z_p ── flow ──> z ── decoder (HiFi-GAN) ──> samples
                (sees the whole sentence)        (convolutions over frames: see only their neighbours)

What lies behind ``z_p`` can be computed in windows of frames, if every window brings as many frames of
context as the layers can see. Nothing is found by its name but the inputs, which are Piper's interface:
exporters name nodes as they like. Going back from the samples, the part that sees only neighbours ends
where a node mixes frames over any distance; the one tensor through which all of it must pass is the
latent. It is cut a second time in front of the decoder, whose context is small, because the first audio
waits for the decoder's first window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np


class CannotSplitError(Exception):
    """The graph has no tensor at which it could be cut; the message says what is in the way."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the voice that sees only neighbouring frames.

    ``latent``: the input that is cut into windows, shape (rows, channels, frames). ``masks``: inputs cut
    in the same way, (rows, 1, frames). ``conditions``: inputs without frames, such as a speaker's
    embedding, (rows, channels, 1). ``output``: (rows, ..., frames * ``hop``). ``before``, ``after``: frames
    of context on each side that an output frame can see. ``rank``: 3, or 4 where every tensor has an axis
    of length 1 in front of the frames.
    """

    model: bytes = field(repr=False)
    latent: str
    masks: tuple[str, ...]
    conditions: tuple[str, ...]
    output: str
    before: int
    after: int
    hop: int
    rank: int = 3


@dataclass(frozen=True, slots=True)
class VoiceParts:
    """A voice in pieces: ``encoder`` has the voice's inputs and gives what ``stages`` read, one after the other."""

    encoder: bytes = field(repr=False)
    stages: tuple[Stage, ...]


def split_file(path: Path, *, wide: bool) -> VoiceParts:
    """The parts of the voice in the file ``path``; see ``split``.

    Raises ``CannotSplitError``, also where the file is no ONNX model or the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as exc:
        raise CannotSplitError(f"the onnx package cannot be imported: {exc}") from exc
    try:
        model = onnx.load(str(path))
    except Exception as exc:  # protobuf's error class is not part of its interface
        raise CannotSplitError(f"it is no ONNX model: {exc}") from exc
    return split(model, wide=wide)


def split(model: Any, *, wide: bool = False) -> VoiceParts:
    """Cut ``model`` (an ``onnx.ModelProto``). Raises ``CannotSplitError``.

    ``wide``: make the stages' one-dimensional convolutions two-dimensional ones of height 1, for which
    onnxruntime has its fast kernels on a CPU (a fifth less time for the decoder).
    """
    graph = _Graph(model)
    region = graph.local_region(graph.output)
    latent, feeding = _cuts(graph, region)
    stages = _stages(graph, latent, feeding, wide)
    outputs = dict.fromkeys(
        name for stage in stages for name in (*stage.masks, *stage.conditions) if name not in graph.inputs
    )
    encoder = graph.extract((), (stages[0].latent, *outputs))
    return VoiceParts(encoder.SerializeToString(), stages)


# --- where to cut ---------------------------------------------------------------------------------


def _cuts(graph: _Graph, region: _Region) -> tuple[str, str]:
    """The latent (as far from the samples as possible), and the tensor that feeds the decoder."""
    upsampling = next((node for node in region.nodes if node.op_type == "ConvTranspose"), None)
    if upsampling is None:
        raise CannotSplitError("no upsampling convolution in front of the samples: the decoder is no HiFi-GAN")
    if not region.data:
        raise CannotSplitError("nothing of what the decoder reads comes from the phonemes")
    bottlenecks = graph.bottlenecks(region, upsampling.input[0])
    for name in reversed(bottlenecks):
        node = graph.producers.get(name)
        if node is not None and node.op_type == "Conv" and node.input[0] in bottlenecks:
            return bottlenecks[0], node.input[0]
    raise CannotSplitError("the decoder reads more than one tensor that depends on the phonemes")


def _stages(graph: _Graph, latent: str, feeding: str, wide: bool) -> tuple[Stage, ...]:
    decoder = _stage(graph, feeding, graph.output, wide)
    if latent == feeding:
        return (decoder,)
    try:
        return (_stage(graph, latent, feeding, wide), decoder)
    except CannotSplitError:
        # Then the flow belongs to the encoder: the first audio comes later, the rest is as good.
        return (decoder,)


def _stage(graph: _Graph, latent: str, output: str, wide: bool) -> Stage:
    region = graph.local_region(output, stop=latent)
    if region.data - {latent}:
        raise CannotSplitError(f"{output} reads {', '.join(sorted(region.data - {latent}))} beside {latent}")
    seen = _reach(region, latent, output)
    model = graph.extract((latent, *region.masks, *region.conditions), (output,))
    rank = 4 if wide and _widen(model) else 3
    return Stage(
        model=model.SerializeToString(),
        latent=latent,
        masks=region.masks,
        conditions=region.conditions,
        output=output,
        before=math.ceil(seen.before),
        after=math.ceil(seen.after),
        hop=seen.rate,
        rank=rank,
    )


# --- the graph ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Region:
    """Nodes that see only neighbouring frames, in order, and what they read from outside.

    ``data``: tensors that depend on the phonemes. ``masks``: which frames are there at all, as numbers.
    ``conditions``: tensors without frames.
    """

    nodes: tuple[Any, ...]
    data: frozenset[str]
    masks: tuple[str, ...]
    conditions: tuple[str, ...]


_FRAMELESS_INPUTS: Final = frozenset({"sid", "scales"})
"""Inputs of a Piper voice that have nothing to do with the sentence: the speaker, and the scales of noise and time."""

_ELEMENTWISE: Final = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Sum", "Neg", "Exp", "Sqrt", "Tanh", "Sigmoid", "Relu", "LeakyRelu", "Elu",
    "Softplus", "Erf", "Identity", "Clip",
})  # fmt: skip


class _Graph:
    """The whole voice, indexed."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: list[Any] = list(model.graph.node)
        self.inputs = {info.name for info in model.graph.input}
        if not model.graph.output:
            raise CannotSplitError("the graph has no output")
        self.output: str = model.graph.output[0].name
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self._fixed, self._frameless = self._without_frames()

    def _without_frames(self) -> tuple[set[str], set[str]]:
        """Tensors that depend on nothing, and those that depend on the speaker and the scales alone."""
        fixed = set(self.initializers)
        frameless = fixed | (self.inputs & _FRAMELESS_INPUTS)
        for node in self.nodes:  # ONNX demands topological order
            reads = set(_reads(node))
            if node.op_type.startswith("Random") or (not reads and node.op_type != "Constant"):
                continue
            if reads <= fixed:
                fixed.update(node.output)
            if reads <= frameless:
                frameless.update(node.output)
        return fixed, frameless

    def constant(self, name: str) -> list[int] | None:
        """The whole numbers in a constant tensor; None for what is no constant or was computed."""
        from onnx import numpy_helper

        tensor = self.initializers.get(name)
        if tensor is None:
            node = self.producers.get(name)
            if node is None or node.op_type != "Constant":
                return None
            tensor = _attribute(node, "value", None)
            if tensor is None:
                return None
        return [int(number) for number in np.atleast_1d(numpy_helper.to_array(tensor))]

    def local_region(self, output: str, stop: str = "") -> _Region:
        """Everything in front of ``output`` that sees only neighbouring frames, back to ``stop``."""
        nodes: set[str] = set()
        data: set[str] = set()
        masks: dict[str, None] = {}
        conditions: dict[str, None] = {}
        waiting, seen = [output], {""} | self._fixed
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producers.get(name)
            if name in self._frameless:
                conditions[name] = None
            elif name == stop or node is None or not _is_local(self, node):
                # A comparison of frame numbers with lengths, made a number.
                (masks.setdefault(name) if node is not None and node.op_type == "Cast" else data.add(name))
            else:
                nodes.update(node.output)
                waiting.extend(node.input)
        ordered = tuple(node for node in self.nodes if node.output and node.output[0] in nodes)
        return _Region(ordered, frozenset(data), tuple(sorted(masks)), tuple(sorted(conditions)))

    def bottlenecks(self, region: _Region, target: str) -> list[str]:
        """The tensors that everything from ``region.data`` to ``target`` passes, the earliest first."""
        inside = {name: node for node in region.nodes for name in node.output}

        def reached_without(without: str) -> bool:
            waiting, seen = [target], {without}
            while waiting:
                name = waiting.pop()
                if name in seen:
                    continue
                if name in region.data:
                    return True
                seen.add(name)
                if name in inside:
                    waiting.extend(inside[name].input)
            return False

        candidates = [*sorted(region.data), *(name for node in region.nodes for name in node.output)]
        return [name for name in candidates if not reached_without(name)]

    def extract(self, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        """A model that computes ``outputs`` from ``inputs`` and from those of the whole graph that it needs."""
        from onnx import TensorProto, helper

        wanted: set[str] = set()
        waiting, seen = list(outputs), {*inputs, ""}
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producers.get(name)
            if node is not None:
                wanted.update(node.output)
                waiting.extend(_reads(node))
        nodes = [node for node in self.nodes if node.output and node.output[0] in wanted]
        read = {name for node in nodes for name in _reads(node)}
        if missing := self.inputs & seen & set(inputs):
            raise CannotSplitError(f"an input of the voice cannot be cut: {', '.join(sorted(missing))}")
        graph = helper.make_graph(
            nodes,
            "part",
            [
                *(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs),
                *(info for info in self.model.graph.input if info.name in read and info.name not in self.initializers),
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [tensor for name, tensor in self.initializers.items() if name in read],
        )
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)


def _reads(node: Any) -> Iterator[str]:
    """What a node reads, its inner graphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            made = {name for other in inner.node for name in other.output} | {info.name for info in inner.input}
            made |= {tensor.name for tensor in inner.initializer}
            yield from (name for other in inner.node for name in _reads(other) if name not in made)


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _is_local(graph: _Graph, node: Any) -> bool:
    """Whether what a node makes of a frame depends on its neighbours alone. Axes are rows, channels, frames."""
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return _is_plain_convolution(node)
        case "Split" | "Concat":
            return bool(_attribute(node, "axis", 0) == 1)
        case "Gather":
            return _attribute(node, "axis", 0) == 1 and graph.constant(node.input[1]) is not None
        case "Slice":
            return _is_slice_of_channels(graph, node)
        case "Unsqueeze" | "Squeeze":
            axes = graph.constant(node.input[1]) if len(node.input) > 1 else _attribute(node, "axes", None)
            return axes is not None and all(axis in (0, 1) for axis in axes)
        case "Shape" | "ConstantOfShape":
            return True  # together they are zeros of somebody's shape
        case other:
            return other in _ELEMENTWISE


def _is_slice_of_channels(graph: _Graph, node: Any) -> bool:
    """Whether a slice leaves all frames where they are (exporters write ``x[:, :half, :]`` as two slices)."""
    numbers = [graph.constant(name) for name in node.input[1:]]
    if len(numbers) < 3 or any(number is None for number in numbers):
        return False
    starts, ends, axes, steps = (*numbers, [1] * len(numbers[2] or ()))[:4]
    return all(
        axis == 1 or (start == 0 and end >= _TO_THE_END and step == 1)
        for start, end, axis, step in zip(starts or (), ends or (), axes or (), steps or (), strict=True)
    )


_TO_THE_END: Final = 2**31 - 1


def _is_plain_convolution(node: Any) -> bool:
    kernel = _attribute(node, "kernel_shape", ())
    return (
        len(kernel) == 1
        and _attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
        and (node.op_type == "ConvTranspose" or list(_attribute(node, "strides", [1])) == [1])
    )


# --- how far a stage can see ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """``rate``: steps a frame. ``before``, ``after``: how far a step can see, in frames.

    ``is_shape``: it is only the shape of a tensor with that rate.
    """

    rate: int
    before: Fraction
    after: Fraction
    is_shape: bool = False


def _reach(region: _Region, latent: str, output: str) -> _Seen:
    """What ``output`` sees of ``latent``. Raises ``CannotSplitError`` for a layer that changes the length."""
    known = dict.fromkeys((latent, *region.masks), _Seen(1, Fraction(0), Fraction(0)))
    for node in region.nodes:
        # A convolution's weights are constants; they have no frames of their own.
        read = [known[name] for name in node.input if name in known]
        seen = _reach_of_node(node, read) if read else None
        if seen is not None:
            known.update(dict.fromkeys(node.output, seen))
    if output not in known or known[output].is_shape:
        raise CannotSplitError(f"{output} does not depend on {latent}")
    return known[output]


def _reach_of_node(node: Any, read: list[_Seen]) -> _Seen:
    if len({(one.rate, one.is_shape) for one in read}) > 1:
        raise CannotSplitError(f"{node.op_type} {node.name} joins tensors of different lengths")
    rate, before, after = read[0].rate, max(one.before for one in read), max(one.after for one in read)
    if read[0].is_shape != (node.op_type == "ConstantOfShape"):
        raise CannotSplitError(f"{node.op_type} {node.name} computes with the length of the sentence")
    match node.op_type:
        case "Shape":
            return _Seen(rate, before, after, is_shape=True)
        case "ConstantOfShape":
            return _Seen(rate, Fraction(0), Fraction(0))
        case "Conv":
            (kernel,), (dilation,), (left, right) = _layer(node)[:3]
            if left + right != (kernel - 1) * dilation:
                raise CannotSplitError(f"convolution {node.name} changes the length by its padding")
            return _Seen(rate, before + Fraction(left, rate), after + Fraction(right, rate))
        case "ConvTranspose":
            (kernel,), (dilation,), (left, right), (stride,), (extra,) = _layer(node)
            if dilation != 1 or kernel - left - right + extra != stride:
                raise CannotSplitError(f"upsampling {node.name} does not make exactly {stride} steps of one")
            return _Seen(
                rate * stride,
                before + Fraction(kernel - 1 - left, stride * rate),
                after + Fraction(left, stride * rate),
            )
    return _Seen(rate, before, after)


def _layer(node: Any) -> tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int], Sequence[int]]:
    """Kernel, dilation, padding, stride and extra output of a convolution."""
    return (
        _attribute(node, "kernel_shape", None),
        _attribute(node, "dilations", [1]),
        _attribute(node, "pads", [0, 0]),
        _attribute(node, "strides", [1]),
        _attribute(node, "output_padding", [0]),
    )


# --- two dimensions -------------------------------------------------------------------------------


def _widen(model: Any) -> bool:
    """Put an axis of length 1 in front of the frames of every tensor; False, and nothing done, if one resists."""
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    weights = {node.input[1] for node in layers}
    others = {name for node in model.graph.node for name in node.input} - weights
    constants = [*initializers.values(), *_inner_constants(model.graph.node)]
    if (
        not weights <= initializers.keys()
        or weights & others
        or any(_has_layout(tensor) for tensor in constants if tensor.name not in weights)
    ):
        return False
    for name in weights:
        array = numpy_helper.to_array(initializers[name])
        initializers[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[:, :, None, :]), name))
    for node in layers:
        for attribute in node.attribute:
            match attribute.name:
                case "kernel_shape" | "dilations" | "strides":
                    wider = [1, *attribute.ints]
                case "pads":
                    wider = [0, attribute.ints[0], 0, attribute.ints[1]]
                case "output_padding":
                    wider = [0, *attribute.ints]
                case _:
                    continue
            del attribute.ints[:]
            attribute.ints.extend(wider)
    return True


def _inner_constants(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        if node.op_type == "Constant" and (tensor := _attribute(node, "value", None)) is not None:
            yield tensor


def _has_layout(tensor: Any) -> bool:
    """Whether a constant has an axis of frames or channels: it would be laid out for three axes."""
    return sum(1 for length in tensor.dims if length != 1) > 0 and len(tensor.dims) > 1
