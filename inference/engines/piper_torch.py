"""A stage of a Piper voice as torch operations, for a GPU.

Piper brings the onnxruntime that knows only CPUs, and it cannot be installed beside the one that knows
GPUs; torch is there anyway. A stage is a few hundred nodes of a handful of kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.engines.base import Audio
from inference.engines.piper_graph import CannotSplitError, Stage


class TorchStage:
    """Runs ``stage`` (of rank 3) on ``device``. Raises ``CannotSplitError`` for a node that it does not know."""

    def __init__(self, stage: Stage, device: str) -> None:
        import onnx
        import torch
        from onnx import numpy_helper

        graph = onnx.load_model_from_string(stage.model).graph
        self._torch = torch
        self._device = torch.device(device)
        self._output = stage.output
        self._values: dict[str, Any] = {
            tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))).to(self._device)
            for tensor in graph.initializer
        }
        self._steps: list[tuple[Callable[..., Any], Sequence[str], Sequence[str]]] = []
        for node in graph.node:
            attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            if node.op_type == "Constant":
                array = np.array(numpy_helper.to_array(attributes["value"]))
                self._values[node.output[0]] = torch.from_numpy(array).to(self._device)
            else:
                self._steps.append((_operation(torch, node.op_type, attributes), list(node.input), list(node.output)))

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Audio:
        """Arrays (rows, channels, frames) by name in, (rows, channels, frames * hop) out."""
        torch = self._torch
        # TF32 convolutions would be wrong in the fourth digit, which can be heard in the silences.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            values = dict(self._values)
            values.update((name, torch.from_numpy(value).to(self._device)) for name, value in feeds.items())
            for operation, reads, writes in self._steps:
                made = operation(*(values[name] if name else None for name in reads))
                values.update(zip(writes, made if isinstance(made, tuple) else (made,), strict=True))
            made = values[self._output]
            result: Audio = made.reshape(made.shape[0], -1, made.shape[-1]).cpu().numpy()
        return result


def _operation(torch: Any, kind: str, attributes: Mapping[str, Any]) -> Callable[..., Any]:
    """The torch function of one ONNX node. Shapes are (rows, channels, frames)."""
    functions = torch.nn.functional
    simple: dict[str, Callable[..., Any]] = {
        "Add": torch.add,
        "Sub": torch.sub,
        "Mul": torch.mul,
        "Div": torch.div,
        "Pow": torch.pow,
        "Neg": torch.neg,
        "Exp": torch.exp,
        "Sqrt": torch.sqrt,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "Relu": torch.relu,
        "Erf": torch.erf,
        "Softplus": functions.softplus,
        "Identity": lambda value: value,
        "Unsqueeze": lambda value, *_: value.unsqueeze(1),
        "Squeeze": lambda value, *_: value.squeeze(1),
        # Zeros (or another number) in the shape of another tensor: the shape stands for the tensor.
        "Shape": lambda value: value,
    }
    if kind in simple:
        return simple[kind]
    match kind:
        case "LeakyRelu":
            return lambda value: functions.leaky_relu(value, attributes.get("alpha", 0.01))
        case "Conv":
            return lambda value, weight, bias=None: functions.conv1d(
                functions.pad(value, tuple(attributes.get("pads", (0, 0)))),
                weight,
                bias,
                dilation=attributes.get("dilations", [1])[0],
                groups=attributes.get("group", 1),
            )
        case "ConvTranspose":
            return lambda value, weight, bias=None: _upsample(functions, attributes, value, weight, bias)
        case "ConstantOfShape":
            fill = attributes.get("value")
            number = (
                float(fill.float_data[0] if fill.float_data else np.frombuffer(fill.raw_data, np.float32)[0])
                if fill
                else 0.0
            )
            return lambda value: torch.full_like(value, number)
        case "Concat":
            return lambda *values: torch.cat(values, 1)
        case "Split":
            return lambda value, sizes=None: torch.split(
                value, [int(size) for size in (attributes["split"] if sizes is None else sizes)], 1
            )
        case "Gather":
            return lambda value, index: torch.index_select(value, 1, index.reshape(-1))
        case "Slice":
            return lambda value, *numbers: _slice(value, *numbers)
    raise CannotSplitError(f"no torch operation for {kind}")


def _upsample(functions: Any, attributes: Mapping[str, Any], value: Any, weight: Any, bias: Any) -> Any:
    left, right = attributes.get("pads", (0, 0))
    (stride,) = attributes.get("strides", (1,))
    full = functions.conv_transpose1d(value, weight, bias, stride=stride, groups=attributes.get("group", 1))
    (extra,) = attributes.get("output_padding", (0,))
    return functions.pad(full, (-left, extra - right))


def _slice(value: Any, starts: Any, ends: Any, axes: Any, steps: Any = None) -> Any:
    """Along the channels, forwards or backwards (a flip); other axes are taken whole."""
    for row, axis in enumerate(axes.tolist()):
        if axis != 1:
            continue
        step = 1 if steps is None else int(steps[row])
        chosen = list(range(value.shape[1]))[slice(*_bounds(int(starts[row]), int(ends[row]), step, value.shape[1]))]
        value = value[:, chosen]
    return value


def _bounds(start: int, end: int, step: int, length: int) -> tuple[int, int | None, int]:
    """ONNX bounds as Python's: there the end of a backward slice is None, not a number below all others."""
    return start, None if step < 0 and end < -length else end, step
