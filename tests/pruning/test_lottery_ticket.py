"""The lottery ticket recipe against iterative magnitude pruning in plain PyTorch and NumPy."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parents[2] / "recipes" / "lottery_ticket"
ROUNDS, RATE, REWIND, STEPS = 2, 0.2, 5, 25


def recipe():
    spec = importlib.util.spec_from_file_location("lottery_ticket", FOLDER / "lottery_ticket.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["lottery_ticket"] = module
    spec.loader.exec_module(module)
    return module


def plain_training(model, masks, source, steps):
    optimizer = torch.optim.Adam(model.parameters(), 1.2e-3)
    for _ in range(steps):
        x, y = next(source)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(torch.from_numpy(mask))


def test_masks_and_accuracies_are_those_of_iterative_magnitude_pruning():
    ticket = recipe()
    found = ticket.lottery(ROUNDS, RATE, REWIND, STEPS, seed=3)

    training, test = ticket.load(3)
    model = ticket.make(3)
    names = ["layers.1.weight", "layers.3.weight"]
    masks = {name: np.ones(model.get_parameter(name).shape, np.float32) for name in names}
    plain_training(model, masks, ticket.batches(training, 3), REWIND)
    early = {name: value.clone() for name, value in model.state_dict().items()}
    for number in range(ROUNDS + 1):
        source = ticket.batches(training, 3)
        for _ in range(REWIND):
            next(source)
        plain_training(model, masks, source, STEPS - REWIND)
        assert found[number].accuracy == ticket.accuracy(model, test)
        for name in names:
            np.testing.assert_array_equal(found[number].masks[name].numpy(), masks[name] == 1)
        flat = np.concatenate([np.abs(model.get_parameter(name).detach().numpy()).ravel() for name in names])
        count = round((1 - (1 - RATE) ** (number + 1)) * flat.size)
        kept = np.ones(flat.size, np.float32)
        kept[np.argsort(flat, kind="stable")[:count]] = 0
        model.load_state_dict(early)
        for name in names:
            size = masks[name].size
            masks[name], kept = kept[:size].reshape(masks[name].shape), kept[size:]
            with torch.no_grad():
                model.get_parameter(name).mul_(torch.from_numpy(masks[name]))


def test_the_control_trains_the_same_mask_from_other_weights():
    found = recipe().lottery(1, 0.5, REWIND, STEPS, seed=0)
    ticket, control = found[-2:]
    assert ticket.sparsity == control.sparsity == 0.5
    assert all(torch.equal(mask, control.masks[name]) for name, mask in ticket.masks.items())
    assert ticket.accuracy != control.accuracy


def test_the_code_in_the_recipe_s_page_prints_what_it_says(capsys):
    page = (FOLDER / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == re.search(r"# ([\d.]+)\n", code)[1]
