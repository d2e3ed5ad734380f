"""What torch.onnx does to a graph after its translation, in time that grows with the graph and not with its square.

One rewrite of onnxscript, which makes a Split of two Slices, looks through the whole graph at each of its nodes
(release 0.7): a quarter of an export of 200 layers, and more of a longer one. No integer kernel wants that Split.
"""

from __future__ import annotations

from typing import Any

_ROUNDS = 2


def optimize(model: Any) -> None:
    """Inline functions, fold constants, and apply onnxscript's own rewrites but that one, in place.

    Args:
        model: An ``onnx_ir.Model``.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite

    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        fold_constants(model, onnx_shape_inference=True)
        rewrite(model, rewrites())
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def rewrites() -> list[Any]:
    """onnxscript's own rules, without the one that is slow.

    Example:
        >>> len(rewrites()) > 20
        True
    """
    from onnxscript import rewriter
    from onnxscript.rewriter.rules.common import slice_split_rule

    return [rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule is not slice_split_rule]
