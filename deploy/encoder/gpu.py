"""Identify the NVIDIA GPU by asking the driver itself, which needs no torch and no nvidia-smi and also works on a
Jetson.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any, NamedTuple

from domains.errors import DeviceError

DRIVER = "libcuda.so.1"
TENSORRT = ("libnvinfer.so.8", "libnvinfer.so.10", "libnvinfer.so.11")
RELEASES = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")
"""Files that state the driver's release, on a PC and on a Jetson."""

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class Gpu(NamedTuple):
    """Name, compute capability (``8.7``) and driver release: a TensorRT engine works with no others."""

    name: str
    capability: str
    driver: str


def describe(index: int) -> Gpu:
    """Ask the CUDA driver for GPU ``index``, counted as CUDA counts them (``CUDA_VISIBLE_DEVICES`` applies).

    Raises:
        DeviceError: there is no driver, or no such GPU.
    """
    try:
        cuda: Any = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise DeviceError(f"there is no NVIDIA driver here ({error}); install it, or use cpu") from error
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    steps = (
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDeviceGet", (ctypes.byref(device), ctypes.c_int(index))),
        ("cuDeviceGetName", (name, ctypes.c_int(len(name)), device)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), ctypes.c_int(_CAPABILITY_MAJOR), device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), ctypes.c_int(_CAPABILITY_MINOR), device)),
        ("cuDriverGetVersion", (ctypes.byref(version),)),
    )
    for call, arguments in steps:
        status = getattr(cuda, call)(*arguments)
        if status:
            raise DeviceError(
                f"the NVIDIA driver has no GPU {index} ({call} returned {status}); choose another with cuda:N, or use "
                "cpu"
            )
    release = next(
        (Path(file).read_text("utf-8", "replace").splitlines()[0] for file in RELEASES if Path(file).is_file()), ""
    )
    return Gpu(
        name.value.decode("utf-8", "replace"),
        f"{major.value}.{minor.value}",
        f"CUDA {version.value}; {release}".rstrip("; "),
    )


def tensorrt_version() -> str:
    """Return the versions of all TensorRT libraries that can be loaded (ONNX Runtime does not say which it uses), or
    ``none``.
    """
    versions = []
    for name in TENSORRT:
        with contextlib.suppress(OSError):  # not installed
            versions.append(str(ctypes.CDLL(name).getInferLibVersion()))
    return "+".join(versions) or "none"
