"""What a notebook of the course keeps to, as rules that say how to mend what breaks them.

A rule is a function of a notebook that yields (cell, message); cells are numbered from 1, 0 is the whole.
`check` applies all of them; run as a program, this file prints what they find in the notebooks it is given.

Notebooks with a number are lessons: they have a contract, parameters and an answer.  All others, such as the
solutions of exercises, keep to the rules about single cells, outputs and links alone.
"""

import ast
import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
CONTRACT = ("Question", "Expectation", "Inputs and outputs", "Cost")
IMPORTS = 10  # lines
LINES = 15  # of code in a cell
IN_A_ROW = 2  # code cells, after the one that checks the parameters
LINE = 110  # characters
BYTES = 1_000_000
SETUP = 4  # contract, imports, parameters, validation
EMPTY_HEADINGS = {
    *("setup", "set-up", "run", "runs", "imports", "parameters", "plot", "plots", "figure", "figures"),
    *("results", "introduction", "conclusion", "summary", "training", "data", "code", "analysis"),
}
# No places of one machine, not even in a traceback.
PLACES = r"/(?:home|root|tmp|var|work|Users|mnt|opt)/[\w.-]+|[A-Z]:\\\\?\w|site-packages|dist-packages"
PARAMETER = re.compile(r"(\w+): (str|int|float|bool) = (\S.*?)  # ([^=]+)")
# What a reader takes for a result: a share, a number with decimals, a count of a total, a number of points.
RESULT = re.compile(
    r"(?<![\w.])[+-]?\d+(?:\.\d+)?\s?%|(?<![\w.])[+-]?\d+\.\d+\b"
    r"|\b\d+ of (?:the )?\d+\b|\b\d+ (?:percentage )?points\b"
)
# No results: formulas, code, links and what they point at, papers' numbers, the levels 95 % and 5 %.
NO_RESULT = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|arXiv[: ]\d+\.\d+|\b9?5\s?%", re.DOTALL
)
PROMISES = re.compile(r"\*\*(?:Expectation|Question|Cost|Hint)")  # typed before the result is seen
EXERCISES = re.compile(r"^(?:\*\*|#+ )(?:Exercise|Question)s?\b", re.MULTILINE)  # what a reader is to do


@dataclass(frozen=True)
class Notebook:
    """A notebook's file and its cells."""

    file: Path
    cells: list

    @property
    def is_lesson(self):
        """Whether it is numbered, as 01_what_is_ratio12 is, and no solution."""
        return bool(re.match(r"\d\d_", self.file.name)) and self.file.parent.name != "solutions"

    @cached_property
    def code(self):
        """Its code cells with their numbers."""
        return [(number, cell) for number, cell in self.numbered if cell.cell_type == "code"]

    @cached_property
    def prose(self):
        """Its markdown cells with their numbers."""
        return [(number, cell) for number, cell in self.numbered if cell.cell_type == "markdown"]

    @property
    def numbered(self):
        return list(enumerate(self.cells, 1))

    @property
    def title(self):
        return self.cells[0].source.partition("\n")[0] if self.cells else ""


def read(file):
    """Read a notebook; it must be JSON that nbformat knows."""
    return Notebook(Path(file), nbformat.read(file, as_version=4).cells)


def check(notebook):
    """All that breaks a rule, as lines 'name, cell 3: what, and how to mend it'."""
    rules = RULES if notebook.is_lesson else [rule for rule in RULES if rule not in LESSON]
    found = []
    for rule in rules:
        for cell, message in rule(notebook):
            place = f", cell {cell}" if cell else ""
            found.append(f"{notebook.file.name}{place}: {message} [{rule.__name__}]")
    return found


# The structure of a lesson


def contract(notebook):
    """The first cell asks the question and says what to expect, read, write and pay."""
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# .*\?$", notebook.title):
        yield 1, "no title that asks: begin the first cell with '# ...?'"
        return
    for word in CONTRACT:
        if f"**{word}.**" not in first.source:
            yield 1, f"the contract lacks '**{word}.**': add a paragraph that begins with it"


def imports(notebook):
    """The second cell imports, in few lines, and no other does."""
    if len(notebook.cells) < SETUP or notebook.cells[1].cell_type != "code":
        yield 2, "no imports: the second cell is a code cell that imports, and does nothing else"
        return
    if others := [
        node for node in statements(notebook.cells[1]) if not isinstance(node, ast.Import | ast.ImportFrom)
    ]:
        yield 2, f"'{ast.unparse(others[0])}' among the imports: move it to a cell below"
    lines = [line for line in notebook.cells[1].source.splitlines() if line.strip()]
    if len(lines) > IMPORTS:
        yield 2, f"{len(lines)} lines of imports: keep to {IMPORTS}, what is long belongs into fgkd"
    for number, cell in notebook.code[1:]:
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in tree(cell)):
            yield number, "imports in the middle: move them to the second cell"


def parameters(notebook):
    """The third cell, tagged so, holds a literal a line, with type and meaning, as papermill reads them."""
    tagged = [n for n, cell in notebook.numbered if "parameters" in cell.metadata.get("tags", ())]
    if tagged != [3]:
        yield 3, f"cells tagged 'parameters': {tagged or 'none'}: tag the third cell, and no other"
        return
    for line in notebook.cells[2].source.splitlines():
        parts = PARAMETER.fullmatch(line)
        if not parts:
            yield 3, f"'{line}': write 'name: type = literal  # meaning', the meaning without '='"
            continue
        name, kind, text, _ = parts.groups()
        try:
            value = ast.literal_eval(text)
        except ValueError:
            yield 3, f"'{name} = {text}': give a literal, and derive from it in the next cell"
            continue
        if type(value).__name__ != kind:
            yield 3, f"'{name}' is {kind} and has the default {text}: give one of its type"


def validation(notebook):
    """The fourth cell first checks each parameter, since papermill accepts any name."""
    wanted = re.findall(r"^(\w+): (\w+) =", notebook.cells[2].source, re.MULTILINE)
    call = f"studies.check_parameters(globals(), {', '.join(f'{name}={kind}' for name, kind in wanted)})"
    if [ast.unparse(node) for node in statements(notebook.cells[3])[:1]] != [call]:
        yield 4, f"parameters unchecked: begin the fourth cell with '{call}'"


def answer(notebook):
    """The last code cell prints the answer with a number in it; caveat, exercises and a link follow it."""
    if not notebook.code or notebook.cells[-1].cell_type != "markdown":
        yield len(notebook.cells), "ends with code: end with what to keep in mind, and where to go on"
        return
    number, cell = notebook.code[-1]
    if cell.execution_count and not re.search(r"\d", printed(cell)):
        yield number, "no answer: let the last code cell print one, Markdown(f'...') with a computed number"
    last = "\n\n".join(cell.source for cell in notebook.cells[number:])
    for what, mark in (
        ("**Caveat.**", r"\*\*Caveat"),
        ("**Exercise.**", EXERCISES),
        ("a link on", r"\.ipynb\)"),
    ):
        if not re.search(mark, last):
            yield len(notebook.cells), f"no {what} at the end: add it below the answer"


def headings(notebook):
    """A heading asks or claims."""
    for number, cell in notebook.prose:
        for heading in re.findall(r"^#+ (.+)$", without_code(cell.source), re.MULTILINE):
            if heading.strip(" .:").lower() in EMPTY_HEADINGS:
                yield number, f"the heading '{heading}' says nothing: make it a question or a claim"


# Cells


def short_cells(notebook):
    """A code cell is short, and its lines are."""
    for number, cell in notebook.code:
        lines = cell.source.splitlines()
        if len(lines) > LINES:
            yield number, f"{len(lines)} lines of code: split the cell at {LINES}, or move code into fgkd"
    for number, cell in notebook.numbered:
        for line in cell.source.splitlines():
            if len(line) > LINE and "](" not in line:
                yield number, f"a line of {len(line)} characters: break '{line[:40]}...' at {LINE}"
                break


def few_code_cells_in_a_row(notebook):
    """Prose stands between code cells, but for the first ones that set up."""
    row = 0
    for number, cell in notebook.numbered[SETUP if notebook.is_lesson else 1 :]:
        row = row + 1 if cell.cell_type == "code" else 0
        if row == IN_A_ROW + 1:
            yield number, f"code cell {row} in a row: say before it what to look for, or what was seen"


def teaching_definitions(notebook):
    """A function or class is one that a lesson teaches, and is asserted equal to the package's."""
    for place, (number, cell) in enumerate(notebook.code):
        names = [node.name for node in tree(cell) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        later = "\n".join(other.source for _, other in notebook.code[place : place + 3])
        asserted = " ".join(ast.unparse(node) for node in walk(later) if isinstance(node, ast.Assert))
        for name in names:
            if not re.search(rf"\b{name}\b", asserted):
                yield number, f"defines '{name}': assert that it equals fgkd's, or define it in fgkd"


def plain_code(notebook):
    """No trailing semicolon, no shell, no installs, no warning filters, no bare except, no Styler."""
    for number, cell in notebook.code:
        source = cell.source
        if source.rstrip().endswith(";"):
            yield number, "a trailing semicolon: leave it out, and end with what is to be shown"
        if re.search(r"^\s*[!%]", source, re.MULTILINE) or re.search(
            r"\bos\.system|subprocess|get_ipython|\bpip install", source
        ):
            yield number, "shell, magic or install: call Python, or name the command in the prose"
        if re.search(r"filterwarnings|simplefilter|catch_warnings", source):
            yield number, "filters warnings: mend what warns"
        if re.search(r"except\s*:", source):
            yield number, "a bare except: name the error that may come"
        if re.search(r"\.style\b", source):
            yield number, "a Styler: show a plain table, rounded by .round()"


# Outputs


def stored_outputs(notebook):
    """Stored as a fresh run from top to bottom leaves them, without errors, streams and times."""
    counts = [cell.execution_count for _, cell in notebook.code]
    if counts != list(range(1, len(counts) + 1)):
        yield 0, f"executed in the order {counts}: run all cells from top to bottom, as 'make stored' does"
    for number, cell in notebook.code:
        kinds = {output.output_type for output in cell.outputs}
        if "error" in kinds:
            yield number, "a stored error: mend the cell and run all again"
        if "stream" in kinds:
            yield number, "a stored stream: show a value instead of printing, and silence progress bars"
        if {"papermill", "execution"} & set(cell.metadata):
            yield number, "times in its metadata: 'make stored' takes them out"


def small_file(notebook):
    """A notebook is small enough to read on the web."""
    size = notebook.file.stat().st_size
    if size >= BYTES:
        yield 0, f"{size:,} bytes: draw smaller or fewer figures, to stay below {BYTES:,}"


def no_machine_paths(notebook):
    """Neither code nor outputs name a place that only one machine has."""
    for number, cell in notebook.numbered:
        shown = [output for output in cell.get("outputs", ()) if output.output_type != "error"]
        text = cell.source + json.dumps([without_pictures(output) for output in shown])
        if place := re.search(PLACES, text):
            yield number, f"names '{place[0]}', a place of this machine: show a path below the study"


def read_figures(notebook):
    """After a figure, or the table of its numbers, comes a reading: prose or a printed sentence."""
    for number, cell in notebook.code:
        if not has_figure(cell):
            continue
        following = notebook.cells[number : number + 2]
        if following and has_table(following[0]) and not printed(following[0]):
            following = following[1:]
        if not following or not is_reading(following[0]):
            yield number, "a figure that nobody reads: say after it, or its table, what is to be seen"


# Prose


def computed_results(notebook):
    """What a reader takes for a result is computed: prose holds no share, decimal or count of a total."""
    for number, cell in notebook.prose:
        if number == 1 and notebook.is_lesson:
            continue
        for paragraph in paragraphs_but_promises(NO_RESULT.sub(" ", cell.source)):
            if typed := RESULT.search(paragraph):
                yield (
                    number,
                    f"'{typed[0].strip()}' is typed: compute a result, Markdown(f'...'); write a definition "
                    "as a formula, $...$, or in words",
                )


def links(notebook):
    """A link leads to a file, a heading or a site; a notebook that prose names is there."""
    for number, cell in notebook.prose:
        text = without_code(cell.source)
        for target in re.findall(r"\[[^\]]*\]\(([^)]*)\)", text):
            if problem := broken_link(notebook, target.split(" ")[0]):
                yield number, f"the link '{target}' {problem}"
        for name in re.findall(r"[Nn]otebooks? (\d\d)\b", text):
            if not list(NOTEBOOKS.glob(f"{name}_*.ipynb")):
                yield number, f"there is no notebook {name}: name one of those in notebooks/"


def broken_link(notebook, target):
    """What is wrong with a link's target; None where it leads somewhere."""
    if re.match(r"https?://", target):
        return None if re.match(r"https?://[\w-]+(\.[\w-]+)+(/|$|\?|#)", target) else "has no host"
    if re.match(r"[a-z]+:|/", target):
        return "is no relative path: give one from the notebook's folder"
    path, _, anchor = target.partition("#")
    file = (notebook.file.parent / path).resolve() if path else notebook.file
    if not file.exists():
        return "leads nowhere: give the path of a file from the notebook's folder"
    if anchor and anchor.lower() not in anchors(file):
        return f"leads to no heading of {file.name}: expected one of its headings, blanks as '-'"
    return None


def anchors(file):
    """The anchors that GitHub and Jupyter give to the headings of a notebook or a Markdown file."""
    text = file.read_text()
    if file.suffix == ".ipynb":
        text = "\n\n".join(cell.source for _, cell in read(file).prose)
    names = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", without_code(text), re.MULTILINE):
        plain = re.sub(r"[`*_]", "", heading)
        names |= {re.sub(r"[^\w -]", "", plain).replace(" ", "-"), heading.replace(" ", "-")}
    return {name.lower() for name in names}


# What rules share


def tree(cell):
    """All nodes of a cell's syntax tree, the module first; none where it is not Python."""
    return walk(cell.source) if cell.cell_type == "code" else []


def statements(cell):
    """A code cell's statements; none of another cell."""
    return tree(cell)[0].body if tree(cell) else []


def walk(source):
    try:
        return list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return []


def has_figure(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def has_table(cell):
    return cell.cell_type == "code" and any("text/html" in output.get("data", {}) for output in cell.outputs)


def printed(cell):
    """The sentences that a code cell prints; '' for another cell."""
    outputs = cell.get("outputs", ())
    return "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs).strip()


def is_reading(cell):
    """Whether a cell is prose that does not open a new section, or prints a sentence."""
    return not cell.source.startswith("#") if cell.cell_type == "markdown" else bool(printed(cell))


def without_pictures(output):
    return {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}


def without_code(text):
    return re.sub(r"```.*?```|`[^`]*`", " ", text, flags=re.DOTALL)


def paragraphs_but_promises(text):
    """A cell's paragraphs, without those that say what is expected, and all from its exercises on."""
    text = EXERCISES.split(text)[0]
    return [part for part in re.split(r"\n\s*\n", text) if not PROMISES.match(part.strip())]


LESSON = [contract, imports, parameters, validation, answer]
RULES = [
    *LESSON,
    *(headings, short_cells, few_code_cells_in_a_row, teaching_definitions, plain_code),
    *(stored_outputs, small_file, no_machine_paths, read_figures, computed_results, links),
]


if __name__ == "__main__":
    files = sys.argv[1:] or sorted(NOTEBOOKS.rglob("*.ipynb"))
    problems = [line for file in files for line in check(read(file))]
    print("\n".join(problems) or "all rules are kept")
    sys.exit(bool(problems))
