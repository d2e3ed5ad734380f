"""Public architectures at small sizes, built from configuration: nothing is downloaded, every weight is random.

    from architectures import all_architectures
    network = all_architectures()["timm: test_resnet"].build()

Each module of this package holds one kind of network, and names the distribution that every network comes from. Those
whose distribution is not installed are still listed; only building them fails.
"""

from __future__ import annotations

from architectures.architecture import Architecture
from architectures.torchvision_operators import declare_operators

# Before torchmetrics or any other package imports torchvision.
declare_operators()

__all__ = ["Architecture", "all_architectures"]


def all_architectures() -> dict[str, Architecture]:
    """Every architecture by its name, such as ``"timm: test_resnet"``."""
    from architectures import dense_prediction, generation, graphs, sequences, text, vision

    found: dict[str, Architecture] = {}
    for module in (sequences, graphs, generation, dense_prediction, text, vision):
        for architecture in module.ARCHITECTURES:
            if architecture.name in found:
                raise ValueError(f"two architectures are called {architecture.name}")
            found[architecture.name] = architecture
    return found
