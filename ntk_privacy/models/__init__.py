"""Flax linen models with the initialisations that the papers use."""

from ntk_privacy.models import convnet as convnet
from ntk_privacy.models.convnet import ConvNet as ConvNet
from ntk_privacy.models.mlp import MLP as MLP
from ntk_privacy.models.mlp import softplus as softplus

__all__ = ["MLP", "ConvNet", "convnet", "softplus"]
