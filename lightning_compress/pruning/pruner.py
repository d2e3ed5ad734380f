"""Prunes a model while it trains: a schedule says how much, a distribution where, a criterion which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.foundation.settings_diff import settle
from lightning_compress.foundation.shards import WHOLE
from lightning_compress.pruning import checkpoint as state
from lightning_compress.pruning.budgets import asked_at, budgets, prune_to, refuse_floors
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.criteria import CriterionFunction
from lightning_compress.pruning.distributions import DistributionName
from lightning_compress.pruning.measures import Measures
from lightning_compress.pruning.patterns import Channel
from lightning_compress.pruning.prunable import Prunable
from lightning_compress.pruning.ranking import nan_checks
from lightning_compress.pruning.regrowth import drop_fraction_at, move_connections
from lightning_compress.pruning.schedule import Curve, ScheduleName, SparsitySchedule
from lightning_compress.pruning.scores import Scores
from lightning_compress.pruning.settings import RegrowName, Settings
from lightning_compress.pruning.setup import channel_sites, weight_sites
from lightning_compress.timeline import Run, TimePoint


class Pruner(Measures):
    """Keep masks over a model's weights and raise their sparsity along a schedule.

    The model's parameters, modules and ``state_dict`` keys stay as they are; masks live here. Call
    :meth:`step` after every optimizer step.

    Args:
        model: Any module.
        final_sparsity: Share of zeros at the end, in [0, 1).
        initial_sparsity: Share of zeros from ``start`` on.
        start: First update. A step, a fraction of the run, or ``"3ep"``; see :mod:`lightning_compress.timeline`.
        end: Last update.
        every: Distance between updates; ``None`` makes 50 updates between start and end, or one at each step.
        total_steps: Optimizer steps in the run; needed for fractions.
        steps_per_epoch: Optimizer steps in an epoch; needed for epochs.
        schedule: How sparsity rises from start to end: a name, or a callable [0, 1] → [0, 1].
        distribution: ``"global"`` ranks all weights together, ``"uniform"`` gives each layer the same sparsity,
            ``"erk"`` follows Evci et al. 2020.
        pattern: ``"unstructured"``, ``"n:m"``, ``"block:1x4"`` or ``"channel"``.
        criterion: ``"magnitude"``, ``"movement"``, ``"taylor"``, ``"random"``, or a callable
            ``(weight, gradient or None) → scores`` whose high scores are kept.
        regrow: ``"gradient"`` (RigL) or ``"random"`` (SET) moves connections at each update; ``None`` does not.
        drop_fraction: Share of the connections that regrowth moves at the start; decays to 0 by a cosine.
        layer_floor: Share of each layer that is always kept. ``None``: a tenth of the share that all layers keep on
            average, 0.02 at a final sparsity of 0.8, so that no layer is pruned whole.
        channel_multiple: For ``pattern="channel"``: round the channels that stay in each group to the nearest multiple.
            Kernels work on 8 or 16 channels at a time, so others cost as much as the next multiple.
        keep_zeros: Take weights that are zero now as pruned already, to continue from a sparse checkpoint.
        freeze: Only keep the zeros there are; no ``final_sparsity`` then.
        targets: Patterns of what to prune; see :mod:`lightning_compress.targets`. ``None``: every convolution,
            linear, recurrent and attention weight, and every other matrix that a product reads as its weight.
        ignore: Patterns of what to leave alone.
        overrides: Pattern → ``{"final_sparsity", "initial_sparsity", "layer_floor", "pattern"}`` for what it
            names among the targets, or ``None`` to leave it out. A layer with its own sparsity or pattern leaves the
            common pool.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``; by default the
            module's ``example_input_array``. One forward shows which parameters are weights (without it, classes and
            names decide) and which channels depend on each other (needed for ``pattern="channel"``).
        field: What to call this in messages.
        seed: For random scores and regrowth.

    Raises:
        CompressionError: A setting is wrong, in itself or for this model and run.

    Example:
        >>> model = nn.Linear(10, 10)
        >>> pruner = Pruner(model, final_sparsity=0.8, start=0, end=1, schedule="linear")
        >>> pruner.step(1)
        True
        >>> int((model.weight == 0).sum())
        80
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        final_sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        start: TimePoint = 0.1,
        end: TimePoint = 0.6,
        every: TimePoint | None = None,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        schedule: ScheduleName | Curve = "cubic",
        distribution: DistributionName = "global",
        pattern: str = "unstructured",
        criterion: str | CriterionFunction = "magnitude",
        regrow: RegrowName | None = None,
        drop_fraction: float = 0.3,
        layer_floor: float | None = None,
        channel_multiple: int = 1,
        keep_zeros: bool = False,
        freeze: bool = False,
        targets: Iterable[str] | None = None,
        ignore: Iterable[str] = (),
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        example_inputs: Any = None,
        field: str = "Pruner",
        seed: int = 0,
    ) -> None:
        settings = Settings.check(
            final_sparsity=final_sparsity,
            initial_sparsity=initial_sparsity,
            start=start,
            end=end,
            every=every,
            schedule=schedule,
            distribution=distribution,
            pattern=pattern,
            criterion=criterion,
            regrow=regrow,
            drop_fraction=drop_fraction,
            layer_floor=layer_floor,
            channel_multiple=channel_multiple,
            keep_zeros=keep_zeros,
            freeze=freeze,
            targets=targets,
            ignore=ignore,
            overrides=overrides,
            seed=seed,
            field=field,
        )
        self._bind(model, settings, Run(total_steps, steps_per_epoch), example_inputs)

    @classmethod
    def from_settings(cls, model: nn.Module, settings: Settings, run: Run, example_inputs: Any = None) -> Pruner:
        """Make a pruner from settings that were checked before the model was there."""
        pruner = cls.__new__(cls)
        pruner._bind(model, settings, run, example_inputs)
        return pruner

    def _bind(self, model: nn.Module, settings: Settings, run: Run, example_inputs: Any) -> None:
        self._settings = settings
        self.schedule: SparsitySchedule = settings.resolve(run)
        self.last_update: int | None = None
        self.idle = not settings.keep_zeros
        """Whether nothing is pruned yet, so that nothing has to be kept at zero."""
        self.churn = 0.0
        """Share of the target weights whose mask changed in the last update."""
        self.skipped: dict[str, str] = {}
        """Matrices or channel groups that stay dense though no setting says so, with the reason."""
        self._asked: dict[str, float] = {}
        self._groups: list[ChannelGroup] = []
        self._shards = WHOLE
        if isinstance(settings.pattern, Channel):
            self._sites, self._groups, self.skipped = channel_sites(model, settings, example_inputs)
        else:
            self._sites, self.skipped, self._shards = weight_sites(model, settings, example_inputs)
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._scores = Scores(settings, self._sites, self._shards)
        refuse_floors(settings, self._groups or self._sites)
        if settings.keep_zeros:
            for site in self._sites:
                site.infer_mask()
        self._masks_written()

    def _masks_written(self) -> None:
        """Make channels and weights agree, from the masks of the weights, and count."""
        self._infer_groups()
        self._count()

    def due(self, optimizer_step: int) -> bool:
        """Whether :meth:`step` would update the masks.

        Args:
            optimizer_step: Optimizer steps done so far.
        """
        update = self.schedule.last_update(optimizer_step)
        return update is not None and (self.last_update is None or update > self.last_update)

    def step(self, optimizer_step: int) -> bool:
        """Update masks if an update is due, then zero masked weights.

        Call it after every optimizer step. Calling it again for the same step changes nothing, and an update
        that fell between two calls is made up for.

        Args:
            optimizer_step: Optimizer steps done so far.

        Returns:
            Whether masks changed.

        Raises:
            CompressionError: A weight is NaN, or the criterion needs gradients that are not there.
        """
        update = self.schedule.last_update(optimizer_step)
        if update is None or not self.due(optimizer_step):
            self.apply()
            return False
        if not self.idle:
            # The optimizer may have moved pruned weights; they must not win their place back by that.
            self.apply()
        changed = self._update(update)
        self.last_update = update
        self._scores.forget_gradients()
        if changed:
            self.apply()
        return changed

    @torch.no_grad()
    def observe(self, optimizer_step: int, parameters: Iterable[Tensor] | None = None) -> bool:
        """Look at gradients; call it after the backward pass and before ``optimizer.step()``.

        Only movement pruning needs it in a plain loop. It also remembers which gradients an update will look at.

        Args:
            optimizer_step: The optimizer step about to be done, counted from 1.
            parameters: Whose gradients to look at; ``None`` for all.

        Returns:
            Whether an update at ``optimizer_step`` wants the gradients of pruned weights too, so that they may
            not be masked before.
        """
        due = self.due(optimizer_step)
        self._scores.observe(parameters, remember=due)
        return due and self._settings.needs_gradient

    def reschedule(self, run: Run) -> None:
        """Place the points in time again, now that the length of an epoch is known.

        Args:
            run: The length of the run and of its epochs.
        """
        self.schedule = self._settings.resolve(run)

    def adopt(self, other: Pruner) -> None:
        """Start from another pruner's masks, for weights of the same name and shape.

        Args:
            other: The other pruner.
        """
        masks, self.idle = other.masks, False
        for site in self._sites:
            if site.name in masks and masks[site.name].shape == site.mask.shape:
                site.mask.copy_(masks[site.name])
        self._masks_written()

    @torch.no_grad()
    def _update(self, step: int) -> bool:
        self.idle = False
        settings = self._settings
        if settings.freeze:
            return False
        before = self._counts
        prunable: Sequence[Prunable] = self._groups or self._sites
        self._asked, common = asked_at(settings, prunable, self.schedule, step)
        with nan_checks.deferred() as checks:
            found = budgets(prunable, self._asked, common, self._pruned_now())
            prune_to(settings, found, self._scores, step, self._shards)
        self._write_groups()
        self._count(checks)
        # Without regrowth masks are nested, so they changed exactly where their counts did.
        changes = self._outcome(before, checks) + self._regrow(step)
        self.churn = changes / self._entries()
        return changes > 0

    def _regrow(self, step: int) -> int:
        fraction = drop_fraction_at(step, self.schedule, self._settings.drop_fraction)
        if self._settings.regrow is None or not fraction:
            return 0
        growth = [self._scores.of_growth(site, step) for site in self._sites]
        pruned = [self._pruned[site.name] for site in self._sites]
        moved = move_connections(self._sites, growth, fraction, pruned, self._shards)
        self._count()
        return int(self._shards.total(torch.tensor(moved)))

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and primitives; masks take one bit a weight.

        Under FSDP2 every process has to ask, and gets whole masks, so that a run goes on in any number of processes.
        """
        return {
            "version": state.VERSION,
            "settings": self.describe(),
            "last_update": self.last_update,
            "churn": self.churn,
            "asked": dict(self._asked),
            "masks": state.packed_masks(self._sites),
            "sums": state.whole_sums(self._sites, self._scores.criterion.state_dict()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], *, accept_changes: bool = False) -> None:
        """Go on from a saved state. The weights are the model's business; they are saved with zeros.

        Args:
            state_dict: From :meth:`state_dict`.
            accept_changes: Go on if the state is from other settings, with a warning that lists the differences.
                What is pruned stays so where it still is a target, and masks are updated at once, or as soon as there
                are the gradients that the criterion needs.

        Raises:
            CompressionError: The state is from other settings (all differences are listed) or another model.
        """
        field, now = self._settings.field, self.describe()
        # Before the masks: other targets are other weights, and the setting says more.
        changed = settle(
            state_dict.get("settings", now),
            now,
            field,
            accept=accept_changes,
            fix="start a new run from the weights alone, with keep_zeros=True to keep what is pruned",
        )
        state.refuse_strange(state_dict, {site.name for site in self._sites}, field, accept_changes=changed)
        state.restore_masks(self._sites, state_dict["masks"], self._shards, field)
        self._masks_written()
        self.idle = False
        self.last_update = None if changed else state_dict["last_update"]
        self.churn = state_dict["churn"]
        self._asked = dict(state_dict["asked"])
        self._scores.criterion.load_state_dict(state.local_sums(self._sites, state_dict["sums"], self._shards))
