"""What a ``.pt2`` file may hold before PyTorch is given it: tensors as bytes, JSON, and no code.

PyTorch would unpickle what the archive's own tables tell it to, reads sizes that depend on inputs by sympy, which
evaluates them as Python, calls any function below ``torch`` that the graph names, and imports modules that structures
of inputs and outputs name. The files that this package writes need no pickles, and nothing but arithmetic and the
operators of ``operators.py``.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from lightning_compress.errors import CompressionError
from lightning_compress.export.pt2.operators import is_allowed

_PLAIN = re.compile(
    r"(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+\.json|models/\w+\.json|"
    r"archive_format|archive_version|byteorder|\.data/\w+|version)"
)
# Sympy's own form, as in Mul(Integer(2), Symbol('s0', positive=True, integer=True)).
_SYMBOL = re.compile(r"Symbol\('[su]\d+'")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),<>=]*")
_NAMES = re.compile(
    r"[su]\d+|positive|nonnegative|integer|True|False|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|"
    r"CeilDiv|CleanDiv|ModularIndexing|oo|int_oo"
)
# These keys make PyTorch import the module that they name.
_IMPORTS = frozenset({"__enum__", "default_factory_module"})
# These keys name what the graph calls.
_CALLS = frozenset({"target", "as_operator"})
_WORD = re.compile(r"[^\W\d]\w*")
_EXPONENT = re.compile(r"-?[1-4]|Integer\(-?[1-4]\)|Rational\(1, 2\)")
_MOST_POWERS = 4
_LARGEST_TABLE = 1 << 28


def refuse_code(data: bytes, path: object) -> None:
    """Check the bytes of a ``.pt2`` file.

    Raises:
        CompressionError: It is no such archive, is compressed, holds pickles or expressions other than arithmetic, or
            calls an operator that is not allowed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # The first part of each name is that of the archive.
            listed = archive.infolist()
            members = {item.filename.partition("/")[2]: item for item in listed}
            tables = [item for name, item in members.items() if name.endswith(".json")]
            large = [item.filename for item in tables if item.file_size > _LARGEST_TABLE]
            entries = [] if large else [entry for item in tables for entry in _entries(json.loads(archive.read(item)))]
    except (zipfile.BadZipFile, ValueError, RecursionError, NotImplementedError, EOFError, OSError) as error:
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file ({error}).") from error
    if "archive_format" not in members:
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file (not one of PyTorch 2.9 or newer).")
    unknown = [name for name, item in members.items() if item.file_size and not _PLAIN.fullmatch(name)]
    # Readers differ in which of two parts of one name they take.
    unknown += [item.filename for item in listed if item is not members[item.filename.partition("/")[2]]]
    # PyTorch stores tensors as they are: anything compressed may be far larger than the file.
    large += [item.filename for item in listed if item.compress_type != zipfile.ZIP_STORED]
    if unknown or large:
        raise CompressionError(
            f"{path}: holds {(unknown or large)[0]}, which may be code or a bomb. Files of this package hold neither."
        )
    for key, value in entries:
        _check(key, value, path)


def _check(key: str, value: Any, path: object) -> None:
    if key == "use_pickle" and value is not False:
        raise CompressionError(f"{path}: has tensors in pickles, which are code. Files of this package do not.")
    if key in _CALLS and isinstance(value, str) and not is_allowed(value):
        raise CompressionError(
            f"{path}: calls {value[:60]!r}, which is not among the operators that a file may call. If it is your own, "
            f"call lightning_compress.export.pt2.operators.trust('namespace.name') first."
        )
    if key == "guards_code" and value:
        raise CompressionError(f"{path}: has checks of inputs in Python, which are code. Files of this package do not.")
    if key in _IMPORTS:
        raise CompressionError(f"{path}: imports a module by {key!r}. Files of this package do not.")
    if key == "expr_str":
        rest = _SYMBOL.sub("(", value) if isinstance(value, str) else "'"
        if not _EXPRESSION.fullmatch(rest) or not all(_NAMES.fullmatch(word) for word in _WORD.findall(rest)):
            raise CompressionError(f"{path}: has the size {str(value)[:60]!r}, which is no arithmetic.")
        if not _is_small(value):
            raise CompressionError(f"{path}: has the size {value[:60]!r}, whose powers are too large to be a size.")


def _is_small(expression: str) -> bool:
    """Whether an expression is evaluated at once: numbers of 64 bits, and a few powers of exponents up to 4."""
    if expression.count("**") + expression.count("Pow") == 0 and not re.search(r"\d{20}", expression):
        return True
    try:
        found = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    exponents = [node.right for node in found if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)]
    for node in found:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pow":
            exponents += node.args[1:]
    numbers = [node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, int)]
    return (
        len(exponents) <= _MOST_POWERS
        and all(_EXPONENT.fullmatch(ast.unparse(exponent)) for exponent in exponents)
        and all(abs(number) < 2**63 for number in numbers)
    )


def _entries(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _entries(value)
    elif isinstance(tree, str) and tree[:1] in ("[", "{"):
        # The structures of inputs and outputs are JSON in JSON.
        yield from _entries(_decoded(tree))


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
