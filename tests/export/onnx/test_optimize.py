"""Optimizing an exported graph: the same results as onnxscript's own passes, and work that grows with the graph."""

from __future__ import annotations

import cProfile
import pstats

import numpy as np
import onnx_ir as ir
from onnx import parser
from onnx.reference import ReferenceEvaluator

from lightning_compress.export.onnx.optimize import optimize, rewrites


def chain(nodes: int) -> ir.Model:
    lines = "\n".join(f"x{i + 1} = Add(x{i}, x{i})" if i % 2 else f"x{i + 1} = Relu(x{i})" for i in range(nodes))
    text = f'<ir_version: 10, opset_import: ["" : 21]> g (float[2] x0) => (float[2] x{nodes}) {{ {lines} }}'
    return ir.from_proto(parser.parse_model(text))


def calls(nodes: int) -> int:
    """Function calls that a chain of so many nodes takes."""
    model, profile = chain(nodes), cProfile.Profile()
    profile.runcall(optimize, model)
    return int(pstats.Stats(profile).total_calls)


def test_twice_the_nodes_are_twice_the_work() -> None:
    calls(10)
    assert calls(160) < 2.1 * calls(80)


def test_constants_are_folded_and_results_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) {
        two = Constant<value_float = 2.0>()
        four = Mul(two, two)
        same = Identity(x)
        again = Relu(same)
        first = Relu(again)
        y = Mul(first, four)
    }"""
    model = ir.from_proto(parser.parse_model(text))
    optimize(model)
    assert sorted(node.op_type for node in model.graph) == ["Mul", "Relu"]
    x = np.array([-1.0, 3.0], np.float32)
    np.testing.assert_array_equal(ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0], [0.0, 12.0])


def test_no_rewrite_looks_through_the_whole_graph() -> None:
    # A pattern that ends in several nodes is looked for among all nodes, at each node.
    slow = [rule.name for rule in rewrites() if not getattr(rule, "_target_pattern").has_single_output_node]  # noqa: B009
    assert slow == []
