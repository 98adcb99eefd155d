"""What every committed notebook keeps to; that each runs is tested by nbval, which collects `notebooks/`."""

import ast

import nbformat
import pytest

from fgkd.study import PROJECT, STAGES

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda f: f.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_there_is_a_notebook_for_every_stage():
    assert {f.stem for f in NOTEBOOKS} == set(STAGES.values())


def test_it_opens_with_a_question_and_its_contract(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and first.source.splitlines()[0].endswith("?")
    assert all(f"**{word}.**" in first.source for word in ("Question", "Expectation", "Inputs and outputs", "Cost"))


def test_its_third_cell_holds_literal_parameters_and_the_fourth_checks_them(notebook):
    cells = notebook.cells[1:4]
    assert cells[1].metadata.tags == ["parameters"]
    assert all(line.count("=") == 1 for line in cells[1].source.splitlines())
    values = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cells[1].source).body}
    assert cells[2].source.startswith("studies.check_parameters(globals(), " + ", ".join(f"{n}={type(v).__name__}" for n, v in values.items()))


def test_its_cells_are_short_and_define_nothing(notebook):
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 15 and not cell.source.rstrip().endswith(";")
        assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(ast.parse(cell.source)))


def test_its_outputs_are_stored_in_order_without_paths_times_or_messages(notebook):
    assert [c.execution_count for c in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert len(nbformat.writes(notebook)) < 1_000_000
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type not in ("stream", "error"), cell.source
        assert not any(word in str(cell.outputs) for word in (str(PROJECT), "/home/", "/tmp/", "site-packages"))
        assert not {"papermill", "execution"} & set(cell.metadata)


def test_it_ends_with_a_caveat_an_exercise_and_a_link(notebook):
    last = notebook.cells[-1].source
    assert "**Caveat.**" in last and "**Exercise.**" in last and ".ipynb)" in last
