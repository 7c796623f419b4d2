"""ONNX Runtime, started on the requested provider or not at all.

ONNX Runtime itself falls back: without a driver a CUDA session becomes a CPU session with a warning, and nodes that
TensorRT can't run go to CUDA or the CPU one by one. So three things are checked before an engine is handed out: that
this build has the provider, that the session reports it, and, by a profiled inference, that no convolution or matrix
product of the graph was computed elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.encoder import gpu
from deploy.encoder.engine_cache import EngineCache
from domains.arrays import Float32s
from domains.errors import ArtefactError, DeviceError, UsageError
from domains.graph_file import check_graph

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
OPENVINO_DEVICES = ("CPU", "GPU", "NPU")
HEAVY = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "GRU")
"""Parts of the names of operators that do a graph's real work; shape arithmetic may run wherever the engine prefers."""

SMALLEST_BATCH = 1


class Target(NamedTuple):
    """A provider and one of its devices: ``cuda:1`` is GPU 1, ``openvino:GPU`` an Intel GPU."""

    name: str
    device: str

    @classmethod
    def parse(cls, provider: str) -> Target:
        """Read ``cpu``, ``cuda``, ``cuda:N``, ``tensorrt``, ``tensorrt:N``, ``openvino`` or ``openvino:CPU|GPU|NPU``;
        raises UsageError.
        """
        name, colon, device = provider.partition(":") if isinstance(provider, str) else (provider, "", "")
        if name not in PROVIDERS:
            raise UsageError(f"unknown provider {provider!r}; choose one of {', '.join(PROVIDERS)}")
        if name == "openvino":
            fits = device.upper() in OPENVINO_DEVICES
            device = device.upper() if colon else "CPU"
        else:
            fits = name != "cpu" and device.isascii() and device.isdigit() and len(device) <= 3
            device = device if colon else "0"
        if colon and not fits:
            raise UsageError(
                f"provider {provider!r} has an unknown device; name a GPU by its number, as in cuda:1, and an OpenVINO "
                "device as in openvino:GPU"
            )
        return cls(name, device)

    @property
    def engine(self) -> str:
        """ONNX Runtime's name for it."""
        return PROVIDERS[self.name]


@dataclass(frozen=True)
class Plan:
    """What an engine must be able to do.

    Attributes:
        height: rows of its crops.
        width: columns of its crops.
        dim: length of its embeddings.
        batch: maximum number of crops per inference.
        precision: the bundle's precision; ``fp16`` and ``int8`` let TensorRT compute in it.
        threads: threads of a CPU engine; by default all cores that this process may use.
    """

    height: int
    width: int
    dim: int
    batch: int = 32
    precision: str = "fp32"
    threads: int | None = None


class Engine:
    """A started graph: uint8 ``[n, H, W, 3]`` in, float32 ``[n, D]`` out, for ``n`` up to the plan's batch.

    Safe to call from several threads. On a GPU each batch is uploaded once and its vectors are downloaded once, from
    memory allocated at the start; calls run one at a time there, as the device would run them anyway.

    Attributes:
        provider: the provider, as requested.
        session: ONNX Runtime's session.
        elsewhere: operators computed by another provider, with its name; none of them is :data:`HEAVY`.
    """

    def __init__(self, session: Any, provider: str, plan: Plan, binding: Binding | None = None) -> None:
        """Use :func:`start`."""
        self.session, self.provider, self.plan = session, provider, plan
        self.elsewhere: Mapping[str, str] = {}
        self._binding = binding

    def __call__(self, crops: NDArray[np.uint8]) -> Float32s:
        """Run the graph; its output is returned unchecked.

        Raises:
            DeviceError: the engine failed, for example because it ran out of memory.
        """
        try:
            out: Float32s = (
                self.session.run(["embeddings"], {"crops": crops})[0]
                if self._binding is None
                else self._binding.run(crops)
            )
        except Exception as error:  # ONNX Runtime raises one class per status, with no common base but Exception
            raise DeviceError(
                f"{self.provider} failed on a batch of {len(crops)}: {_reason(error)}; a smaller batch needs less "
                "memory"
            ) from error
        return out


class Binding:
    """Input and output of a session on a device; vectors are written into memory allocated once."""

    def __init__(self, onnxruntime: Any, session: Any, plan: Plan, device: str, index: int) -> None:
        """Allocate output memory for a full batch."""
        self._session, self._dim, self._device, self._index = session, plan.dim, device, index
        self._output = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            [plan.batch, plan.dim], np.float32, device, index
        )
        self._binding = session.io_binding()
        self._lock = threading.Lock()

    def run(self, crops: NDArray[np.uint8]) -> Float32s:
        """Upload once, compute, download once."""
        with self._lock:
            self._binding.bind_cpu_input("crops", crops)
            self._binding.bind_output(
                "embeddings", self._device, self._index, np.float32, [len(crops), self._dim], self._output.data_ptr()
            )
            self._session.run_with_iobinding(self._binding)
            return self._binding.copy_outputs_to_cpu()[0]  # type: ignore[no-any-return]


def start(model: bytes, provider: str, plan: Plan, *, name: str = "the graph", cache: Path | None = None) -> Engine:
    """Start an engine.

    Args:
        model: the ONNX graph.
        provider: see :meth:`Target.parse`.
        plan: what it must be able to do.
        name: what the graph is called in messages.
        cache: folder of TensorRT's engines. Missing ones are built there, which takes minutes.

    Raises:
        UsageError: unknown provider.
        DeviceError: the engine is not installed, or would not run the graph on the requested provider.
        ArtefactError: the graph can't be read, is not complete in one file, or breaks the contract of
            :mod:`deploy.bundle.bundle`.
    """
    target = Target.parse(provider)
    check_graph(model, name)
    onnxruntime = _runtime(target)
    if target.name != "tensorrt" or cache is None:
        return _start(onnxruntime, model, target, provider, plan, name, None)
    engines = EngineCache(cache, engine_facts(onnxruntime.__version__, target, plan, model))
    if not engines.ready():
        with engines.building() as folder:
            _start(onnxruntime, model, target, provider, plan, name, folder)
    engine = _start(onnxruntime, model, target, provider, plan, name, engines.folder)
    engines.check_untouched()
    return engine


def engine_facts(runtime: str, target: Target, plan: Plan, model: bytes) -> dict[str, str | int]:
    """Return everything a TensorRT engine depends on (of a bundle only the graph, as its thresholds may change); raises
    DeviceError if there is no such GPU.
    """
    card = gpu.describe(int(target.device))
    return {
        "model": hashlib.sha256(model).hexdigest(),
        "batch": plan.batch,
        "precision": plan.precision,
        "gpu": card.name,
        "capability": card.capability,
        "driver": card.driver,
        "tensorrt": gpu.tensorrt_version(),
        "onnxruntime": runtime,
    }


def provider_options(target: Target, plan: Plan, folder: Path | None) -> list[tuple[str, dict[str, str]]]:
    """Providers in ONNX Runtime's order of preference, with their options."""
    cuda = {
        "device_id": target.device,
        "cudnn_conv_algo_search": "HEURISTIC",  # the default, EXHAUSTIVE, searches again for every new batch size
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles the memory whenever it grows
    }
    if target.name == "cuda":
        return [(target.engine, cuda)]
    if target.name == "openvino":
        threads = {} if plan.threads is None else {"num_of_threads": str(plan.threads)}
        return [(target.engine, {"device_type": target.device, **threads})]
    if target.name == "cpu":
        return [(target.engine, {})]
    sizes = {"min": SMALLEST_BATCH, "opt": plan.batch, "max": plan.batch}
    profile = {
        f"trt_profile_{which}_shapes": f"crops:{size}x{plan.height}x{plan.width}x3" for which, size in sizes.items()
    }
    precision = {f"trt_{kind}_enable": str(plan.precision == kind) for kind in ("fp16", "int8")}
    caching = {} if folder is None else {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder)}
    return [(target.engine, {"device_id": target.device, **profile, **precision, **caching}), (PROVIDERS["cuda"], cuda)]


def _runtime(target: Target) -> Any:
    """ONNX Runtime, if it has this provider; raises DeviceError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            "ONNX Runtime is not installed: pip install 'lifelong-reid[cpu]', or [gpu] for CUDA and TensorRT"
        ) from error
    if target.name in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for results
            onnxruntime.preload_dlls()  # CUDA and cuDNN where pip has put them
    available = onnxruntime.get_available_providers()
    if target.engine not in available:
        known = ", ".join(name for name, engine in PROVIDERS.items() if engine in available) or "none"
        raise DeviceError(
            f"provider {target.name} is not in this ONNX Runtime, which has: {known}; install a build that has it, or "
            "choose another. Two builds in one environment hide each other: reid doctor shows it"
        )
    return onnxruntime


def _start(
    onnxruntime: Any, model: bytes, target: Target, provider: str, plan: Plan, name: str, folder: Path | None
) -> Engine:
    """Start one session and check it as the module's docstring describes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    threads = plan.threads or cores_granted()
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory(prefix="reid-") as scratch:
        probed = target.name != "cpu"
        if probed:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(scratch) / "profile")
        try:
            session = onnxruntime.InferenceSession(
                model, options, providers=provider_options(target, plan, folder), enable_fallback=0
            )
        except Exception as error:  # as in Engine.__call__
            kind = ArtefactError if target.name == "cpu" else DeviceError
            raise kind(f"ONNX Runtime can't load {name} on {provider}: {_reason(error)}") from error
        running = session.get_providers()
        if not running or running[0] != target.engine:
            actual = running[0] if running else "nothing"
            raise DeviceError(
                f"asked for {provider}, but ONNX Runtime would run on {actual}; check the driver and its libraries, or "
                "use cpu"
            )
        check_contract(session, plan, name)
        on_gpu = target.name in ("cuda", "tensorrt")
        engine = Engine(
            session, provider, plan, Binding(onnxruntime, session, plan, "cuda", int(target.device)) if on_gpu else None
        )
        if probed:
            engine(np.zeros((SMALLEST_BATCH, plan.height, plan.width, 3), np.uint8))
            engine.elsewhere = check_placement(Path(session.end_profiling()), target)
    return engine


def cores_granted(group: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Cores granted by a container's CPU quota, None without one. ONNX Runtime ignores the quota, so its threads would
    get in each other's way.
    """
    try:
        quota, period = group.read_text("ascii").split()
    except (OSError, ValueError):
        return None  # no control group v2, so no quota
    return None if quota == "max" else max(1, min(int(quota) // int(period), len(os.sched_getaffinity(0))))


def check_placement(profile: Path, target: Target) -> dict[str, str]:
    """Read from ONNX Runtime's profile which provider computed what.

    Returns:
        Operators computed by another provider, with its name.

    Raises:
        DeviceError: one of them is :data:`HEAVY`, the requested provider computed nothing, or the profile can't be
            read.
    """
    try:
        events = [
            event["args"]
            for event in json.loads(profile.read_bytes())
            if event.get("cat") == "Node" and "provider" in event.get("args", {})
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DeviceError(
            f"can't tell what runs on {target.name}: ONNX Runtime's profile can't be read: {error}"
        ) from error
    computed = [(str(event.get("op_name")), str(event["provider"])) for event in events]
    if not any(engine == target.engine for _, engine in computed):
        raise DeviceError(f"{target.name} computes nothing in this graph; use cpu, or update the engine")
    elsewhere = {operator: engine for operator, engine in computed if engine != target.engine}
    heavy = [(operator, engine) for operator, engine in elsewhere.items() if any(word in operator for word in HEAVY)]
    if heavy:
        raise DeviceError(
            f"{target.name} leaves {heavy[0][0]} to {heavy[0][1]} ({len(heavy)} such operators); use that provider, "
            "or export in another precision"
        )
    return elsewhere


def check_contract(session: Any, plan: Plan, name: str) -> None:
    """Check a graph against the contract of :mod:`deploy.bundle.bundle`; raises ArtefactError."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [(node.name, node.type) for node in inputs] != [("crops", "tensor(uint8)")]:
        raise ArtefactError(
            f"{name} must take one input, uint8 crops; it takes {', '.join(f'{n.type} {n.name}' for n in inputs):.200}"
        )
    if [(node.name, node.type) for node in outputs] != [("embeddings", "tensor(float)")]:
        raise ArtefactError(
            f"{name} must return one output, float embeddings; it returns "
            f"{', '.join(f'{n.type} {n.name}' for n in outputs):.200}"
        )
    for node, row in ((inputs[0], [plan.height, plan.width, 3]), (outputs[0], [plan.dim])):
        shape = list(node.shape)
        fits = len(shape) == len(row) + 1 and all(
            not isinstance(side, int) or side == size for side, size in zip(shape[1:], row, strict=True)
        )
        if not fits or isinstance(shape[0], int):
            raise ArtefactError(
                f"{name}: {node.name} has shape {shape}, expected {['N', *row]} with N dynamic; export it again"
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
