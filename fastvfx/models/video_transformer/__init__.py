"""Encoders of videos built from fastvfx's attention: TimeSformer's, ViViT's four, and Video Swin's."""

from .config import SwinConfig, VideoTransformerConfig
from .encoder import VideoTransformer
from .swin import SwinTransformer3d
from .tokens import PatchEmbedding
from .weights import load_swin3d, load_timesformer, load_vivit

__all__ = [
    "PatchEmbedding",
    "SwinConfig",
    "SwinTransformer3d",
    "VideoTransformer",
    "VideoTransformerConfig",
    "load_swin3d",
    "load_timesformer",
    "load_vivit",
]
