"""VideoBERT: text and video in one transformer, learned from captioned clips.

>>> from fastvfx.models.videobert import load_system
>>> system = load_system("runs/signs/checkpoint.safetensors")
>>> batch = system.read("clip.mp4")
>>> fill(system.network, system.vocabulary, batch, "a person signs the word [MASK]")
"""

from .._training import Diverged
from ..checkpoint import CheckpointError
from .batches import Batch, BatchConfig, Batches
from .config import SIZES, DecoderConfig, SpecialIds, VideoBertConfig, VisualConfig
from .embeddings import BertEmbeddings, VideoTokenEmbeddings
from .encoder import CrossEncoder
from .features import ClipFeatures
from .finetune import Captioner, Classifier
from .library import Library, Segment, make_library
from .model import Hidden, VideoBert
from .objectives import PretrainLoss, pretraining_terms
from .reader import ReaderConfig, VideoReader, read_all
from .system import System, load_system
from .text import Vocabulary, load_vocabulary, train_vocabulary
from .tokens import HierarchicalKMeans
from .trainer import TrainConfig, Trainer
from .visual import VisualTransformer
from .weights import load_bert, read_bert
from .zero_shot import Guess, Retrieval, fill, fill_accuracy, retrieval

__all__ = [
    "SIZES",
    "Batch",
    "BatchConfig",
    "Batches",
    "BertEmbeddings",
    "Captioner",
    "CheckpointError",
    "Classifier",
    "ClipFeatures",
    "CrossEncoder",
    "DecoderConfig",
    "Diverged",
    "Guess",
    "Hidden",
    "HierarchicalKMeans",
    "Library",
    "PretrainLoss",
    "ReaderConfig",
    "Retrieval",
    "Segment",
    "SpecialIds",
    "System",
    "TrainConfig",
    "Trainer",
    "VideoBert",
    "VideoBertConfig",
    "VideoReader",
    "VideoTokenEmbeddings",
    "VisualConfig",
    "VisualTransformer",
    "Vocabulary",
    "fill",
    "fill_accuracy",
    "load_bert",
    "load_system",
    "load_vocabulary",
    "make_library",
    "pretraining_terms",
    "read_all",
    "read_bert",
    "retrieval",
    "train_vocabulary",
]
