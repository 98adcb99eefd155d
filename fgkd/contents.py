"""Content digests: what makes two files, or two versions of a plugin's network, the same wherever they lie.

A job's inputs from outside the study file (photos, weights, networks that plugins register) count by
content.  Their paths, their times and the machine do not: the same study in another folder, from copies of
its files, is the same.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

LENGTH = 16  # hexadecimal digits of a digest


def of_text(text: str) -> str:
    """The digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def of_file(path: str | Path) -> str | None:
    """The digest of a file's bytes, None where there is none; read once while its size and time stay the
    same."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _of_file(str(path), found.st_size, found.st_mtime_ns)


def of_network(model: str, plugins: tuple[str, ...]) -> str | None:
    """The digest of what plugins say of a timm model: '' where none registers it, None where a plugin is not
    there.

    It covers the function that `register_model` decorates and all that this one names in its file, functions,
    classes, constants and imports, and the model's own entries of `default_cfgs`.  Comments, docstrings,
    formatting and the file's other networks have no part in it, nor have other files that it imports.  A
    plugin that calls `register_model` by another way than as a decorator is taken whole.
    """
    return _of_registrations(plugins, "register_model", model.partition(".")[0])


def of_metrics(plugins: tuple[str, ...]) -> str | None:
    """The digest of the metrics that plugins register: '' where they register none, None where one is absent.

    It covers the functions that `fgkd.metrics.metric` decorates, and all that they name, as `of_network`.
    """
    return _of_registrations(plugins, "metric")


def _of_registrations(plugins: tuple[str, ...], decorator: str, name: str | None = None) -> str | None:
    """The digest of what the decorator registers, under `name` or any; '' for nothing, None without a file."""
    parts = []
    for plugin in plugins:
        try:
            text = Path(plugin).read_text()
        except (OSError, UnicodeDecodeError):
            return None
        if decorator != "metric" or "fgkd" in text:  # another file's `metric` is not ours
            parts.append(_registration(text, decorator, name))
    return of_text("\n".join(parts)) if any(parts) else ""


@functools.lru_cache(maxsize=1024)
def _of_file(path: str, size: int, time: int) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:LENGTH]


@functools.lru_cache(maxsize=1024)
def _registration(text: str, decorator: str, model: str | None) -> str:
    """The code of `text` that registers `model`, or any, and all that it uses; '' where it does not."""
    try:
        body = ast.parse(text).body
    except SyntaxError:  # reported when the plugin is imported
        return text
    registered = [node for node in body if _registers(node, decorator)]
    entries = [node for node in registered if model in (None, getattr(node, "name", None))]
    if not entries:
        decorators = {
            id(d)
            for node in body
            for d in getattr(node, "decorator_list", ())
            if _is_named(_called(d), decorator)
        }
        others = (
            node
            for top in body
            if not isinstance(top, ast.Import | ast.ImportFrom)
            for node in _outside(top, decorators)
        )
        return text if any(_is_named(node, decorator) for node in others) else ""
    bound: dict[str, list[ast.stmt]] = {}
    for statement in body:
        for name in _binds(statement):
            bound.setdefault(name, []).append(statement)
    loose = [s for s in body if isinstance(s, ast.Expr) and not isinstance(s.value, ast.Constant)]
    taken: dict[int, str] = {}
    waiting = [*entries, *loose, *(bound.get("default_cfgs", ()) if model else ())]
    while waiting:
        statement = waiting.pop()
        if id(statement) in taken:
            continue
        own = (
            _own(statement, model)
            if model and "default_cfgs" in _binds(statement)
            else [_without_docstrings(statement)]
        )
        taken[id(statement)] = "\n".join(map(ast.unparse, own))
        names = {node.id for part in own for node in ast.walk(part) if isinstance(node, ast.Name)}
        waiting += [s for name in names for s in bound.get(name, ())]
    return "\n".join(taken[id(s)] for s in body if id(s) in taken)


def _registers(node: ast.stmt, decorator: str) -> bool:
    return any(_is_named(_called(d), decorator) for d in getattr(node, "decorator_list", ()))


def _called(decorator: ast.expr) -> ast.expr:
    return decorator.func if isinstance(decorator, ast.Call) else decorator


def _is_named(node: ast.AST, name: str) -> bool:
    return getattr(node, "id", getattr(node, "attr", None)) == name


def _outside(node: ast.AST, left_out: set[int]) -> Iterator[ast.AST]:
    """The node and all below it, but for those in `left_out` and what is below these."""
    if id(node) in left_out:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _outside(child, left_out)


def _binds(statement: ast.stmt) -> set[str]:
    """The names of the module that a statement at its top level gives a value to."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    stored = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    aliases = {
        (n.asname or n.name).partition(".")[0] for n in ast.walk(statement) if isinstance(n, ast.alias)
    }
    inner = {n.name for n in ast.walk(statement) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return stored | aliases | inner


def _own(statement: ast.stmt, model: str) -> list[ast.AST]:
    """The entries of a model in the literal dictionary of a statement; the statement itself where it has
    none."""
    literal = next((node for node in ast.walk(statement) if isinstance(node, ast.Dict)), None)
    if literal is None or not all(isinstance(key, ast.Constant) for key in literal.keys):
        return [statement]
    pairs = zip(literal.keys, literal.values)
    return [
        part for key, value in pairs if str(key.value).partition(".")[0] == model for part in (key, value)
    ]


def _without_docstrings(statement: ast.stmt) -> ast.stmt:
    """The statement, the docstrings of its functions and classes removed in place."""
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return statement
