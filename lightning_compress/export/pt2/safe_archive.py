"""What a ``.pt2`` file may hold before PyTorch is given it: tensors as bytes, JSON, and no code.

PyTorch would unpickle what the archive's own tables tell it to, reads sizes that depend on inputs by sympy, which
evaluates them as Python, writes every name into Python source that it runs, calls any function below ``torch`` that the
graph names, and imports modules that structures of inputs and outputs name. The files that this package writes need no
pickles, and nothing but identifiers, arithmetic and the operators of ``operators.py``.

What was checked is written into a new archive: readers of archives differ in where they look for the list of parts.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from lightning_compress.errors import CompressionError
from lightning_compress.export.pt2.operators import is_allowed

_PLAIN = re.compile(
    r"(data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+\.json|models/\w+\.json|"
    r"archive_format|archive_version|byteorder|\.data/\w+|version)"
)
# Pickled inputs, which are left out: the part is there, and empty.
_NO_INPUTS = re.compile(r"data/sample_inputs/\w+\.pt")
# Sympy's own form, as in Mul(Integer(2), Symbol('s0', positive=True, integer=True)).
_SYMBOL = re.compile(r"Symbol\('[su]\d{1,6}'")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),<>=]*")
_NAMES = re.compile(
    r"[su]\d{1,6}|positive|nonnegative|integer|True|False|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|"
    r"CeilDiv|CleanDiv|ModularIndexing|oo|int_oo|GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|Equality|"
    r"Unequality|And|Or|Not"
)
# These keys make PyTorch import the module that they name.
_IMPORTS = frozenset({"__enum__", "default_factory_module"})
# These keys name what the graph calls.
_CALLS = frozenset({"target", "as_operator"})
_WORD = re.compile(r"[^\W\d]\w*")
_EXPONENT = re.compile(r"-?[1-4]|Integer\(-?[1-4]\)|Rational\(1, 2\)")
_MOST_POWERS = 4
_LARGEST_DEGREE = 16
_LONGEST_EXPRESSION = 4096
# Up to the number in its name, PyTorch counts one by one.
_RANGE = re.compile(r"[a-z]+\d{1,6}")
_LARGEST_TABLE = 1 << 26
# PyTorch puts names between quotes, or as they are, into the Python source of the module.
_QUOTABLE = re.compile(r"[^\"'\\\x00-\x1f\x7f\u2028\u2029]*")
_KEY_OF_STRUCTURE = re.compile(r"[\w./ -]*")
_IDENTIFIERS = frozenset({"name", "as_name", "forward_arg_names"})
# These keys hold JSON as text.
_STRUCTURES = frozenset({"in_spec", "out_spec"})
# PyTorch reads no table of tables under these keys: one that is there is a tensor of that name.
_FIELDS = frozenset({"metadata", "use_pickle", "guards_code", "expr_str"})


def checked_archive(path: str | Path) -> bytes:
    """The parts of a ``.pt2`` file that PyTorch reads, in an archive of our own.

    Raises:
        CompressionError: It is missing or no such archive, is compressed, holds pickles, names that are none or
            expressions other than arithmetic, has tensors larger than their bytes, or calls an operator that is not
            allowed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # The first part of each name is that of the archive.
            listed = archive.infolist()
            members = {item.filename.partition("/")[2]: item for item in listed}
            # Readers differ in which of two parts of one name they take.
            unknown = [item.filename for item in listed if item is not members[item.filename.partition("/")[2]]]
            unknown += [name for name, item in members.items() if item.file_size and not _PLAIN.fullmatch(name)]
            # PyTorch stores tensors as they are: anything compressed may be far larger than the file.
            unknown += [item.filename for item in listed if item.compress_type != zipfile.ZIP_STORED]
            unknown += [n for n, item in members.items() if n.endswith(".json") and item.file_size > _LARGEST_TABLE]
            # Parts that share bytes, which older releases of Python read.
            if sum(item.file_size for item in listed) > Path(path).stat().st_size:
                unknown.append("parts larger than itself")
            if unknown:
                raise CompressionError(
                    f"{path}: holds {unknown[0]}, which may be code or a bomb. Files of this package hold neither."
                )
            kept = {n: item for n, item in members.items() if _PLAIN.fullmatch(n) or _NO_INPUTS.fullmatch(n)}
            parts = {name: archive.read(item) for name, item in kept.items()}
            tables = {name: json.loads(part) for name, part in parts.items() if name.endswith(".json")}
            for name, table in tables.items():
                _check_all(table, path)
                _refuse_larger(name, table, parts, path)
                parts[name] = json.dumps(table).encode()
    except CompressionError:
        raise
    except Exception as error:  # What a damaged list of parts breaks in zipfile has many names.
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file ({error}).") from error
    if "archive_format" not in parts:
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file (not one of PyTorch 2.9 or newer).")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as clean:
        for name, part in parts.items():
            clean.writestr(zipfile.ZipInfo(f"model/{name}"), part)
    return buffer.getvalue()


def _refuse_larger(name: str, table: Any, parts: dict[str, bytes], path: object) -> None:
    """Refuse tensors that are larger than the bytes they are made of: empty ones would be allocated as zeros."""
    for tensor, item in _items(table.get("config") if isinstance(table, dict) else None):
        meta = item.get("tensor_meta") if isinstance(item, dict) else None
        if not isinstance(meta, dict):
            continue
        stored = len(parts.get(f"{name.rpartition('/')[0]}/{item.get('path_name')}", b""))
        sizes, strides = ([_whole(size) for size in meta.get(key) or []] for key in ("sizes", "strides"))
        if prod(sizes) > stored or len(sizes) != len(strides) or overlaps(sizes, strides):
            raise CompressionError(
                f"{path}: {tensor} is said to have the shape {sizes} and the strides {strides}, more elements than its "
                f"{stored} bytes hold."
            )


def overlaps(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two indices of a tensor lead to one element.

    Example:
        >>> overlaps([2, 3], [3, 1]), overlaps([2, 3], [0, 1])
        (False, True)
    """
    last = 0
    for stride, size in sorted((stride, size) for size, stride in zip(sizes, strides, strict=True) if size > 1):
        if stride <= last:
            return True
        last += (size - 1) * stride
    return False


def _whole(size: Any) -> int:
    """A size as it is stored, ``{"as_int": 3}``."""
    found = size.get("as_int") if isinstance(size, dict) else None
    if type(found) is not int or not 0 <= found < 1 << 63:
        raise ValueError(f"a stored tensor has the size {str(size)[:60]}")
    return found


def _items(tree: Any) -> Iterator[tuple[str, Any]]:
    yield from tree.items() if isinstance(tree, dict) else ()


def _check_all(tree: Any, path: object, key: str = "", *, structure: bool = False) -> None:
    """Check a table, or the structure of inputs or outputs in it, and empty what only debuggers read.

    Args:
        tree: What is in it.
        path: The file, for messages.
        key: The key that it is under.
        structure: Whether it is JSON that was text in the table.
    """
    if isinstance(tree, dict):
        for name, value in tree.items():
            _check_text(name, "", path, structure)
            if name not in _FIELDS or not _holds_tables(value):
                if name == "metadata":
                    tree[name] = {}
                    continue
                _check(name, value, path)
            if key == "range_constraints" and not _RANGE.fullmatch(name):
                raise CompressionError(f"{path}: has the range of {name[:60]!r}, which is no size.")
            # Texts that operators are called with, such as messages, are written as literals.
            if (key, name) != ("arg", "as_string"):
                _check_all(value, path, name, structure=structure)
    elif isinstance(tree, list):
        for value in tree:
            _check_all(value, path, key, structure=structure)
    elif isinstance(tree, str) and key != "expr_str":
        inner = _decoded(tree) if structure or key in _STRUCTURES else None
        if inner is None:
            _check_text(tree, key, path, structure)
        else:
            _check_all(inner, path, key, structure=True)


def _holds_tables(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(below, dict) and below for below in value.values())


def _check_text(text: str, key: str, path: object, structure: bool) -> None:
    plain = (_KEY_OF_STRUCTURE if structure else _QUOTABLE).fullmatch(text)
    if plain is None or (key in _IDENTIFIERS and text and not text.isidentifier()):
        raise CompressionError(
            f"{path}: has the name {text[:60]!r}. PyTorch writes names into Python source, where this could be code."
        )


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
        words = all(_NAMES.fullmatch(word) for word in _WORD.findall(rest))
        if not words or not _EXPRESSION.fullmatch(rest) or "<<" in rest or ">>" in rest:
            raise CompressionError(f"{path}: has the size {str(value)[:60]!r}, which is no arithmetic.")
        if not _is_small(value):
            raise CompressionError(f"{path}: has the size {value[:60]!r}, which is too large to be a size.")


def _is_small(expression: str) -> bool:
    """Whether an expression is evaluated at once: short, numbers of 64 bits, and a few powers of low degree."""
    if len(expression) > _LONGEST_EXPRESSION:
        return False
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
        and prod(int(re.findall(r"\d+", ast.unparse(exponent))[0]) for exponent in exponents) <= _LARGEST_DEGREE
        and all(abs(number) < 2**63 for number in numbers)
    )


def _decoded(text: str) -> Any:
    """The JSON in a text; ``None`` where there is none."""
    if text.lstrip()[:1] not in ("[", "{", '"'):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None
