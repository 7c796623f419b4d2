"""A checkpoint from elsewhere, opened without running anything in it: safetensors, or what ``torch.save`` wrote. Which
of them it is, its content tells, whatever its name.

Trainers save more than weights: scores as NumPy scalars, settings as objects of their own, times, paths. None of that
is needed here, so each of the usual kinds is read as a stand-in that ignores what it is given: neither NumPy nor any
trainer's code is called. A pickle that asks for anything else is refused.
"""

from __future__ import annotations

import codecs
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import islice
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
    *(f"builtins.{name}" for name in ("frozenset", "slice", "range", "Ellipsis")),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "uuid.SafeUUID", "functools.partial", "random.Random"),
    *("torch.torch_version.TorchVersion", "torch._C.Generator"),
    *("types.SimpleNamespace", "argparse.Namespace", "typing.Any", "mmengine.logging.history_buffer.HistoryBuffer"),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
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

LISTS = ("collections.deque",)
"""Read as plain lists."""

FAMILIES = (
    *(f"torch.{name}." for name in ("nn", "optim", "return_types", "distributions", "utils.data", "amp", "cuda.amp")),
    *("numpy.", "torchvision.transforms.", "omegaconf."),
)
"""Beginnings of names of which all usually stand beside the weights: losses, optimisers, schedulers, generators."""

ZIPPED, MAGIC, OLDEST = b"PK\x03\x04", b"l\xfc\x9cF\xf9 j\xa8P\x19", b"L119547037146038801333356L"
"""What a file by ``torch.save`` begins with: an archive or, in the older format, a number, pickled."""

MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, as its library limits them."""

PLAIN = "a plain pickle; open it where you trust it, and save the network's state_dict with torch.save"
LOOKS = (
    (b"version https://git-lfs", "a Git LFS pointer to the weights; run git lfs pull where it came from"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; save the network's state_dict with torch.save"),
    (b"\x93NUMPY", "a NumPy array; save the network's state_dict with torch.save"),
    (b"GGUF", "a GGUF file; save the network's state_dict with torch.save"),
    (b"%PDF", "a PDF document; fetch the weights themselves"),
    *((bytes((0x80, protocol)), PLAIN) for protocol in range(2, 6)),
)
"""What other files begin with, what they are and what to do."""

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


class _List:
    """Stands for another kind of list, and makes a plain one."""

    def __new__(cls, *_: Any, **__: Any) -> list[Any]:  # type: ignore[misc]
        """Ignore the arguments; items come later."""
        return []


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
    try:
        safe = _is_safetensors(path)
        loaded = _read_safetensors(path) if safe else _read_pickle(path)
    except BackboneError:
        raise
    except MemoryError as error:
        raise BackboneError(f"can't read weights {path}: there is too little memory for them") from error
    except OSError as error:
        raise BackboneError(
            f"can't read weights {path}: {error.strerror or 'the file is damaged or cut off'}"
        ) from error
    except pickle.UnpicklingError as error:
        raise BackboneError(f"can't read weights {path}: {_why(path)}") from error
    except Exception as error:  # safetensors and torch raise many errors; all mean the same to the user
        raise BackboneError(f"can't read weights {path}: {_damage(path, safe, error)}") from error
    if isinstance(loaded, _Aside) and _name(loaded).startswith("torch."):
        raise BackboneError(f"can't read weights {path}: {_whole(loaded)}")
    if not isinstance(loaded, Mapping):
        raise BackboneError(
            f"{path} is not a dictionary of tensors but a {shown(type(loaded).__name__):.60}; save a network's "
            "state_dict there"
        )
    return loaded


def _is_safetensors(path: Path) -> bool:
    """Tell safetensors from what torch.save wrote; raises BackboneError if it is neither, and OSError."""
    with path.open("rb") as file:
        start = file.read(512)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
        return True
    if start.startswith((ZIPPED, OLDEST)) or (start.startswith(b"\x80") and MAGIC in start[:32]):
        return False
    raise BackboneError(f"{path} is no checkpoint but {_look(start, path.suffix.lower())}")


def _look(start: bytes, suffix: str) -> str:
    """Say what a file that begins like this seems to be, and what to do."""
    page = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))
    graph = start[:1] == b"\x08" and 1 <= int.from_bytes(start[1:2], "big") <= 32 and start[2:3] in b"\x12\x1a\x3a\x42"
    kind = "safetensors" if suffix == ".safetensors" else "torch.save"
    looks = (
        (not start, "empty; fetch it again"),
        *((start.startswith(beginning), what) for beginning, what in LOOKS),
        (page, "a web page; fetch the file that it links to"),
        (
            start[257:262] == b"ustar",
            "a tar archive; unpack it, or load it with the torch that wrote it and save it again",
        ),
        (graph or suffix == ".onnx", "an ONNX graph; name it as model.backbone=onnx:PATH, without model.weights"),
        (_is_text(start), "a text; fetch the weights themselves"),
        (True, f"damaged, cut off, or not written by {kind}; fetch it again, or save a network's state_dict there"),
    )
    return next(what for fits, what in looks if fits)


def _is_text(start: bytes) -> bool:
    """Whether these bytes begin a text in UTF-8, which may end within a letter."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return all(byte >= 32 or byte in b"\t\n\r" for byte in start)


def _damage(path: Path, safe: bool, error: Exception) -> str:
    """Say why a file that begins as it should can't be read, and what to do."""
    if safe:
        return "it is damaged, cut off, or no safetensors file; fetch it again, or save a state_dict there"
    if "TorchScript" in str(error):
        return (
            "it is a TorchScript archive, which is code; load it with torch.jit.load where you trust it, and save only "
            "its state_dict()"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # no archive, or a damaged one
        names = ["data.pkl"]
    if all(name.endswith(".npy") for name in names):
        return "it holds NumPy arrays; save the network's state_dict with torch.save"
    if not any(name.endswith("data.pkl") for name in names):
        return "it is an archive that torch.save did not write; unpack it"
    return "it is damaged, cut off, or nothing that torch.save wrote; fetch it again, or save a state_dict there"


def _read_safetensors(path: Path) -> Mapping[object, object]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _read_pickle(path: Path) -> Any:
    """Read what torch.save wrote, with stand-ins for what is known; raises what torch does."""
    try:
        return _unpickled(path)
    except pickle.UnpicklingError:
        needed = _foreign(path)
        if not needed or not all(name.startswith(FAMILIES) for name in needed):
            raise
        return _unpickled(path, needed)


def _unpickled(path: Path, more: Collection[str] = ()) -> Any:
    stands = [
        _stand(name, kind)
        for names, kind in ((ASIDE, _Aside), (DICTIONARIES, _Dictionary), (LISTS, _List), (more, _Aside))
        for name in set(names)
    ]
    with torch.serialization.safe_globals(stands), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # of older formats, to whoever wrote the file
        with path.open("rb") as file:  # by its path, torch would go by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)


def _foreign(path: Path) -> list[str]:
    """Return the names that a pickle asks for and that have no stand-in, or none if that can't be told."""
    try:
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # an older format, or damaged
        needed = _older_names(path)
    return sorted(set(needed) - {*ASIDE, *DICTIONARIES, *LISTS})


def _older_names(path: Path) -> list[str]:
    """Likewise in the older format, whose fourth pickle is the content."""
    from torch import _weights_only_unpickler as torchs

    try:
        with path.open("rb") as file:
            for _ in range(3):
                torchs.get_globals_in_pkl(file)
            return list(torchs.get_globals_in_pkl(file) - set(torchs._get_allowed_globals()))
    except Exception:  # damaged, or another torch
        return []


def _name(aside: _Aside) -> str:
    return f"{type(aside).__module__}.{type(aside).__qualname__}"


def _whole(aside: _Aside) -> str:
    return f"it is a whole pickled {shown(_name(aside)[:80])}, which only its code could restore; {HOW}"


def _stand(full: str, kind: type) -> type:
    """Make a class that answers to a name in a pickle."""
    module, _, name = full.rpartition(".")
    return type(name, (kind,), {"__module__": module, "__qualname__": name})


def _why(path: Path) -> str:
    """Say what a pickle that was refused asks for and, if that can be had without running it, which keys it has."""
    foreign = _foreign(path)
    if not foreign:
        return f"its pickle asks for more than tensors and plain values; {HOW}"
    names = ", ".join(shown(name[:60]) for name in foreign[:3]) + (
        f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    )
    try:
        held = _unpickled(path, foreign)
    except Exception:  # what can't even be read so has no keys to tell
        held = {}
    if isinstance(held, _Aside):
        return _whole(held)
    found = f" Its keys are {listed(held, 6)}." if isinstance(held, Mapping) and held else ""
    return f"beside tensors its pickle asks for code that is not run here ({names}); {HOW}.{found}"


def listed(keys: Collection[object], most: int = 3) -> str:
    """Name a few keys of a checkpoint, harmlessly, and say how many more there are."""
    names = [shown(key_text(key)) for key in islice(keys, most)]
    return ", ".join(names) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def key_text(key: object) -> str:
    """Return a short text for a key, which may be anything that a pickle can hold, of any size."""
    if isinstance(key, str):
        return key[:60]
    return str(key) if isinstance(key, int | float) and abs(key) < 2**64 else type(key).__name__[:60]
