"""litgpt: a small GPT with the library's chunked cross-entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained
from libraries.own_module import LINES, train_around

REQUIREMENTS = ("litgpt",)
__all__ = ["LINES", "REQUIREMENTS", "train"]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Random tokens."""
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    network = GPT(Config(block_size=16, vocab_size=64, padded_vocab_size=64, n_layer=2, n_head=4, n_embd=32))
    samples = list(torch.randint(0, 64, (48, 13)))
    loss = lambda net, batch: chunked_cross_entropy(net(batch[:, :-1]), batch[:, 1:], chunk_size=0)  # noqa: E731
    return train_around(network, loss, samples, callbacks, folder)
