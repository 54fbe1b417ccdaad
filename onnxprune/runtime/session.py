"""onnxruntime sessions at the least cost, random inputs, and types found by running.

A session is made of the light bytes of a model and of its weights where they lie (mapped files, numpy
arrays): nothing is copied. It is made for one run, not for speed: no graph optimisation (which also keeps two
models comparable) and no repacked copies of weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.files.external import point
from onnxprune.model import Model
from onnxprune.wall import board as wall

__all__ = [
    "CPU",
    "FROM_NUMPY",
    "Feeds",
    "RunError",
    "Session",
    "Unloadable",
    "light_proto",
    "open_session",
    "provider_of",
]

Array: TypeAlias = NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]
#: How far a session computes as users have it, see `open_session`.
Mode: TypeAlias = Literal["exact", "served", "timed"]

# Element types that onnxruntime takes from numpy as they are, and those that it takes under another name.
_PLAIN = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13})
_VIEWED: dict[int, type[np.generic]] = {
    TensorProto.BFLOAT16: np.uint16,
    TensorProto.FLOAT8E4M3FN: np.uint8,
    TensorProto.FLOAT8E4M3FNUZ: np.uint8,
    TensorProto.FLOAT8E5M2: np.uint8,
    TensorProto.FLOAT8E5M2FNUZ: np.uint8,
}

#: Element types of inputs that onnxruntime takes from numpy: those, and texts.
FROM_NUMPY = _PLAIN | {TensorProto.STRING}

#: Ops whose kernels multiply 8-bit integers.
_INTEGER = re.compile(
    r"Q(Linear(Conv|MatMul)|Gemm|Attention)|(Conv|MatMul)Integer(ToFloat)?|DynamicQuantize\w+"
)


#: The execution provider that every onnxruntime has.
CPU = "CPUExecutionProvider"
#: What a provider is told where results matter, not time: floats keep their 24 bits, and the same run gives the same.
EXACT = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    "TensorrtExecutionProvider": {"trt_fp16_enable": "0"},
}
#: Optimisers that change values by more than rounding, by onnxruntime's names; it passes over names that it doesn't
#: have. They look for patterns of QuantizeLinear and DequantizeLinear, which a mask between them hides, so that of two
#: equal models only one would be changed: floats are quantised (weights; what a product with 4-bit weights reads), and
#: of two quantisations in a row one goes. The entry `session.disable_quant_qdq` stops only the first two,
#: and has 8-bit weights kept as floats.
INEXACT = frozenset({"WeightBiasQuantization", "QDQSelectorActionTransformer", "DoubleQDQPairsRemover"})


#: A file that is always there.
_HERE = Path(__file__).resolve()


class RunError(ValueError):
    """onnxruntime doesn't take a model, or fails to run it."""


class Unloadable(RunError):
    """onnxruntime doesn't load a model, so that it runs on no inputs."""

    #: What is to be said with it, wherever.
    advice = "no inputs change that"


class Session:
    """An onnxruntime session that keeps the arrays alive which it reads.

    Attributes
    ----------
    outputs : tuple of str
    types : dict
        Output -> onnxruntime's name of its type, such as ``tensor(float)``.
    shapes : dict
        Input -> its sizes; the dynamic ones are no integers.
    """

    def __init__(self, raw: Any, keep: object) -> None:
        self._raw, self._keep = raw, keep
        self.shapes: dict[str, tuple[Any, ...]] = {i.name: tuple(i.shape) for i in raw.get_inputs()}
        self.outputs: tuple[str, ...] = tuple(o.name for o in raw.get_outputs())
        self.types: dict[str, str] = {o.name: str(o.type) for o in raw.get_outputs()}

    def end_profiling(self) -> str:
        """Stop the profiler, and return the path of its file."""
        return str(self._raw.end_profiling())

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the values of outputs (all of them unless named).

        Raises
        ------
        RunError
            If onnxruntime fails.
        """
        wanted = list(names if names is not None else self.outputs)
        if not wanted:  # onnxruntime takes an empty list for all outputs
            return {}
        try:
            with wall.stage("A run of the model in onnxruntime"):
                return dict(zip(wanted, self._raw.run(wanted, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime's errors have no common base but this
            raise RunError(_line(error)) from error


def light_proto(model: Model, wanted: Iterable[str] = ()) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model as a proto whose large weights are external, and those weights.

    Weights of Constant nodes become initializers; what onnxruntime can't take from an array stays in the
    proto. What is wanted is in the main graph.
    """
    data, arrays = model.session_parts(wanted)
    proto = onnx.ModelProto.FromString(data)
    graph = proto.graph
    constants = [n for n in graph.node if n.op_type == "Constant" and n.output and n.output[0] in arrays]
    for node in constants:
        tensor = graph.initializer.add()
        tensor.CopyFrom(next(a.t for a in node.attribute if a.name == "value"))
        tensor.name = node.output[0]
    if constants:
        gone = {n.output[0] for n in constants}
        for i in reversed(range(len(graph.node))):
            if graph.node[i].op_type == "Constant" and graph.node[i].output[0] in gone:
                del graph.node[i]
    for tensor in graph.initializer:
        if tensor.name in arrays and tensor.data_type not in _PLAIN and tensor.data_type not in _VIEWED:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(arrays.pop(name)), name))
    return proto, arrays


def open_session(
    model: Model | onnx.ModelProto | str | os.PathLike[str],
    extra_outputs: Iterable[str] = (),
    threads: int | None = None,
    provider: str = CPU,
    *,
    prepack: bool = False,
    optimise: bool = False,
    profile: str | None = None,
    mode: Mode = "exact",
) -> Session:  # fmt: skip
    """Open a session for a run or two.

    Parameters
    ----------
    model : Model, ModelProto or path
    extra_outputs : iterable of str
        Tensors to be returned besides the graph's outputs, which come first.
    threads : int, optional
        Threads within an op; onnxruntime's default otherwise.
    provider : str
        Execution provider; what it doesn't take runs on the CPU.
    prepack : bool
        Let kernels keep repacked copies of weights. Without them results differ in the last bit, so two
        models are to be compared under the same setting; few kernels need them.
    optimise : bool
        Let onnxruntime optimise the graph; what is ``exact`` without `INEXACT`.
    profile : str, optional
        Where the file of a profile begins, see `Session.end_profiling`.
    mode : str
        ``exact``; ``served``, which leaves sums of u8 times s8 as users have them: they saturate where x86 has no
        VNNI; or ``timed``, which leaves all of onnxruntime's defaults as users have them: threads wait busily between
        ops, which is quicker and in the way of everything else that has threads, numpy's products above all; memory
        that was used stays, and goes with the last output; floats may lose bits (see `EXACT`).

    Raises
    ------
    RunError
        If onnxruntime doesn't take the model; `Unloadable` where it doesn't load.
    """
    wanted = list(dict.fromkeys(extra_outputs))
    try:
        proto, arrays = light_proto(Model.load(model), wanted)
    except ValueError as error:
        raise RunError(str(error)) from error
    known = {v.name for v in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in wanted if n not in known)
    config = _Config(threads, provider, prepack, optimise, profile, mode)
    integers = [n for n in proto.graph.node if _INTEGER.fullmatch(n.op_type)]
    if mode == "exact":
        _unshare(proto.graph, integers, arrays)
    # Only its optimiser makes onnxruntime add up u8 times s8 without saturation where x86 has no VNNI; sums that
    # saturate hang on what stands beside what. Optimisations read weights where the proto says that they are.
    ways = [(_copying, replace(config, optimise=True))] if optimise or (integers and mode == "exact") else []
    if not (optimise and mode == "timed"):  # or what is timed isn't what users have
        plain = replace(config, optimise=False)
        ways += [(_sharing, plain), (_copying, plain)][: 2 if arrays else 1]
    failure: Exception | None = None
    for way, settings in ways:
        try:
            return way(proto, arrays, settings)
        except Exception as error:  # onnxruntime's errors have no common base but this
            failure = error
    raise Unloadable(_line(failure or RuntimeError())) from failure


def _unshare(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], arrays: dict[str, Array]) -> None:
    """Give each of the nodes weights and zero points of 8 bits that no other has.

    What adds up without saturation (see `_Config.options`) writes them anew as u8, node by node, and fails where one
    has been written before.
    """
    tensors = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT8}
    taken: set[str] = set()
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in taken:
                own = graph.initializer.add()
                own.CopyFrom(tensors[name])
                node.input[i] = own.name = f"{name} of {node.output[0]}"
                if name in arrays:
                    arrays[own.name] = arrays[name]
            elif name in tensors:
                taken.add(name)


@dataclass(frozen=True)
class _Config:
    threads: int | None
    provider: str
    prepack: bool
    optimise: bool
    profile: str | None = None
    mode: Mode = "exact"

    def options(self) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self.optimise else level.ORT_DISABLE_ALL
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, self.profile
        if self.mode == "exact":
            options.add_session_config_entry("session.x64quantprecision", "1")
        if self.mode != "timed":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            # each output would keep the whole arena of its session: all activations that were there at once
            options.enable_cpu_mem_arena = False
        if not self.prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        return options

    def session(self, proto: onnx.ModelProto, options: Any) -> Any:
        import onnxruntime as ort

        settings = {} if self.mode == "timed" else EXACT.get(self.provider, {})
        left_out = INEXACT if self.mode == "exact" else frozenset[str]()
        with wall.stage("Loading the model into onnxruntime"):
            session = ort.InferenceSession(
                proto.SerializeToString(),
                options,
                providers=[(self.provider, settings)],
                enable_fallback=0,
                disabled_optimizers=set(left_out),
            )
        if self.provider not in session.get_providers():  # onnxruntime goes on without it
            raise RunError(f"onnxruntime can't start {self.provider} on this machine")
        return session


def provider_of(name: str, option: str = "--provider") -> str:
    """Return onnxruntime's name of a provider that starts on this machine.

    Parameters
    ----------
    name : str
        Such as ``"cuda"``.
    option : str
        That named it, for the error.

    Raises
    ------
    UsageError
        If this onnxruntime doesn't have it, or it doesn't start; the sentence lists those that it has.
    """
    import onnxruntime as ort

    known: list[str] = ort.get_available_providers()
    short = {p.removesuffix("ExecutionProvider").lower(): p for p in known}
    provider = short.get(name.lower().removesuffix("executionprovider"))
    if provider is None:
        raise UsageError(f"{option} {name!r} isn't in this onnxruntime; it has {', '.join(sorted(short))}.")
    if provider == CPU:
        return provider
    value = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.ValueInfoProto(name="y")])
    opset = [onnx.helper.make_opsetid("", 13)]
    try:
        _Config(None, provider, False, False).session(
            onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), ort.SessionOptions()
        )
    except Exception as error:
        raise UsageError(
            f"{option} {name!r} doesn't start on this machine; onnxruntime says why above. Install what it needs, or "
            "take another."
        ) from error
    return provider


def _sharing(proto: onnx.ModelProto, arrays: Mapping[str, Array], config: _Config) -> Session:
    """Open a session that reads the arrays in place."""
    options = config.options()
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    values = []
    for tensor in light.graph.initializer:
        if tensor.name in arrays:
            values.append(_value(arrays[tensor.name], tensor.data_type))
            options.add_initializer(tensor.name, values[-1])
            point(tensor, _HERE.name)
    # onnxruntime looks whether the external data exists, but doesn't read what it has been given
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(_HERE.parent)
    )
    return Session(config.session(light, options), values)


def _copying(proto: onnx.ModelProto, arrays: Mapping[str, Array], config: _Config) -> Session:
    """Open a session with weights of its own."""
    options = config.options()
    kinds = {t.name: t.data_type for t in proto.graph.initializer if t.name in arrays}
    values = [_value(arrays[name], kind) for name, kind in kinds.items()]
    if values:
        options.add_external_initializers(list(kinds), values)
    return Session(config.session(proto, options), values)


def _value(array: Array, kind: int) -> Any:
    import onnxruntime as ort

    array = np.ascontiguousarray(array)
    if kind in _PLAIN:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(_VIEWED[kind]), kind)


def _line(error: Exception) -> str:
    """Return the sentence in an error of onnxruntime, without its full stop: it is put into others."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    return " ".join(text.split())[:300].rstrip(".")
