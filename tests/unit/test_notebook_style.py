"""The notebooks keep the rules of `notebook_style`, and each rule is seen to fail where it is broken."""

import nbformat
import notebook_style as style
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

FILES = sorted(style.NOTEBOOKS.rglob("*.ipynb"))
PICTURE = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
TABLE = new_output("execute_result", {"text/html": "<table></table>", "text/plain": "0"}, execution_count=1)
CONTRACT = "# Is it so?\n\n" + "\n\n".join(f"**{word}.** Yes, 5 %." for word in style.CONTRACT)
LAST = "## What to keep in mind\n\n**Caveat.** Few.\n\n**Exercise.** Reach 90.5 %.\n\n[On](02_on.ipynb)"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_keeps_the_rules(file):
    assert style.check(style.read(file)) == []


def sentence(text):
    return new_output(
        "execute_result", {"text/markdown": text, "text/plain": "<Markdown>"}, execution_count=1
    )


def good():
    """A short lesson that keeps all rules."""
    cells = [
        new_markdown_cell(CONTRACT),
        new_code_cell("from fgkd import study as studies"),
        new_code_cell('study: str = "lesson"  # a study\nseed: int = -1  # one of its seeds'),
        new_code_cell(
            "studies.check_parameters(\n    globals(), study=str, seed=int\n)\nplan = studies.load(study)"
        ),
        new_markdown_cell(
            "## Is the figure read?\n\nAt $T = 0.5$, `0.7`, in a 95 % interval ([2605.15689](https://a.org))."
        ),
        new_code_cell("draw()", outputs=[PICTURE]),
        new_code_cell("table()", outputs=[TABLE]),
        new_markdown_cell("*Read it so.* It rises. [Back](#Is-the-figure-read?); notebook 02 goes on."),
        new_code_cell("answer()", outputs=[sentence("**Held.** 12.5 % of 40.")]),
        new_markdown_cell(LAST),
    ]
    cells[2].metadata["tags"] = ["parameters"]
    return cells


def check(tmp_path, monkeypatch, cells, name="01_it.ipynb", order=None):
    """What the rules find in these cells as a notebook, executed in order unless another is given."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    for number, cell in zip(order or range(1, len(code) + 1), code):
        cell.execution_count = number
    monkeypatch.setattr(style, "NOTEBOOKS", tmp_path)
    (tmp_path / "02_on.ipynb").write_text("{}")
    nbformat.write(new_notebook(cells=cells), tmp_path / name)
    return style.check(style.read(tmp_path / name))


def test_a_good_lesson_keeps_all_rules(tmp_path, monkeypatch):
    assert check(tmp_path, monkeypatch, good()) == []


def put(number, source):
    """A change: another source of a cell."""

    def change(cells):
        cells[number - 1].source = source

    return change


def add(number, new, *sources):
    """A change: new cells before a cell."""

    def change(cells):
        cells[number - 1 : number - 1] = [new(source) for source in sources]

    return change


def drop(number):
    return lambda cells: cells.pop(number - 1)


def tag(number, *tags):
    return lambda cells: cells[number - 1].metadata.update(tags=list(tags))


def output(number, *outputs):
    def change(cells):
        cells[number - 1].outputs = list(outputs)

    return change


PARAMETERS = 'study: str = "lesson"  # a study'
BROKEN = {
    "contract": [
        (drop(1), "begin the first cell with '# ...?'"),
        (put(1, CONTRACT.replace("so?", "so")), "begin the first cell with '# ...?'"),
        (put(1, CONTRACT.replace("**Cost.**", "Cost:")), "cell 1: the contract lacks '**Cost.**'"),
    ],
    "imports": [
        (put(2, "import math\nx = 1"), "'x = 1' among the imports"),
        (put(2, "\n".join(f"import m{i}" for i in range(11))), "11 lines of imports: keep to 10"),
        (put(6, "import math\ndraw()"), "cell 6: imports in the middle"),
        (put(6, "if True:\n    from a import b"), "cell 6: imports in the middle"),
        (put(2, "study = 1"), "among the imports: move it to a cell below"),
    ],
    "parameters": [
        (tag(3), "cells tagged 'parameters': none"),
        (tag(6, "parameters"), "cells tagged 'parameters': [3, 6]"),
        (put(3, 'study = "lesson"  # a study'), "write 'name: type = literal  # meaning'"),
        (put(3, 'study: str = "lesson"'), "write 'name: type = literal  # meaning'"),
        (put(3, f"{PARAMETERS} = x"), "the meaning without '='"),
        (put(3, "study: str | None = None  # a study"), "write 'name: type = literal  # meaning'"),
        (put(3, "study: str = f('x')  # a study"), "give a literal"),
        (put(3, "seed: int = 0.5  # a seed"), "'seed' is int and has the default 0.5"),
    ],
    "validation": [
        (put(4, "plan = studies.load(study)"), "cell 4: parameters unchecked"),
        (put(4, "studies.check_parameters(globals(), study=str)"), "(globals(), study=str, seed=int)"),
    ],
    "answer": [
        (output(9, sentence("It does.")), "cell 9: no answer"),
        (output(9), "cell 9: no answer"),
        (drop(10), "ends with code"),
        (put(10, LAST.replace("**Caveat.**", "But:")), "no **Caveat.** at the end"),
        (put(10, LAST.replace("**Exercise.**", "Try:")), "no **Exercise.** at the end"),
        (put(10, LAST.replace("[On](02_on.ipynb)", "")), "no a link on at the end"),
    ],
    "headings": [(put(5, "## Results"), "cell 5: the heading 'Results' says nothing")],
    "short_cells": [
        (put(6, "\n".join(["f()"] * 16)), "16 lines of code: split the cell at 15"),
        (put(5, "word " * 30), "a line of 150 characters: break 'word"),
        (put(6, f"f({'1, ' * 40})"), "cell 6: a line of"),
    ],
    "few_code_cells_in_a_row": [
        (drop(8), "cell 8: code cell 3 in a row"),
        (add(5, new_code_cell, "f()", "g()", "h()"), "cell 7: code cell 3 in a row"),
    ],
    "teaching_definitions": [
        (put(6, "def f(x):\n    return x"), "defines 'f': assert that it equals fgkd's"),
        (put(6, "class A:\n    pass\nassert True"), "defines 'A'"),
    ],
    "plain_code": [
        (put(6, "draw();"), "a trailing semicolon"),
        (put(6, "!ls"), "shell, magic or install"),
        (put(6, "%matplotlib inline"), "shell, magic or install"),
        (put(6, "subprocess.run(['ls'])"), "shell, magic or install"),
        (put(6, "warnings.filterwarnings('ignore')"), "filters warnings"),
        (put(6, "try:\n    f()\nexcept:\n    pass"), "a bare except"),
        (put(7, "table().style.format(2)"), "a Styler"),
    ],
    "stored_outputs": [
        (output(6, new_output("error", ename="E", evalue="e", traceback=[])), "a stored error"),
        (output(7, new_output("stream", name="stderr", text="50 %")), "a stored stream"),
        (lambda cells: cells[5].metadata.update(papermill={"duration": 1}), "times in its metadata"),
    ],
    "small_file": [
        (output(7, new_output("display_data", {"image/png": "a" * style.BYTES})), "draw smaller or fewer")
    ],
    "no_machine_paths": [
        (put(6, "draw('/home/ada/photos')"), "names '/home/ada'"),
        (output(9, sentence("12 in /tmp/x/report")), "cell 9: names '/tmp/x'"),
        (output(9, sentence(r"12 in C:\Users\ada")), "a place of this machine"),
        (output(9, sentence("12 in lib/site-packages/timm")), "names 'site-packages'"),
    ],
    "read_figures": [
        (add(8, new_markdown_cell, "## Another thing?"), "cell 6: a figure that nobody reads"),
        (output(7), "cell 6: a figure that nobody reads"),
        (output(7, PICTURE), "cell 6: a figure that nobody reads"),
    ],
    "computed_results": [
        (put(8, "It gains 12.5 points."), "'12.5' is typed"),
        (put(8, "It loses 4 points."), "'4 points' is typed"),
        (put(8, "R12 picks it in 80 % of groups."), "'80 %' is typed: compute a result"),
        (put(8, "It is right on 12 of 40 images."), "'12 of 40' is typed"),
        (put(8, "The correlation is -0.7, as claimed."), "'-0.7' is typed"),
        (put(10, LAST.replace("Few.", "It was 0.5 once.")), "cell 10: '0.5' is typed"),
    ],
    "links": [
        (put(8, "[Glossary](absent.md)"), "the link 'absent.md' leads nowhere"),
        (put(8, "[Up](#no-such-heading)"), "leads to no heading of 01_it.ipynb"),
        (put(8, "[Site](https://)"), "has no host"),
        (put(8, "[Mine](/etc/hosts)"), "is no relative path"),
        (put(8, "[Mine](file:///etc/hosts)"), "is no relative path"),
        (put(8, "Notebook 12 says more."), "there is no notebook 12"),
    ],
}
CASES = [(name, change, message) for name, changes in BROKEN.items() for change, message in changes]


@pytest.mark.parametrize("name, change, message", CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_each_rule_fails_where_it_is_broken(tmp_path, monkeypatch, name, change, message):
    cells = good()
    change(cells)
    found = [line for line in check(tmp_path, monkeypatch, cells) if line.endswith(f"[{name}]")]
    assert any(message in line for line in found), found


def test_every_rule_is_seen_to_fail():
    assert BROKEN.keys() == {rule.__name__ for rule in style.RULES}


def test_cells_executed_in_another_order_are_found(tmp_path, monkeypatch):
    (found,) = check(tmp_path, monkeypatch, good(), order=[1, 2, 3, 5, 4, 6])
    assert "executed in the order [1, 2, 3, 5, 4, 6]: run all cells from top to bottom" in found


def test_a_teaching_definition_that_is_asserted_equal_is_kept(tmp_path, monkeypatch):
    cells = good()
    cells[5].source = "def f(x):\n    return x"
    cells[5].outputs = []
    cells[6].source = "assert f(1) == ours(1)"
    assert check(tmp_path, monkeypatch, cells) == []


def test_a_solution_needs_no_contract_parameters_or_answer(tmp_path, monkeypatch):
    cells = [new_markdown_cell("## Why?"), new_code_cell("import math\nmath.pi"), new_markdown_cell("So.")]
    folder = tmp_path / "solutions"
    folder.mkdir()
    assert check(tmp_path, monkeypatch, cells, name="solutions/01_solutions.ipynb") == []
    cells[1].source = "!ls"
    (found,) = check(tmp_path, monkeypatch, cells, name="solutions/01_solutions.ipynb")
    assert "shell" in found
