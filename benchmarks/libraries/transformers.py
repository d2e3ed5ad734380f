"""transformers: a classifier of text that is given its labels and returns its loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained
from libraries.own_module import LINES, train_around

REQUIREMENTS = ("transformers",)
__all__ = ["LINES", "REQUIREMENTS", "train"]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Two classes of random words, by ``self.network(**batch).loss``."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(
        BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    )
    words = torch.randint(3, 64, (64, 12))
    samples = [
        {"input_ids": row, "attention_mask": torch.ones(12, dtype=torch.long), "labels": row.sum() % 2} for row in words
    ]
    return train_around(network, lambda net, batch: net(**batch).loss, samples, callbacks, folder)
