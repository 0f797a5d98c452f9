"""Flax linen models with the initialisations that the papers use."""

from ntk_privacy import _public
from ntk_privacy.models import adapter as adapter
from ntk_privacy.models import convnet as convnet
from ntk_privacy.models import fitting as fitting
from ntk_privacy.models import published as published
from ntk_privacy.models import resnet as resnet
from ntk_privacy.models import saved as saved
from ntk_privacy.models.convnet import ConvNet as ConvNet
from ntk_privacy.models.mlp import MLP as MLP
from ntk_privacy.models.mlp import softplus as softplus
from ntk_privacy.models.resnet import ResNet18 as ResNet18

__all__ = [
    "MLP",
    "ConvNet",
    "ResNet18",
    "adapter",
    "convnet",
    "fitting",
    "published",
    "resnet",
    "saved",
    "softplus",
]

__dir__ = _public.names(__name__)
