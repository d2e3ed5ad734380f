"""Distillation in a plain loop: watch the student, run the teacher on the same inputs, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_compress.distillation.losses import Logits, Loss, check_losses
from lightning_compress.distillation.network_calls import Call, Watch, pick_output
from lightning_compress.errors import CompressionError, closest
from lightning_compress.foundation.recorded_forward import unrecorded
from lightning_compress.targets import Candidate, select

_COMPILED = (
    " A network that was compiled and called before does not run hooks that are new to modules inside it: call "
    "torch.compiler.reset() before distilling."
)


class Distiller:
    """Adds distillation losses to the loss of an unchanged training step.

    Args:
        student: Root of the student's module names.
        teacher: The teacher. It is run in the mode it is in: put it in eval mode, on the student's device.
        losses: What is compared.
        task_weight: Factor of the step's own loss in the total.
        module: Full name of the student's module that is the network, where the step calls several. The teacher runs
            its module of that name if it is of the student's class, and is called itself otherwise.
        field: Name of the owner, for messages.

    Raises:
        CompressionError: A setting is not allowed, or a pattern names no module of the student or the teacher.

    Example:
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3).eval()
        >>> distiller = Distiller(student, teacher, [Logits(temperature=2.0)])
        >>> with distiller:
        ...     task = student(torch.randn(8, 4)).square().mean()
        >>> terms = distiller.terms()
        >>> distiller.total(task, terms).backward()
        >>> list(terms)
        ['logits']
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        losses: Sequence[Loss] | Mapping[str, Loss] = (Logits(),),
        *,
        task_weight: float = 1.0,
        module: str | None = None,
        field: str = "Distiller",
    ) -> None:
        self.teacher = teacher
        self.losses = check_losses(losses, f"{field}.losses")
        self.task_weight = task_weight
        self._field = field
        self._same_class = type(student) is type(teacher)
        self._pairs = {
            loss.name: None if loss.modules is None else _pairs(loss, student, teacher, field) for loss in self.losses
        }
        named = [pair for pairs in self._pairs.values() if pairs is not None for pair in pairs]
        self._watch = Watch(student, [ours for ours, _ in named], entry=module, owner=field)
        self._teacher_watch: Watch | None = None
        self._teacher_modules = [theirs for _, theirs in named]

    def __enter__(self) -> Distiller:
        self._watch.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._watch.__exit__(*exception)

    @property
    def called(self) -> bool:
        """Whether the student ran with gradients inside the last context."""
        return bool(self._watch.calls)

    def terms(self) -> dict[str, Tensor]:
        """Run the teacher on what the student was called with inside the last context, and compare.

        Returns:
            Loss name → its unweighted value, a scalar: the sum over its modules, the mean over the student's calls.

        Raises:
            CompressionError: Nothing was called, or what was called cannot be compared.
        """
        self._watch.settle()
        calls = self._watch.calls
        with unrecorded():
            for call in calls:
                call.refuse_changed(self._field)
            answers = [self._answer(call) for call in calls]
            found = {}
            for loss in self.losses:
                values = [self._compare(loss, *pair) for pair in zip(calls, answers, strict=True)]
                found[loss.name] = values[0] if len(values) == 1 else torch.stack(values).mean()
        self.forget()
        return found

    def forget(self) -> None:
        """Drop what the last context saw, which would stay in memory until the next."""
        self._watch.calls.clear()

    def total(self, task: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
        """What to back-propagate: the weighted sum of the step's own loss and the terms.

        Args:
            task: The step's own loss, a scalar.
            terms: Name of each loss → its value, a scalar.
        """
        with unrecorded():
            total = task if self.task_weight == 1.0 else self.task_weight * task
            for loss in self.losses:
                total = total + loss.weight * terms[loss.name]
            return total

    def _answer(self, call: Call) -> Call:
        """The teacher's call with the inputs of one of the student's."""
        if self._teacher_watch is None:
            entry = call.entry if self._same_class else ""
            self._teacher_watch = Watch(
                self.teacher, self._teacher_modules, entry=entry, graded=False, owner=f"{self._field}.teacher"
            )
        with torch.no_grad(), self._teacher_watch as watch:
            self.teacher.get_submodule(watch.entry or "")(*call.args, **call.kwargs)
        answer = watch.calls.pop()
        answer.refuse_changed(f"{self._field}.teacher")
        return answer

    def _compare(self, loss: Loss, ours: Call, theirs: Call) -> Tensor:
        pairs = self._pairs[loss.name]
        if pairs is None:
            return loss.compare(pick_output(ours.output, self._field), pick_output(theirs.output, self._field))
        values = []
        for mine, teachers in pairs:
            student, teacher = ours.outputs.get(mine, []), theirs.outputs.get(teachers, [])
            if not student or len(student) != len(teacher):
                raise CompressionError(
                    f"{self._field}: {type(loss).__name__}.modules names {mine!r}, which gave a tensor {len(student)} "
                    f"times when the step called the student, and as {teachers!r} {len(teacher)} times in the teacher. "
                    f"Name modules that run equally often in both.{_COMPILED if self._watch.compiled else ''}"
                )
            values += [loss.compare(*pair) for pair in zip(student, teacher, strict=True)]
        return values[0] if len(values) == 1 else torch.stack(values).sum()


def _pairs(loss: Loss, student: nn.Module, teacher: nn.Module, field: str) -> list[tuple[str, str]]:
    """Student module → teacher module for a loss on named modules."""
    owner = f"{field}.losses: {type(loss).__name__}"
    candidates = [Candidate((name,), module, name) for name, module in student.named_modules() if name]
    patterns = loss.modules or ()
    if isinstance(patterns, Mapping):
        for name in patterns:
            _refuse_unknown(student, name, f"{owner}.modules", "student")
        pairs = list(patterns.items())
    else:
        named = [found.name for found in select(candidates, targets=patterns, field=owner)]
        pairs = [(name, _counterpart(name, teacher)) for name in named]
    for _, name in pairs:
        _refuse_unknown(teacher, name, f"{owner}.modules", "teacher")
    return pairs


def _counterpart(name: str, teacher: nn.Module) -> str:
    """A module's name in the teacher, which may be a network alone: the student's ``net.block1`` is its ``block1``."""
    known = {known for known, _ in teacher.named_modules(remove_duplicate=False)}
    inner = name.partition(".")[2]
    return inner if name not in known and inner in known and inner else name


def _refuse_unknown(root: nn.Module, name: str, field: str, role: str) -> None:
    names = [known for known, _ in root.named_modules(remove_duplicate=False) if known]
    if name not in names:
        raise CompressionError.field(
            field,
            expected=f"the full name of a module of the {role}, {type(root).__name__}",
            got=name,
            fix=f"{closest(name, names)} Modules with other names in the teacher are given as "
            "{'student name': 'teacher name'}.",
        )
