"""What a camera domain is: its crops, its layouts on disk, and how retrieval on it is scored."""

import os

# From 1.29 on, ONNX Runtime reports the machine, its sessions and their errors to its makers unless this is set before
# it is first imported. Every package here imports this one, so it is set here. An operator who has already set it to
# another value keeps that value.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from domains.crops import CropSpec
from domains.domain import Domain, Split, union
from domains.errors import ReidError
from domains.formats import open_domain as open  # noqa: A004 - `domains.open(path)` reads as it should

__all__ = ["CropSpec", "Domain", "ReidError", "Split", "open", "union"]
