"""Encoders of videos built from fastvfx's attention: TimeSformer's, ViViT's four, and Video Swin's."""

from .config import SwinConfig, VideoTransformerConfig
from .encoder import VideoTransformer
from .swin import SwinTransformer3d
from .tokens import PatchEmbedding

__all__ = ["PatchEmbedding", "SwinConfig", "SwinTransformer3d", "VideoTransformer", "VideoTransformerConfig"]
