"""anomalib: DRAEM by the library's Engine, on a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import QUIET, Trained

REQUIREMENTS = ("anomalib",)
LINES = "engine = Engine(..., callbacks=callbacks)"


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Grey noise; anomalies have a white square."""
    import numpy as np
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Ganomaly
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind, count in (("good", 16), ("bad", 6)):
        (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = rng.integers(0, 128, (64, 64, 3), dtype=np.uint8)
            if kind == "bad":
                pixels[16:40, 16:40] = 255
            Image.fromarray(pixels).save(folder / "images" / kind / f"{index}.png")
    data = Folder(
        name="squares", root=folder / "images", normal_dir="good", abnormal_dir="bad", train_batch_size=4,
        eval_batch_size=4, num_workers=0,
    )  # fmt: skip
    model = Ganomaly(
        batch_size=4, n_features=8, latent_vec_size=16, pre_processor=Ganomaly.configure_pre_processor((32, 32))
    )
    engine = Engine(max_epochs=3, default_root_dir=folder, callbacks=callbacks, **QUIET)
    engine.fit(model=model, datamodule=data)
    return Trained(model, lambda: engine.predict(model=model, dataset=None, datamodule=data))
