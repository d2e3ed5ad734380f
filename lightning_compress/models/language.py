"""The LightningModule that trains a network to predict the next token."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchmetrics.text import Perplexity

from lightning_compress.models.classifier import Batch, Classifier


class LanguageModel(Classifier):
    """A classifier of every next token; besides the accuracy it logs the perplexity, exp of the mean loss.

    Args:
        net: Maps int64 [B, T] to logits float32 [B, T, vocabulary].
        settings: Those of :class:`Classifier`; ``num_classes`` is the size of the vocabulary.
    """

    def __init__(self, net: nn.Module, **settings: Any) -> None:
        super().__init__(net, **settings)
        self.val_perplexity, self.test_perplexity = Perplexity(), Perplexity()

    def scores(self, batch: Batch) -> Batch:
        """Logits float32 [B * T, vocabulary] of all tokens in a batch, and the tokens that follow, int64 [B * T].

        Args:
            batch: Tokens int64 [B, T] and those that follow, int64 [B, T].
        """
        logits, following = super().scores(batch)
        return logits.flatten(0, 1), following.flatten()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/loss``, ``val/acc`` and ``val/perplexity``."""
        self._log_perplexity(self._evaluate(batch, "val", self.val_acc), "val", self.val_perplexity)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test/loss``, ``test/acc`` and ``test/perplexity``."""
        self._log_perplexity(self._evaluate(batch, "test", self.test_acc), "test", self.test_perplexity)

    def _log_perplexity(self, scored: Batch, part: str, perplexity: Perplexity) -> None:
        logits, following = scored
        perplexity(logits[None], following[None])
        self.log(f"{part}/perplexity", perplexity, on_step=False, on_epoch=True)
