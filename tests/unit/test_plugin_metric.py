"""A metric of a plugin: one function, a column of the banks, a row of the correlations, by records alone."""

import shutil

import pytest
import torch

from fgkd import cli, metrics
from fgkd.analysis import records, selection
from fgkd.distillation import stages
from fgkd.metrics import claims
from fgkd.study import Job

BANK = Job("bank", "birds", "resnet", "FT")
PLUGIN = '''"""A metric of a reader's own."""
from fgkd.metrics import margin, metric


@metric(claimed="smaller", label="log margin", source="the margin on a logarithmic scale")
def log_margin(logits):
    return margin(logits).log1p()
'''


@pytest.fixture(autouse=True)
def forget_plugins():
    """Each test begins and ends with the built-in metrics alone."""
    builtin = {name: claim for name, claim in claims.METRICS.items() if not claim.plugin}
    yield
    claims.METRICS.clear()
    claims.METRICS.update(builtin)
    claims.PLUGIN_METRICS.clear()


@pytest.fixture
def extended(finished, make_study, tmp_path):
    """The finished study with the plugin, whose banks have to be written again."""
    (tmp_path / "mine.py").write_text(PLUGIN)
    return make_study({"plugins": ["mine.py"]})


def test_it_is_a_column_of_the_banks_a_row_of_the_correlations_and_a_rule(extended):
    incomplete = {job.stage for job in extended.jobs() if not records.is_complete(extended, job)}
    assert "bank" in incomplete and not incomplete & {"data", "teacher", "distill"}
    tables = stages.study_tables(extended)
    _, bank = stages.bank(extended, "birds", "resnet", "FT")
    logits = torch.cat([bank.logits(view) for view in range(len(bank.files))])
    banks = tables["metrics"].set_index(["teacher", "strategy"])
    expected = metrics.margin(logits).log1p().mean().item()
    assert banks.log_margin["resnet", "FT"] == pytest.approx(expected, rel=1e-3)
    assert tables["epochs"].log_margin.notna().all()
    rows = tables["correlations"].set_index("metric").loc["log_margin"]
    assert len(rows) == 2 and (rows.direction == -1).all() and rows.rho.notna().any()
    assert "log_margin" in set(tables["headline"].metric)
    outcomes = selection.selection_outcomes(records.points(tables), tables["students"])
    assert "log margin" in set(outcomes.rule)


def test_the_report_shows_it_from_records_alone_where_the_plugin_is_not(extended, tmp_path, capsys):
    before = stages.study_tables(extended)["correlations"]
    stored = [file for job in extended.jobs() for file in extended.path(job).rglob("record.json")]
    kept = {file: file.read_bytes() for file in stored}
    shutil.rmtree(extended.folder)
    for file, content in kept.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "mine.py").unlink()
    del claims.METRICS["log_margin"], claims.PLUGIN_METRICS["log_margin"]
    assert cli.main(["report", extended.file]) == 0
    assert "log_margin" in capsys.readouterr().out
    tables = extended.folder / "tables"
    assert "log_margin" in (tables / "metrics.csv").read_text().splitlines()[0]
    count = (before.metric == "log_margin").sum()
    assert count and (tables / "correlations.csv").read_text().count(",log_margin,") == count
    assert "log margin" in (extended.folder / "report" / "index.html").read_text()


def test_banks_are_stale_by_the_metrics_code_alone_and_of_no_study_without_it(extended, finished, tmp_path):
    assert records.record(finished, BANK) and not records.record(extended, BANK)
    first = extended.fingerprint(BANK)
    (tmp_path / "mine.py").write_text(PLUGIN.replace("A metric of a reader's own.", "Mine."))
    assert extended.fingerprint(BANK) == first
    (tmp_path / "mine.py").write_text(PLUGIN.replace("log1p", "sqrt"))
    assert extended.fingerprint(BANK) != first
    (tmp_path / "mine.py").write_text("import timm\n")
    assert extended.fingerprint(BANK) == finished.fingerprint(BANK)
    assert records.record(extended, BANK)
    (tmp_path / "mine.py").unlink()
    assert extended.fingerprint(BANK) == finished.fingerprint(BANK)


def test_tables_of_a_study_without_it_do_not_know_it(finished):
    before = records.collect(finished)["correlations"]
    metrics.metric(claimed="larger")(log_margin)
    assert "log_margin" in metrics.METRICS
    assert records.collect(finished)["correlations"].equals(before)


def test_samples_reach_it_as_fp64_and_it_cannot_spoil_the_others():
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(40, dtype=torch.long)
    plain = metrics.all_samples(logits, labels)

    @metrics.metric(claimed="larger")
    def spoiler(logits):
        assert logits.dtype == torch.float64
        return logits.zero_().sum(1)

    metrics.metric(claimed="smaller")(log_margin)
    values = metrics.all_samples(logits, labels)
    assert torch.equal(values["log_margin"], metrics.margin(logits).log1p())
    assert all(torch.equal(values[name], value) for name, value in plain.items())
    assert metrics.summarize_all(values)["spoiler"] == 0
    assert "spoiler" not in metrics.summarize(logits)


def log_margin(logits):
    return metrics.margin(logits).log1p()


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("entropy", {}, "'entropy' is a column of the tables already"),
        ("accuracy", {}, "'accuracy' is a column of the tables already"),
        ("mine", {"label": "R12"}, "labelled 'R12' as another one"),
        ("mine", {"label": "random"}, "labelled 'random' as another one"),
        ("mine", {"claimed": "small"}, "claimed is 'small': expected 'smaller' or 'larger'"),
    ],
)
def test_a_name_that_is_taken_and_an_unknown_claim_are_refused(name, options, words):
    def function(logits):
        return logits[:, 0]

    function.__name__ = name
    with pytest.raises(ValueError, match=words):
        metrics.metric(**{"claimed": "smaller"} | options)(function)
    assert name not in claims.PLUGIN_METRICS


def test_the_same_name_in_two_files_is_refused_with_the_other_file(extended, tmp_path):
    stages.load_teacher(extended, "birds", "resnet", "FT")
    with pytest.raises(ValueError, match=r"'log_margin' is in .*mine.py too: rename one"):
        metrics.metric(claimed="smaller")(log_margin)


def test_a_metric_that_is_not_one_value_per_sample_is_refused():
    metrics.metric(claimed="smaller", label="whole")(log_margin)
    claims.PLUGIN_METRICS["log_margin"] = lambda logits: logits
    with pytest.raises(ValueError, match=r"metric 'log_margin' has shape \(4, 3\): expected \(4,\)"):
        metrics.all_samples(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
