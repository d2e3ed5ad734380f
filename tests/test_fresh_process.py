"""A checkpoint evaluated in a process of its own gives the numbers of the process that trained."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_modules import PlainModule, loader, quiet_trainer
from patience import HANG_SECONDS

from lightning_compress import GradualMagnitudePruning, QuantizationAwareTraining

SCRIPT = """
    import sys
    sys.path[:0] = {tests!r}
    import torch
    from test_fresh_process import Predicting, callbacks, evaluate
    from lightning_modules import quiet_trainer

    found = evaluate(quiet_trainer(callbacks=callbacks()), Predicting(), ckpt_path={checkpoint!r})
    torch.save(found, {out!r})
"""


class Predicting(PlainModule):
    """Predicts as well."""

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])


def callbacks() -> list[Any]:
    # Three bits, so that a float model would give other numbers.
    return [GradualMagnitudePruning(0.8, start=2, end=10, every=2), QuantizationAwareTraining(3, 3, start=4)]


def evaluate(trainer: Any, module: Any, **settings: Any) -> dict[str, Any]:
    """What validate, test and predict give."""
    settings = {"dataloaders": loader(3, seed=1), "weights_only": True, **settings}
    return {
        "validate": trainer.validate(module, verbose=False, **settings),
        "test": trainer.test(module, verbose=False, **settings),
        "predict": torch.cat(trainer.predict(module, **settings)),
    }


@pytest.mark.filterwarnings("ignore")
def test_validate_test_and_predict_give_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    module, out, checkpoint = Predicting(), tmp_path / "out.pt", tmp_path / "a.ckpt"
    trainer = quiet_trainer(callbacks=callbacks())
    trainer.fit(module, loader())
    trainer.save_checkpoint(checkpoint)
    expected = evaluate(trainer, module)
    names = {
        "tests": [str(Path(__file__).parent), str(Path(__file__).parent / "support")],
        "checkpoint": str(checkpoint),
        "out": str(out),
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT.format(**names))], check=True, timeout=HANG_SECONDS)
    found = torch.load(out, weights_only=True)
    assert torch.equal(found.pop("predict"), expected.pop("predict"))
    assert found == expected
    plain = evaluate(quiet_trainer(), Predicting(), ckpt_path=checkpoint)
    assert plain["validate"] != expected["validate"], "without the callbacks the float weights are evaluated"
