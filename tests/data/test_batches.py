from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_compress.data.batches import EpochShuffle, ImageDataset, ResumableLoader, already_a_batch, random_crop

IMAGES = torch.randint(0, 256, (12, 2, 6, 6), generator=torch.Generator().manual_seed(1)).byte()
LABELS = torch.arange(12)
MEAN, STD = torch.tensor([0.25, 0.5]), torch.tensor([0.1, 0.4])


def dataset(crop_padding: int = 0, flip: bool = False, seed: int = 0) -> ImageDataset:
    data = ImageDataset(IMAGES, LABELS, MEAN, STD)
    data.augment_with(crop_padding=crop_padding, flip=flip, seed=seed)
    return data


def loader(data: ImageDataset, batch_size: int = 4, seed: int = 0) -> ResumableLoader:
    return ResumableLoader(
        data, batch_size=batch_size, sampler=EpochShuffle(len(data), seed), collate_fn=already_a_batch
    )


def test_a_batch_is_the_images_normalised_by_channel() -> None:
    x, y = dataset().__getitems__([3, 0])
    expected = (IMAGES.numpy()[[3, 0]] / 255 - MEAN.numpy()[:, None, None]) / STD.numpy()[:, None, None]
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert y.tolist() == [3, 0]


def test_one_item_is_the_same_as_in_a_batch() -> None:
    x, y = dataset()[5]
    batch, labels = dataset().__getitems__([5])
    assert torch.equal(x, batch[0])
    assert torch.equal(y, labels[0])


def test_every_crop_is_a_window_of_the_padded_image() -> None:
    images = IMAGES.numpy()
    cropped = random_crop(IMAGES, 2, torch.Generator().manual_seed(0)).numpy()
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = set()
    for image, crop in zip(padded, cropped, strict=True):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(image[:, top : top + 6, left : left + 6], crop)
        ]
        assert places
        found.update(places)
    assert len(found) > 3


def test_flips_mirror_some_images_and_leave_the_others() -> None:
    plain, _ = dataset().__getitems__(list(range(12)))
    flipped, _ = dataset(flip=True).__getitems__(list(range(12)))
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, plain, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, plain, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 12


def test_augmentation_depends_on_seed_and_batch_alone() -> None:
    torch.manual_seed(1)
    first, _ = dataset(2, True).__getitems__([1, 2, 3])
    torch.manual_seed(2)
    again, _ = dataset(2, True).__getitems__([1, 2, 3])
    other, _ = dataset(2, True, seed=1).__getitems__([1, 2, 3])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_order_changes_with_the_epoch_and_is_a_permutation() -> None:
    sampler = EpochShuffle(50, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpochShuffle(50, seed=4)) != first


@pytest.mark.parametrize("delivered", [1, 2])
def test_a_loader_goes_on_where_its_state_was_taken(delivered: int) -> None:
    whole = [labels.tolist() for _, labels in loader(dataset())]
    stopped = loader(dataset())
    iterator = iter(stopped)
    for _ in range(delivered):
        next(iterator)
    resumed = loader(dataset())
    resumed.load_state_dict(stopped.state_dict())
    assert [labels.tolist() for _, labels in resumed] == whole[delivered:]
    assert [labels.tolist() for _, labels in resumed] == whole


def test_an_epoch_that_was_cut_short_leaves_the_next_one_whole() -> None:
    stopped = loader(dataset())
    next(iter(stopped))
    resumed, whole = loader(dataset()), loader(dataset())
    resumed.load_state_dict(stopped.state_dict())
    for each in (resumed, whole):
        each.sampler.set_epoch(1)
    assert [labels.tolist() for _, labels in resumed] == [labels.tolist() for _, labels in whole]


def test_a_loader_stopped_at_the_end_of_an_epoch_starts_the_next_whole() -> None:
    stopped = loader(dataset())
    assert len(list(stopped)) == 3
    resumed = loader(dataset())
    resumed.load_state_dict(stopped.state_dict())
    assert len(list(resumed)) == 3
