"""The embedding path of a network as an ONNX graph."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from domains.arrays import Crops
from domains.errors import ExportError, first_line
from reid.network.model import ReidModel

OPSET = 18


class _Embedder(nn.Module):
    """Only the embedding path: crops in, unit vectors out."""

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor) -> Tensor:
        return self.model.embed(crops)


def export_graph(model: ReidModel, sample: Crops) -> bytes:
    """Export the embedding path as ONNX bytes, with a dynamic batch.

    Works on a copy: the model itself is unchanged, its mode and memory layout included.
    """
    twin = _Embedder(copy.deepcopy(model)).cpu().to(memory_format=torch.contiguous_format).eval()
    buffer = io.BytesIO()
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _silent_stdout():
            warnings.simplefilter("ignore")
            # Traced first: modules made from ONNX have their own export path, which current torch no longer supports
            # and tracing bypasses.
            with torch.no_grad():
                traced = torch.jit.trace(twin, (torch.from_numpy(sample),), check_trace=False)  # type: ignore[no-untyped-call]
            torch.onnx.export(
                traced,
                (torch.from_numpy(sample),),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=["crops"],
                output_names=["embeddings"],
                dynamic_axes={"crops": {0: "N"}, "embeddings": {0: "N"}},
            )
    except Exception as error:  # the exporter raises whatever an operator's translation raises
        raise ExportError(
            f"torch can't export this model to ONNX: {type(error).__name__}: {first_line(error):.200}"
        ) from error
    finally:
        quiet.setLevel(level)
    graph = onnx.load_from_string(buffer.getvalue())
    onnx.checker.check_model(graph, full_check=True)
    data: bytes = graph.SerializeToString()
    return data


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what C++ writes to stdout: the exporter prints the whole graph there when it lacks an operator, and
    stdout is for results.
    """
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
