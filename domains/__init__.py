"""What a camera domain is: its crops, its layouts on disk, and how retrieval on it is scored."""

import os

# ONNX Runtime from 1.29 on tells its makers about the machine, its sessions and their errors, unless this is set before
# it is first imported. Every room imports this one, so it is set here. An operator who has set it to another value has
# decided otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from domains.crops import CropSpec
from domains.domain import Domain, Split, union
from domains.errors import ReidError
from domains.formats import open_domain as open  # noqa: A004 - `domains.open(path)` reads as it should

__all__ = ["CropSpec", "Domain", "ReidError", "Split", "open", "union"]
