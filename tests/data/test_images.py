from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_compress.data import Digits, ImageData, Pixels
from lightning_compress.data.images import stratified_split
from lightning_compress.errors import CompressionError


class Published(ImageData):
    """A tiny data set with a test set of its own."""

    name = "published"

    def read(self) -> Pixels:
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(4), 30)
        images = rng.integers(0, 256, (120, 3, 4, 4), dtype=np.uint8)
        return Pixels(images, labels, np.full((8, 3, 4, 4), 255, np.uint8), np.arange(8) % 4, "made up")


def ready(**options: object) -> Digits:
    data = Digits(**options)  # type: ignore[arg-type]
    data.setup()
    return data


def test_a_split_takes_the_same_share_of_every_class() -> None:
    labels = np.repeat(np.arange(3), [10, 20, 40])
    stay, aside = stratified_split(labels, 0.2, seed=0)
    assert np.bincount(labels[aside]).tolist() == [2, 4, 8]
    assert sorted([*stay, *aside]) == list(range(70))


def test_digits_has_all_1797_images_in_disjoint_parts() -> None:
    record = ready().split_record()
    assert record["train"] + record["val"] + record["test"] == 1797
    data = ready(batch_size=7)
    seen = [x for part in ("train", "val", "test") for x in data._dataset(part).images]
    published = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert len(seen) == 1797
    assert sorted(x.numpy().tobytes() for x in seen) == sorted(x.tobytes() for x in published)


def test_equal_seeds_give_equal_splits_and_others_do_not() -> None:
    digests = [ready(seed=seed).split_record()["sha256"] for seed in (1, 1, 2)]
    assert digests[0] == digests[1]
    assert digests[0]["test"] != digests[2]["test"]
    assert digests[0]["val"] != digests[2]["val"]


def test_a_published_test_set_is_not_split() -> None:
    data = Published()
    data.setup()
    record = data.split_record()
    assert (record["train"], record["val"], record["test"]) == (108, 12, 8)
    assert record["test_set"] == "published"


def test_normalisation_comes_from_the_training_images_alone() -> None:
    data = Published(batch_size=108)
    data.setup()
    x, _ = next(iter(data.train_dataloader()))
    np.testing.assert_allclose(x.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std((0, 2, 3), correction=0), 1, atol=1e-4)


def test_the_record_is_made_of_json_types() -> None:
    record = ready().split_record()
    assert json.loads(json.dumps(record)) == record
    assert record["classes"] == 10
    assert record["image_shape"] == [1, 8, 8]
    assert record["source"] == "scikit-learn load_digits"


def test_validation_and_test_images_are_never_augmented() -> None:
    plain, augmented = ready(), ready(augment="crop_flip", crop_padding=2)
    for part in ("val_dataloader", "test_dataloader"):
        (x, _), (z, _) = (next(iter(getattr(data, part)())) for data in (plain, augmented))
        assert torch.equal(x, z)
    (x, _), (z, _) = (next(iter(data.train_dataloader())) for data in (plain, augmented))
    assert not torch.equal(x, z)


def test_loaders_before_setup_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"Digits: call setup\(\)"):
        Digits().train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size: expected a positive integer, got 0"),
        ({"val_fraction": 1.0}, r"data\.val_fraction: expected a share between 0 and 1, got 1\.0"),
        ({"test_fraction": 0.0}, r"data\.test_fraction"),
        ({"augment": "rotate"}, r"data\.augment: expected one of none, crop, crop_flip, got 'rotate'"),
        ({"crop_padding": -1}, r"data\.crop_padding: expected at least 0, got -1"),
        ({"seed": -3}, r"data\.seed: expected at least 0, got -3"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Digits(**options)  # type: ignore[arg-type]
