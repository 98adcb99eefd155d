"""The house's habits: which room may import which, how long things are, what is installed."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fgkd"
# A module may import those of its own level and of the levels after it; within a level no import is circular.
LEVELS = (
    {"cli"},
    {"choose"},
    {"engine"},
    {"distillation", "report"},
    {"models"},
    {"data"},
    {"analysis"},
    {"metrics"},
    {"study"},
)
BOTTOM = len(LEVELS)  # modules of no room, as contents: they import none
ENGINE_ONLY = {"papermill", "snakemake", "nbconvert", "nbclient", "jupyter_client"}
LINE = 110
SUMMARY = 90
FUNCTION = 60


def parse(files):
    """The syntax tree of each file, by its dotted name below the package's folder."""
    return {module_name(file): ast.parse(file.read_text()) for file in files}


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module):
    return module.split(".")[1] if "." in module else ""


def level(module):
    return next((number for number, rooms in enumerate(LEVELS) if room(module) in rooms), BOTTOM)


def imports(module, tree, modules):
    """(module imported, line) of the package's own modules that a module names, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], base])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                if below in modules:
                    yield below, node.lineno
                elif base in modules:
                    yield base, node.lineno


def upward_imports(trees):
    """Imports of a room that is above the importing one."""
    wrong = []
    for module, tree in trees.items():
        for other, line in imports(module, tree, trees):
            if room(other) and room(module) and level(other) < level(module):
                wrong.append(f"{module}:{line} imports {other}")
    return wrong


def circles(trees):
    """Modules that import themselves through others, as one example each."""
    graph = {module: {other for other, _ in imports(module, tree, trees)} for module, tree in trees.items()}
    found = []
    for start in graph:
        paths = [[start, other] for other in graph[start] if other != start]
        visited = set()
        while paths:
            path = paths.pop()
            if path[-1] == start:
                found.append(" -> ".join(path))
                break
            if path[-1] not in visited:
                visited.add(path[-1])
                paths += [[*path, other] for other in graph[path[-1]]]
    return found


def outside_imports(trees):
    """Imports of the engine's libraries outside the engine, the report and the commands."""
    wrong = []
    for module, tree in trees.items():
        if room(module) in ("engine", "report", "cli"):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            wrong += [f"{module}:{node.lineno} {name}" for name in names if name.split(".")[0] in ENGINE_ONLY]
    return wrong


def long_functions(trees):
    """Functions of more than FUNCTION lines, decorators not counted."""
    wrong = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION:
                    wrong.append(f"{module}.{node.name}: {lines} lines")
    return wrong


def long_summaries(trees):
    """Public functions and classes whose docstring's first line is longer than SUMMARY."""
    wrong = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if len(first) > SUMMARY:
                wrong.append(f"{module}.{node.name}: {len(first)} characters")
    return wrong


def silent_packages(trees):
    """Rooms that do not say what lives in them, and who may import what."""
    texts = {module: ast.get_docstring(tree) or "" for module, tree in trees.items()}
    rooms = [module for module in texts if any(other.startswith(f"{module}.") for other in texts)]
    return [module for module in rooms if module != PACKAGE.name and "import" not in texts[module].lower()]


def long_lines(files):
    """Lines of more than LINE characters; of notebooks those of code cells, which ruff reads too."""
    wrong = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if len(line) > LINE and "://" not in line:
                wrong.append(f"{file.relative_to(ROOT)}:{number}: {len(line)} characters")
    return wrong


TREES = parse(sorted(PACKAGE.rglob("*.py")))
RULES = [upward_imports, circles, outside_imports, long_functions, long_summaries, silent_packages]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    assert rule(TREES) == []


def test_no_line_of_code_is_long():
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    assert long_lines(sorted(files)) == []


def test_the_map_names_every_room_from_the_top_down_and_every_module():
    text = (PACKAGE / "README.md").read_text()
    rooms = re.findall(r"^\| `(\w+)/?` ", text, re.MULTILINE)
    numbers = [next(n for n, level in enumerate(LEVELS) if name in level) for name in rooms]
    assert numbers == sorted(numbers) and sorted(rooms) == sorted(chain.from_iterable(LEVELS))
    modules = {name.split(".")[-1] for name in TREES if name.count(".") == 2}
    assert modules <= {*re.findall(r"`(\w+)`", text)} | {"errors"}


# Each rule is seen to fail on a package that breaks it.

SPOILT = {
    "upward_imports": [
        ("data/spoilt.py", "from fgkd.models import cal\n"),
        ("data/spoilt.py", "def f():\n    from fgkd.distillation import stages\n"),
        ("models/spoilt.py", "import fgkd.report.plots\n"),
        ("metrics/spoilt.py", "from fgkd.study import Job\nfrom ..models import cal\n"),
        ("contents.py", "from fgkd import study\n"),
    ],
    "circles": [
        ("data/images.py", "def f():\n    from fgkd.data import folders\n"),
        ("study/errors.py", "from fgkd.analysis import records\n"),
    ],
    "outside_imports": [
        ("data/spoilt.py", "import snakemake.api\n"),
        ("data/spoilt.py", "def f():\n    from papermill import execute_notebook\n"),
    ],
    "long_functions": [("data/spoilt.py", "def f():\n" + "    x = 1\n" * FUNCTION)],
    "long_summaries": [
        ("data/spoilt.py", f'def f():\n    """{"a" * (SUMMARY + 1)}"""\n'),
        ("data/spoilt.py", f'class A:\n    """{"a" * (SUMMARY + 1)}\n\n    More.\n    """\n'),
    ],
    "silent_packages": [("data/__init__.py", '"""Data."""\n')],
}


@pytest.mark.parametrize(
    "name, file, text", [(name, *change) for name, changes in SPOILT.items() for change in changes]
)
def test_each_rule_fails_where_it_is_broken(name, file, text):
    rule = next(rule for rule in RULES if rule.__name__ == name)
    path = PACKAGE / file
    kept = path.read_text() if path.exists() and path.name != "__init__.py" else ""
    spoilt = TREES | {module_name(path): ast.parse(text + kept)}
    assert set(rule(spoilt)) > set(rule(TREES))


def test_a_long_line_is_found(tmp_path, monkeypatch):
    file = tmp_path / "long.py"
    file.write_text(f"# {'a' * LINE}\n# short\n# see https://example.org/{'a' * LINE}\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert long_lines([file]) == [f"long.py:1: {LINE + 2} characters"]


# The environment


def test_conda_users_get_every_package_that_the_project_names():
    """`environment.yml` names each with its reason; the lock, which it installs, pins each."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", line)[0] for line in wanted}
    reasons = (ROOT / "environment.yml").read_text()
    assert not [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", reasons)]
    lock = (ROOT / "requirements.lock").read_text()
    locked = set(re.findall(r"^([\w-]+)(?:\[.*\])?==", lock, re.MULTILINE))
    assert names <= locked


# Imports that must stay cheap


def loaded(modules):
    """The names of all modules in a new process that imports these."""
    code = (
        f"import sys, importlib\nfor name in {[*modules]}: importlib.import_module(name)\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_neither_the_core_nor_the_commands_load_the_engines_libraries():
    core = {name for name in TREES if room(name) not in ("engine", "report")} - {"fgkd.choose.run"}
    assert not ENGINE_ONLY & loaded(core)


def test_the_commands_and_what_reads_records_load_no_torch():
    light = [name for name in TREES if room(name) in ("cli", "engine", "analysis", "study")]
    light.remove("fgkd.engine.warm")  # it is there to load them
    assert not {"torch", "timm"} & loaded([*light, "fgkd.metrics.claims"])
