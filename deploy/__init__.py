"""The trained model at work, without torch: bundles, the encoder, the gallery and its answers.

Importing this loads neither FAISS nor ONNX Runtime; each is loaded on first use. Only the names exported here are
stable; the modules below may move.
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
