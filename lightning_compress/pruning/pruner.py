"""Prunes a model while it trains: a schedule says how much, a distribution where, a criterion which."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.settings_diff import settle
from lightning_compress.pruning import checkpoint as state
from lightning_compress.pruning import nan_checks
from lightning_compress.pruning.budgets import prune_to, refuse_floors
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.distributions import DistributionName
from lightning_compress.pruning.masks import apply_masks, pack, unpack
from lightning_compress.pruning.patterns import Channel, Pattern
from lightning_compress.pruning.prunable import Prunable, Site, infer_mask
from lightning_compress.pruning.regrowth import drop_fraction_at, move_connections
from lightning_compress.pruning.schedule import Curve, ScheduleName, SparsitySchedule
from lightning_compress.pruning.scores import Scores
from lightning_compress.pruning.settings import Criterion, CriterionName, RegrowName, Settings
from lightning_compress.pruning.setup import channel_sites, weight_sites
from lightning_compress.timeline import Run, TimePoint

# A mask update's outcome is one number: the changes, plus these for a layer that was pruned whole and for NaN.
_COLLAPSED, _SPOILED = 2**50, 2**51


class Pruner:
    """Keep masks over a model's weights and raise their sparsity along a schedule.

    The model's parameters, modules and ``state_dict`` keys stay as they are; masks live here. Call
    :meth:`step` after every optimizer step.

    Args:
        model: Any module.
        final_sparsity: Share of zeros at the end, in [0, 1).
        initial_sparsity: Share of zeros from ``start`` on.
        start: First update. A step, a fraction of the run, or ``"3ep"``; see :mod:`lightning_compress.timeline`.
        end: Last update.
        every: Distance between updates.
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
        layer_floor: Share of each layer that is always kept.
        channel_multiple: For ``pattern="channel"``: round the channels that stay in each group to the nearest multiple.
            Kernels work on 8 or 16 channels at a time, so others cost as much as the next multiple.
        keep_zeros: Take weights that are zero now as pruned already, to continue from a sparse checkpoint.
        freeze: Only keep the zeros there are; no ``final_sparsity`` then.
        targets: Patterns of what to prune; see :mod:`lightning_compress.targets`. ``None``: every convolution,
            linear, recurrent and attention weight.
        ignore: Patterns of what to leave alone.
        overrides: Pattern → ``{"final_sparsity", "initial_sparsity", "layer_floor", "pattern"}`` for what it
            names, or ``None`` to leave it out. A layer with its own sparsity or pattern leaves the common pool.
        example_inputs: For ``pattern="channel"``: a tensor, or a tuple of positional or dict of keyword arguments
            of ``forward``; by default the module's ``example_input_array``.
        field: What to call this in messages.
        seed: For random scores and regrowth.

    Raises:
        CompressionError: A setting is wrong, in itself or for this model and run.

    Example:
        >>> model = nn.Linear(10, 10)
        >>> pruner = Pruner(model, final_sparsity=0.8, end=1, schedule="linear")
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
        start: TimePoint = 0,
        end: TimePoint = 1.0,
        every: TimePoint = 1,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
        schedule: ScheduleName | Curve = "cubic",
        distribution: DistributionName = "global",
        pattern: str = "unstructured",
        criterion: CriterionName | Criterion = "magnitude",
        regrow: RegrowName | None = None,
        drop_fraction: float = 0.3,
        layer_floor: float = 0.0,
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
        self._scores = Scores(settings)
        self._groups: list[ChannelGroup] = []
        if isinstance(settings.pattern, Channel):
            self._sites, self._groups, self.skipped = channel_sites(model, settings, example_inputs)
        else:
            self._sites, self.skipped = weight_sites(model, settings, example_inputs)
        self._numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
        self._warn_of_dense()
        refuse_floors(settings, self._groups or self._sites)
        if settings.keep_zeros:
            for site in self._sites:
                infer_mask(site)
            self._read_groups()

    def _read_groups(self) -> None:
        """Make channels and weights agree, from the masks of the weights."""
        for group in self._groups:
            group.infer(self.masks)
        if self._groups:
            for site in self._sites:
                site.mask.fill_(True)
            for group in self._groups:
                group.write(self.masks)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name → mask of its shape, ``bool``, ``True`` = kept. Not copies."""
        return {site.name: site.mask for site in self._sites}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameter name → the parameter that is pruned."""
        return {site.name: site.parameter for site in self._sites}

    @property
    def pattern(self) -> str:
        """The common pattern, as written."""
        return self._settings.pattern.text

    @property
    def patterns(self) -> dict[str, str]:
        """Parameter name → the pattern in which it is pruned."""
        return {site.name: site.pattern.text for site in self._sites}

    def sparsity(self) -> float:
        """Share of the target weights that are zero now."""
        total = sum(site.parameter.numel() for site in self._sites)
        kept = sum(int(site.parameter.detach().count_nonzero()) for site in self._sites)
        return 1 - kept / total

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that are pruned; the others stay dense whatever ``final_sparsity`` is."""
        return sum(site.mask.numel() for site in self._sites) / sum(self._numel.values())

    def sparsity_of_model(self) -> float:
        """Share of all the model's parameters, biases, norms and embeddings among them, that are zeros in targets."""
        return self.sparsity() * self.coverage

    def sparsity_target(self) -> float:
        """Share of zeros asked of the target weights together at the last update; 0 before the first."""
        s = self._settings
        if s.freeze or self._groups:
            # Of weights nothing is asked here: the zeros there are stay, or channels are counted.
            return sum(site.pruned() for site in self._sites) / sum(site.mask.numel() for site in self._sites)
        if self.last_update is None:
            return 0.0
        common = self._at(self.last_update, s.initial_sparsity, s.final_sparsity)
        asked = sum(self._asked.get(site.name, common) * site.mask.numel() for site in self._sites)
        return asked / sum(site.mask.numel() for site in self._sites)

    def layer_sparsity_target(self) -> dict[str, float]:
        """Parameter name → sparsity asked of it at the last update.

        With ``distribution="global"`` nothing is asked of a single layer, so there it is what the common
        threshold gave.
        """
        return {site.name: self._asked.get(site.name, site.pruned() / site.mask.numel()) for site in self._sites}

    def dead_channels(self) -> dict[str, int]:
        """Parameter name → how many slices along its first dimension, its output channels mostly, are pruned whole."""
        return {
            site.name: int((~site.mask.reshape(len(site.mask), -1).any(dim=1)).count_nonzero())
            for site in self._sites
            if site.mask.ndim > 1
        }

    def due(self, optimizer_step: int) -> bool:
        """Whether :meth:`step` would update the masks."""
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
        before = self._kept_counts()
        if not self.idle:
            # The optimizer may have moved pruned weights; they must not win their place back by that.
            self.apply()
        changed = self._update(update, before)
        self.last_update = update
        self._scores.forget_gradients()
        if changed:
            self.apply()
        return changed

    @torch.no_grad()
    def observe(self, optimizer_step: int, parameters: Iterable[Tensor] | None = None) -> bool:
        """Look at gradients; call it after the backward pass and before ``optimizer.step()``.

        Only movement pruning needs it in a plain loop: it sums up ``-w · gradient``, one float a weight. It also
        remembers which gradients an update will look at, in case they are gone by then.

        Args:
            optimizer_step: The optimizer step about to be done, counted from 1.
            parameters: Whose gradients to look at; ``None`` for all.

        Returns:
            Whether an update at ``optimizer_step`` wants the gradients of pruned weights too, so that they may
            not be masked before.
        """
        due = self.due(optimizer_step)
        self._scores.observe(self._sites, parameters, remember=due)
        return due and self._settings.needs_gradient

    def adopt(self, other: Pruner) -> None:
        """Start from another pruner's masks, for weights of the same name and shape."""
        masks, self.idle = other.masks, False
        for site in self._sites:
            if site.name in masks and masks[site.name].shape == site.mask.shape:
                site.mask.copy_(masks[site.name])
        self._read_groups()

    def masks_by_parameter(self) -> dict[Tensor, Tensor]:
        """Parameter → mask, on the parameter's device."""
        for site in self._sites:
            site.move()
        return {site.parameter: site.mask for site in self._sites}

    def mask_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Zero pruned entries in a copy of the model's weights, such as an average of them."""
        for site in self._sites:
            if site.name in state_dict:
                copy = state_dict[site.name]
                apply_masks([copy], [site.mask.to(copy.device)])

    @torch.no_grad()
    def apply(self) -> None:
        """Zero masked weights, and nothing else."""
        for site in self._sites:
            site.move()
        apply_masks([site.parameter for site in self._sites], [site.mask for site in self._sites])

    @torch.no_grad()
    def _update(self, step: int, before: Tensor) -> bool:
        self.idle = False
        if self._settings.freeze:
            return False
        plain = self._settings.criterion == "magnitude" and not self._groups

        def score(site: Prunable) -> Tensor:
            if isinstance(site, ChannelGroup):
                return site.scores(lambda name: self._scores.raw(by_name[name], step))
            assert isinstance(site, Site)
            single = type(site.pattern) is Pattern
            return site.parameter.detach() if plain and single else self._scores.of(site, step)

        by_name = {site.name: site for site in self._sites}
        with nan_checks.deferred() as checks:
            self._asked = prune_to(
                self._settings,
                self._groups or self._sites,
                lambda initial, final: self._at(step, initial, final),
                score,
                absolute=plain,
            )
        for group in self._groups:
            group.write(self.masks)
        # Without regrowth masks are nested, so they changed exactly where their counts did.
        changes = self._outcome(before, self._kept_counts(), checks) + self._regrow(step)
        self.churn = changes / sum(site.mask.numel() for site in self._sites)
        return changes > 0

    def _at(self, step: int, initial: float, final: float) -> float:
        s = self.schedule
        return SparsitySchedule(initial, final, s.start, s.end, s.every, s.curve).at(step)

    def _regrow(self, step: int) -> int:
        s = self._settings
        fraction = drop_fraction_at(step, self.schedule, s.drop_fraction)
        if s.regrow is None or not fraction:
            return 0
        moved = 0
        for site in self._sites:
            growth = self._scores.of_growth(site, step)
            moved += move_connections(site.parameter.detach(), site.mask, growth, fraction, site.name)
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and primitives; masks take one bit a weight."""
        return {
            "version": state.VERSION,
            "settings": state.describe(self._settings, self.schedule),
            "last_update": self.last_update,
            "churn": self.churn,
            "asked": dict(self._asked),
            "masks": {site.name: {"shape": list(site.mask.shape), "bits": pack(site.mask)} for site in self._sites},
            "movement": {name: score.clone() for name, score in self._scores.movement.items()},
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
        field = self._settings.field
        now = state.describe(self._settings, self.schedule)
        # Before the masks: other targets are other weights, and the setting says more.
        changed = settle(
            state_dict.get("settings", now),
            now,
            field,
            accept=accept_changes,
            fix="start a new run from the weights alone, with keep_zeros=True to keep what is pruned",
        )
        state.refuse_strange(state_dict, {site.name for site in self._sites}, field, accept_changes=changed)
        for site in self._sites:
            if changed and site.name not in state_dict["masks"]:
                continue
            saved = state_dict["masks"][site.name]
            if list(saved["shape"]) != list(site.mask.shape):
                raise CompressionError(
                    f"{field}: the checkpoint's mask for {site.name} has shape {list(saved['shape'])}, the weight "
                    f"has {list(site.mask.shape)}."
                )
            site.mask.copy_(unpack(saved["bits"], saved["shape"]))
        self._read_groups()
        self.idle = False
        self.last_update = None if changed else state_dict["last_update"]
        self.churn = state_dict["churn"]
        self._asked = dict(state_dict["asked"])
        self._scores.movement = {
            site.name: state_dict["movement"][site.name].to(site.parameter.device, copy=True)
            for site in self._sites
            if site.name in state_dict["movement"]
        }

    def _warn_of_dense(self) -> None:
        dense = {name: reason for name, reason in self.skipped.items() if name in self._numel}
        share = sum(self._numel[name] for name in dense) / sum(self._numel.values())
        if share < 0.01:
            return
        largest = sorted(dense, key=lambda name: -self._numel[name])
        named = ", ".join(f"{name} ({dense[name]})" for name in largest[:3])
        more = f" and {len(dense) - 3} more" if len(dense) > 3 else ""
        warnings.warn(
            f"{self._settings.field}: {100 * share:.0f} % of the model's parameters stay dense without being asked to: "
            f"{named}{more}. final_sparsity is a share of the pruned weights, {100 * self.coverage:.0f} % of the "
            "parameters. Name the others in targets to prune them, or in ignore to confirm.",
            stacklevel=5,
        )

    def _kept_counts(self) -> Tensor:
        """Entries of each site kept now: int64, ``[sites]``, on the device where the masks lie."""
        counts = [site.kept_count() for site in self._sites]
        on_device = [count for count in counts if isinstance(count, Tensor)]
        return (
            torch.stack([count.to(on_device[0].device) for count in on_device]) if on_device else torch.tensor(counts)
        )

    def _outcome(self, before: Tensor, after: Tensor, checks: nan_checks.NanChecks) -> int:
        """How many entries changed; one wait, unless there is something to say.

        Raises:
            CompressionError: A score was NaN.
        """
        collapsed = (before > 0) & (after == 0)
        found = (after - before).abs().sum() + (collapsed.any() * _COLLAPSED) + checks.found(after.device) * _SPOILED
        number = int(found)
        if number >= _SPOILED:
            checks.refuse()
        if number % _SPOILED >= _COLLAPSED:
            self._warn_of_collapse(collapsed)
        return number % _COLLAPSED

    def _warn_of_collapse(self, collapsed: Tensor) -> None:
        for site, gone in zip(self._sites, collapsed.tolist(), strict=True):
            if gone:
                warnings.warn(
                    f"{self._settings.field}: every weight of {site.name} is pruned now, so nothing passes this "
                    "layer. Set layer_floor (0.01, say), distribution='erk', or a lower final_sparsity.",
                    stacklevel=5,
                )
