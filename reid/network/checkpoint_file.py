"""A checkpoint from elsewhere, opened without running anything in it: ``.safetensors``, or what ``torch.save`` wrote.

Trainers save more than weights: scores as NumPy scalars, settings as objects of their own, times, paths. None of that
is needed here, so each of the usual kinds is read as a stand-in that ignores what it is given: neither NumPy nor any
trainer's code is called. A pickle that asks for anything else is refused.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from domains.errors import BackboneError
from domains.text import shown

_NUMPY_TYPES = (
    *(f"{sign}{kind}" for sign in ("", "U") for kind in ("Int8", "Int16", "Int32", "Int64", "LongLong")),
    *("Bool", "Float16", "Float32", "Float64", "LongDouble", "Complex64", "Complex128", "Str", "Bytes", "Object"),
)
ASIDE = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", *(f"numpy.dtypes.{name}DType" for name in _NUMPY_TYPES)),
    *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple")),
    *("types.SimpleNamespace", "argparse.Namespace", "typing.Any", "mmengine.logging.history_buffer.HistoryBuffer"),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta")),
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
)
"""What usually stands beside the weights, by its full name in a pickle."""

DICTIONARIES = (
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    *("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "fastreid.config.config.CfgNode"),
    *("easydict.EasyDict", "addict.addict.Dict", "mmengine.config.config.ConfigDict"),
)
"""Dictionaries of trainers' own, which are read as plain ones: some hold the weights."""

HOW = "open it where you trust it, and save only the network's state_dict()"


class _Aside:
    """Stands for an object beside the weights, and ignores its arguments and its state."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore them."""

    def __new__(cls, *_: Any, **__: Any) -> _Aside:
        """Ignore them."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore it."""


class _Dictionary:
    """Stands for another kind of dictionary, and makes a plain one."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Ignore the arguments; items come later."""
        return OrderedDict()


def read_checkpoint(path: Path) -> Mapping[object, object]:
    """Return what a file of weights holds, as nested dictionaries; tensors are on the CPU.

    Raises:
        BackboneError: there is no such file, it is damaged, or its pickle needs code; the message says what was found.
    """
    if not path.is_file():
        raise BackboneError(f"no weights file {path}; model.weights takes none, timm or a path to .safetensors or .pth")
    safe = path.suffix == ".safetensors"
    try:
        loaded = _read_safetensors(path) if safe else _read_pickle(path)
    except MemoryError as error:
        raise BackboneError(f"can't read weights {path}: there is too little memory for them") from error
    except OSError as error:
        raise BackboneError(
            f"can't read weights {path}: {error.strerror or 'the file is damaged or cut off'}"
        ) from error
    except pickle.UnpicklingError as error:
        raise BackboneError(f"can't read weights {path}: {_why(path, error)}") from error
    except Exception as error:  # safetensors and torch raise many errors; all mean the same to the user
        if not safe and "TorchScript" in str(error):
            why = (
                "it is a TorchScript archive, which is code; load it with torch.jit.load where you trust it, and save "
            )
            raise BackboneError(f"can't read weights {path}: {why}only its state_dict()") from error
        kind = "no safetensors file" if safe else "nothing that torch.save wrote"
        raise BackboneError(
            f"can't read weights {path}: it is damaged, cut off, or {kind}; fetch it again, or save a state_dict there"
        ) from error
    if not isinstance(loaded, Mapping):
        raise BackboneError(
            f"{path} is not a dictionary of tensors but a {shown(type(loaded).__name__):.60}; save a network's "
            "state_dict there"
        )
    return loaded


def _read_safetensors(path: Path) -> Mapping[object, object]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _read_pickle(path: Path, more: Collection[str] = ()) -> Any:
    stands = [_stand(name, _Dictionary if name in DICTIONARIES else _Aside) for name in {*ASIDE, *DICTIONARIES, *more}]
    with torch.serialization.safe_globals(stands), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # of older formats, to whoever wrote the file
        return torch.load(path, map_location="cpu", weights_only=True)


def _stand(full: str, kind: type) -> type:
    """Make a class that answers to a name in a pickle."""
    module, _, name = full.rpartition(".")
    return type(name, (kind,), {"__module__": module, "__qualname__": name})


def _why(path: Path, error: Exception) -> str:
    """Say what a pickle that was refused asks for and, if that can be had without running it, which keys it has."""
    try:
        needed = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # an older format, or damaged: there is nothing more to say
        needed = []
    foreign = [name for name in needed if name not in ASIDE and name not in DICTIONARIES]
    if not foreign:
        return f"its pickle asks for more than tensors and plain values; {HOW}"
    names = ", ".join(shown(name[:60]) for name in foreign[:3]) + (
        f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    )
    try:
        held = _read_pickle(path, needed)
    except Exception:  # likewise
        held = {}
    if isinstance(held, _Aside):
        kind = f"{type(held).__module__}.{type(held).__qualname__}"
        return f"it is a whole pickled {shown(kind[:80])}, which only its code could restore; {HOW}"
    keys = [str(key) for key in held] if isinstance(held, Mapping) else []
    listed = f" Its keys are {', '.join(shown(key[:40]) for key in keys[:6])}." if keys else ""
    return f"beside tensors its pickle asks for code that is not run here ({names}); {HOW}.{listed}"
