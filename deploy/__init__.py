"""The learned model at work, without torch: bundles, the encoder, the gallery and its answers.

Importing this loads neither FAISS nor ONNX Runtime; each is loaded where it is first used. The names here are what may
be relied on; modules below may move.
"""

from deploy.answers.refine import Refinement
from deploy.answers.thresholds import Thresholds
from deploy.answers.transitions import Transitions
from deploy.bundle import Bundle
from deploy.embeddings import Embeddings
from deploy.encoder import Encoder
from deploy.gallery import Gallery
from deploy.match import Match

__all__ = ["Bundle", "Embeddings", "Encoder", "Gallery", "Match", "Refinement", "Thresholds", "Transitions"]
