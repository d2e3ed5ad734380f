"""Networks for the bundled configurations, and the LightningModule that trains any classifier."""

from lightning_compress.models.classifier import Classifier
from lightning_compress.models.cnn import SmallCNN
from lightning_compress.models.lenet import LeNet5
from lightning_compress.models.mlp import MLP
from lightning_compress.models.resnet import ResNet
from lightning_compress.models.transformer import TransformerEncoder

__all__ = ["MLP", "Classifier", "LeNet5", "ResNet", "SmallCNN", "TransformerEncoder"]
