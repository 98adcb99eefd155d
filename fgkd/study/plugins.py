"""Plugin files as text: the losses that they define, and the code that a network, loss or metric uses.

Study files are checked, and fingerprints computed, without importing plugins or PyTorch.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from fgkd.study.errors import StudyError

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
NETWORK = "register_model"  # the decorator of timm that registers a network
LOSS = "loss"  # the decorator of `fgkd.distillation.losses` that registers an auxiliary loss
METRIC = "metric"  # the decorator of `fgkd.metrics` that registers a metric


def read(plugin: str | Path) -> str | None:
    """The text of a plugin, None where there is none."""
    try:
        return Path(plugin).read_text(encoding="utf-8") if os.path.isfile(plugin) else None
    except (OSError, UnicodeDecodeError):
        return None


@functools.lru_cache(maxsize=64)
def loss_options(text: str) -> dict[str, dict[str, Any]]:
    """The losses that a file decorates with `@loss`, each with its options and defaults.

    The options of a function, or of the `__init__` of a class, are its parameters with a default.
    Raises StudyError for a default that is not a literal, and SyntaxError.
    """
    losses = {}
    for node in _parse(text):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not _is_decorated(node, LOSS):
            continue
        if isinstance(node, ast.FunctionDef):
            losses[node.name] = _options(node)
        else:
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            init = next((method for method in methods if method.name == "__init__"), None)
            losses[node.name.lower()] = _options(init) if init else {}
    return losses


@functools.lru_cache(maxsize=1024)
def code_of(text: str, decorator: str, name: str | None = None) -> str:
    """The code that a decorator registers, under a name or any; '' if there is none.

    It covers the decorated functions and classes, and all that these use of their file, functions, classes,
    constants and imports, and a network's own entries of `default_cfgs`.  Comments, docstrings, formatting
    and the file's other networks and losses have no part in it, nor have other files that it imports.  A file
    that registers networks or metrics other than by decorating is taken whole.  Of

        WIDTH, DEPTH = 8, 4                # in: `build` uses one of its names
        OTHER = 9                          # out: nothing of `mine` leads to it
        def build(width): ...              # in: `mine` calls it
        @register_model
        def mine(**options): return build(WIDTH)
        @register_model
        def theirs(**options): return build(OTHER)

    the code of `mine` is the first line, `build` and `mine`.
    """
    if decorator != NETWORK and "fgkd" not in text:  # another package's decorator
        return ""
    try:
        body = _parse(text)
    except SyntaxError:  # reported when the plugin is imported
        return text
    registered = [node for node in body if _registered_name(node, decorator)]
    entries = [node for node in registered if name in (None, _registered_name(node, decorator))]
    if not entries:
        return text if decorator != LOSS and _is_called_otherwise(body, decorator) else ""
    bindings: dict[str, list[ast.stmt]] = {}
    for statement in body:
        for bound_name in _bound_names(statement):
            bindings.setdefault(bound_name, []).append(statement)
    loose = [s for s in body if isinstance(s, ast.Expr) and not isinstance(s.value, ast.Constant)]
    configs = bindings.get("default_cfgs", []) if decorator == NETWORK else []
    pending = [*entries, *loose, *configs]
    code: dict[int, str] = {}
    while pending:
        statement = pending.pop()
        if id(statement) in code:
            continue
        parts = _own_entries(statement, name) if statement in configs else [_without_docstrings(statement)]
        code[id(statement)] = "\n".join(map(ast.unparse, parts))
        for part in parts:
            names = [node.id for node in ast.walk(part) if isinstance(node, ast.Name)]
            pending += chain.from_iterable(bindings.get(used, []) for used in names)
    return "\n".join(code[id(statement)] for statement in body if id(statement) in code)


def _parse(text: str) -> list[ast.stmt]:
    """The statements of a file.  Raises SyntaxError for all that is no Python."""
    try:
        return ast.parse(text).body
    except (ValueError, RecursionError, MemoryError) as error:  # a zero byte, and brackets too deep
        raise SyntaxError(str(error)) from None


def _options(function: ast.FunctionDef) -> dict[str, Any]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = positional[len(positional) - len(arguments.defaults) :] + arguments.kwonlyargs
    defaults = [*arguments.defaults, *arguments.kw_defaults]
    return {
        argument.arg: _literal(default, argument.arg)
        for argument, default in zip(optional, defaults, strict=True)
    }


def _literal(default: ast.expr | None, option: str) -> Any:
    value = ast.unparse(default) if default else "nothing"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        raise StudyError(
            f"option '{option}' of a loss has {value} as its default: expected a literal, such as 2.0"
        ) from None


def _registered_name(node: ast.stmt, decorator: str) -> str | None:
    """The name under which a decorated function or class is registered, None if it is not."""
    if not isinstance(node, DEFINITIONS):
        return None
    if not _is_decorated(node, decorator):
        return None
    return node.name.lower() if decorator == LOSS and isinstance(node, ast.ClassDef) else node.name


def _is_decorated(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, decorator: str) -> bool:
    return any(_names(_called(part), decorator) for part in node.decorator_list)


def _called(decorator: ast.expr) -> ast.expr:
    return decorator.func if isinstance(decorator, ast.Call) else decorator


def _names(node: ast.AST, name: str) -> bool:
    return getattr(node, "id", getattr(node, "attr", None)) == name


def _is_called_otherwise(body: list[ast.stmt], decorator: str) -> bool:
    """Whether a file names the decorator elsewhere than above a definition or in an import."""

    def count(nodes: Iterable[ast.AST]) -> int:
        return sum(_names(node, decorator) for node in chain.from_iterable(map(ast.walk, nodes)))

    parts = chain.from_iterable(getattr(node, "decorator_list", ()) for node in body)
    decorations = [part for part in parts if _names(_called(part), decorator)]
    statements = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return count(statements) > count(decorations)


def _bound_names(statement: ast.stmt) -> set[str]:
    """The names of the module that a statement at its top level gives a value to."""
    if isinstance(statement, DEFINITIONS):
        return {statement.name}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


def _own_entries(statement: ast.stmt, model: str | None) -> list[ast.AST]:
    """A model's entries in a statement's literal dictionary; the statement itself where it has none."""
    literal = next((node for node in ast.walk(statement) if isinstance(node, ast.Dict)), None)
    if literal is None or not all(isinstance(key, ast.Constant) for key in literal.keys):
        return [statement]
    entries: list[ast.AST] = []
    for key, value in zip(literal.keys, literal.values, strict=True):
        if isinstance(key, ast.Constant) and str(key.value).partition(".")[0] == model:
            entries += [key, value]
    return entries


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    """The statement, the docstrings of its functions and classes removed in place."""
    for node in ast.walk(statement):
        if not isinstance(node, DEFINITIONS) or ast.get_docstring(node, clean=False) is None:
            continue
        node.body = node.body[1:] or [ast.Pass()]
    return statement
