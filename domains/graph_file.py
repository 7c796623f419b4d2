"""An ONNX graph is one file: what its bytes may ask for is checked before anything opens them.

Whoever hashes a graph's file has hashed all that runs. So weights kept in other files are refused, and so is whatever
else would load or run more than the graph shows: operators of other domains, which only foreign libraries implement;
operators that load a compiled engine or call an interpreter; functions, which can unfold without bound; training
graphs; and a model's own settings for its engine. The file's messages are walked as protobuf's wire format has them,
without the onnx package; whatever the walk does not understand is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from domains.artefact import read_bytes
from domains.errors import ArtefactError

MAX_GRAPH = 2**31 - 1
MAX_FIELDS = 4_000_000
"""Fields of the messages that are walked; weights are passed over whole, and a large network has some 100,000."""
MAX_DEPTH = 8
"""Graphs within graphs."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
LOADING = frozenset({"EPContext", "Snpe", "PythonOp", "PythonOpGrad", "PyOp", "ATen", "ATenOp", "TensorRTEngine"})
"""Operators that load a compiled engine, or call code outside the runtime."""
SETTINGS = "ort_config"
COMPILED = b"ORTM"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 14, 20, 25
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14

_PARTS: Mapping[str, Mapping[int, str]] = {
    "model": {_MODEL_GRAPH: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""By message, its fields that hold further messages to walk."""


class _Field(NamedTuple):
    """One field: its number and kind, and where its bytes are; for a varint, its value."""

    number: int
    kind: int
    start: int
    end: int
    value: int


def read_graph(path: Path) -> bytes:
    """Read an ONNX file and check that it is all there is; raises ArtefactError."""
    data = read_bytes(path, MAX_GRAPH)
    check_graph(data, path.name)
    return data


def check_graph(data: bytes, name: str) -> None:
    """Check that an ONNX graph is complete in itself.

    Args:
        data: the whole file.
        name: what it is called in messages.

    Raises:
        ArtefactError: it is not an ONNX graph, keeps weights in other files, or asks for something that would load or
            run more than the graph shows.
    """
    if data[4:8] == COMPILED:  # what the runtime itself looks at to tell its own format
        raise ArtefactError(f"{name} is in ONNX Runtime's own format, not an ONNX graph; export it again")
    try:
        if _Walk(data).whole("model", 0, len(data), 0) == 0:
            raise ValueError("it holds no graph")
    except _OtherError as error:
        raise ArtefactError(
            f"{name} {error}; only a graph that is complete in one file is opened{error.how}"
        ) from error
    except ValueError as error:
        raise ArtefactError(f"can't load {name} as an ONNX graph: {error}; export it again") from error


class _OtherError(Exception):
    """The graph asks for something outside itself; continues a sentence that begins with its name."""

    how = ""
    """How to get a graph that does not; ends the sentence."""


class _OtherFileError(_OtherError):
    """It keeps weights in another file."""

    how = ": torch.onnx.export(dynamo=True) writes two by default, and one with external_data=False"


class _Walk:
    """A walk through one model's messages; ValueError where they are not protobuf's."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left = MAX_FIELDS

    def whole(self, kind: str, start: int, end: int, depth: int) -> int:
        """Walk a message and all within it; return how many messages it holds that are walked."""
        parts, count = _PARTS[kind], 0
        for field in self._fields(start, end):
            self._check(kind, field)
            inner = parts.get(field.number)
            if inner is None:
                continue
            if field.kind != _BYTES:
                raise ValueError(f"a {inner} is not a message")
            if inner == "graph" and depth >= MAX_DEPTH:
                raise _OtherError(f"nests graphs more than {MAX_DEPTH} deep")
            count += 1
            self.whole(inner, field.start, field.end, depth + (inner == "graph"))
        return count

    def _check(self, kind: str, field: _Field) -> None:
        if kind == "tensor" and field.number == _TENSOR_EXTERNAL:
            raise _OtherFileError(f"keeps weights in another file{self._location(field)}")
        if kind == "tensor" and field.number == _TENSOR_LOCATION and (field.kind != _VARINT or field.value):
            raise _OtherFileError("keeps weights in another file")
        if kind == "node" and field.number == _NODE_DOMAIN and (domain := self._text(field)) not in DOMAINS:
            raise _OtherError(f"has operators of the domain {domain!r:.80}, which is not part of ONNX Runtime")
        if kind == "node" and field.number == _NODE_OPERATOR and (operator := self._text(field)) in LOADING:
            raise _OtherError(f"has the operator {operator}, which loads or calls code outside the graph")
        if kind == "model" and field.number == _MODEL_FUNCTIONS:
            raise _OtherError("defines functions of its own")
        if kind == "model" and field.number == _MODEL_TRAINING:
            raise _OtherError("carries graphs for training")
        if kind == "model" and field.number == _MODEL_METADATA and self._entry(field)[0] == SETTINGS:
            raise _OtherError("carries settings for its engine")

    def _location(self, field: _Field) -> str:
        """Name the other file, if this entry does."""
        key, value = self._entry(field)
        return f", {value!r:.80}" if key == "location" else ""

    def _entry(self, field: _Field) -> tuple[str, str]:
        """Return a message's key and value."""
        texts = {1: "", 2: ""}
        for part in self._fields(field.start, field.end) if field.kind == _BYTES else ():
            if part.number in texts:
                texts[part.number] = self._text(part)
        return texts[1], texts[2]

    def _text(self, field: _Field) -> str:
        if field.kind != _BYTES:
            raise ValueError("a name is not a text")
        return self._data[field.start : min(field.end, field.start + 256)].decode("utf-8", "backslashreplace")

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        """Yield the fields of the message in these bytes."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, end)
            number, kind, value = tag >> 3, tag & 7, 0
            if not 1 <= number < 2**29:
                raise ValueError("a field has no valid number")
            if kind == _VARINT:
                value, after = self._varint(position, end)
            elif kind == _BYTES:
                size, position = self._varint(position, end)
                after = position + size
            elif kind in (_FIXED64, _FIXED32):
                after = position + (8 if kind == _FIXED64 else 4)
            else:
                raise ValueError(f"a field has the kind {kind}")
            if after > end:
                raise ValueError("it ends in the middle of a field")
            yield _Field(number, kind, position, after, value)
            position = after

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Return an integer of at most ten bytes, and the position after it."""
        value = 0
        for count in range(10):
            if position >= end:
                raise ValueError("it ends in the middle of a number")
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << (7 * count)
            if byte < 0x80:
                return value, position
        raise ValueError("a number is longer than ten bytes")
