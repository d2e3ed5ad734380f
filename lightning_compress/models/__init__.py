"""Networks for the bundled configurations, and the LightningModules that train any classifier or language model."""

from lightning_compress.models.classifier import Classifier
from lightning_compress.models.cnn import SmallCNN
from lightning_compress.models.dscnn import DSCNN
from lightning_compress.models.language import LanguageModel
from lightning_compress.models.lenet import LeNet5
from lightning_compress.models.mlp import MLP
from lightning_compress.models.resnet import ResNet
from lightning_compress.models.text import GPT, TextEncoder
from lightning_compress.models.transformer import TransformerEncoder

__all__ = [
    "DSCNN",
    "GPT",
    "MLP",
    "Classifier",
    "LanguageModel",
    "LeNet5",
    "ResNet",
    "SmallCNN",
    "TextEncoder",
    "TransformerEncoder",
]
