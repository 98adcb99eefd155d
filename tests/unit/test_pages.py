"""Executed notebooks become an offline site: what must be true of every page."""

import os
import re

import attacks
import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from fgkd import study as studies
from fgkd.analysis import paper, records
from fgkd.report import notebook, pages, site

WIDGET = "application/vnd.jupyter.widget-view+json"
HARM = "<script>alert(1)</script>"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def shown(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def tagged(tag, source, *outputs, count=None):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": [tag]}, execution_count=count)


def save(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def render(tmp_path):
    """Cells -> the parsed page."""

    def rendered(*cells, **options):
        notebook.write_page(save(tmp_path / "run.ipynb", *cells), tmp_path / "run.html", **options)
        return BeautifulSoup((tmp_path / "run.html").read_text(encoding="utf-8"), "html.parser")

    return rendered


@pytest.fixture
def build(tmp_path):
    """A study of four runs (done, failed, waiting, unreadable) -> the path of its index."""
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.svg").write_text(SVG)
    good = save(
        tmp_path / "good.ipynb", new_markdown_cell("# How good is this teacher?\n\n[next](04_ratio12.ipynb)")
    )
    error = new_output("error", ename="ValueError", evalue="no bank", traceback=["ValueError: no bank"])
    bad = save(tmp_path / "bad.ipynb", new_markdown_cell("# Why?"), new_code_cell("f()", outputs=[error]))
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    entries = [
        site.Entry("Teachers", f"resnet101 {HARM}", good, "teachers/a b.html", "done", "TAC 81.2 %"),
        site.Entry("Teachers", "vgg19_bn", bad, "teachers/vgg.html", "failed"),
        site.Entry(
            "Students", "levit", tmp_path / "none.ipynb", "students/levit.html", "waiting", row="birds · FT"
        ),
        site.Entry(
            "Students", "lcnet", tmp_path / "torn.ipynb", "students/lcnet.html", "failed", row="birds · FT"
        ),
    ]
    table = pd.DataFrame({"metric": ["R12", HARM], "rho": [-0.41, None]})

    def built(**changes):
        options = {
            "title": f"A study of {HARM}",
            "question": "Does $R_{12}$ rank teachers?",
            "answer": ["No better than accuracy.", "Nor than chance."],
            "figures": [
                (tmp_path / "a.png", "One point per teacher. n = 8."),
                (tmp_path / "b.svg", "The null"),
            ],
            "headline": site.Table("headline", table, "Ranks"),
            "tables": [site.Table("all runs", pd.DataFrame({"run": range(30)}))],
            "entries": entries,
            "facts": {"torch": f"2.15.0 {HARM}"},
            "missing": ["birds FZ", "birds FT"],
        }
        return site.write(site.Site(**(options | changes)), tmp_path / "site")

    return built


def parse(path):
    return parsed(path.read_text(encoding="utf-8"))


def parsed(text):
    return BeautifulSoup(text, "html.parser")


def test_a_page_has_no_script_and_loads_nothing_from_elsewhere(render):
    page = render(
        new_markdown_cell(
            f"# Title\n\n{HARM} ![x](https://e.org/x.png) <iframe src='https://e.org'></iframe>"
        ),
        new_markdown_cell("<a href='javascript:x()'>a</a> <b onclick='x()'>bold</b> <img src=x onerror=x()>"),
        new_code_cell(
            "d", outputs=[shown({"text/html": f"{HARM}<link rel=stylesheet href='//e.org'><b>ok</b>"})]
        ),
        new_code_cell("w", outputs=[shown({"application/javascript": "alert(1)", "text/plain": "words"})]),
        new_code_cell("s", outputs=[shown({"image/svg+xml": SVG.replace("<rect", HARM + "<rect")})]),
        new_code_cell(
            "p", outputs=[shown({"image/png": f'">{HARM}'}, **{"image/png": {"width": f'1">{HARM}'}})]
        ),
        new_raw_cell(HARM, metadata={"raw_mimetype": "text/html"}),
        new_markdown_cell("[link](javascript:x())"),
    )
    assert not page(["script", "iframe", "link", "object", "svg"])
    assert not [tag for tag in page(True) if any(name.startswith("on") for name in tag.attrs)]
    assert all(tag["src"].startswith("data:image/") for tag in page(src=True))
    assert all(tag["href"].startswith("#") or tag["href"] == "index.html" for tag in page(href=True))
    assert "url(" not in page.style.text and "@import" not in page.style.text
    assert page.find("b", string="ok") and page.find("b", string="bold") and "words" in page.text


@pytest.mark.fault("a class name that is a script")
def test_a_script_in_a_class_name_is_shown_as_text(render, build):
    table = pd.DataFrame({"class": [HARM]})
    page = render(
        new_markdown_cell(f"The class {HARM} has `{HARM}`, and <script> alone hides\n\nno **later text**"),
        new_code_cell("x", outputs=[stream(HARM), shown({"text/html": table.to_html()})]),
        title=HARM,
    )
    assert not page.script and page.text.count(HARM) == 7 and page.strong.text == "later text"
    index = parse(build())
    assert not index.script and index.text.count(HARM) >= 4


def test_formulas_become_mathml(render):
    page = render(
        new_markdown_cell(
            "Ratio $R_{12} = \\frac{1}{N}\\sum_i P_{1,i}/P_{2,i}$ and *so* $a_1 * b_1 * c$\n\n"
            "$$\nx < \\sqrt{y}\n\n$$\ntext\n\\begin{align*}a &= b \\\\ c &= d\\end{align*}\nend"
        ),
        new_code_cell("m", outputs=[shown({"text/latex": "$\\displaystyle \\rho$"})]),
    )
    assert [math["display"] for math in page("math")] == ["inline", "inline", "block", "block", "block"]
    assert page.mfrac and page.msqrt and page.mtable and len(page("em")) == 1 and "$" not in page.main.text


def test_dollars_in_code_and_money_stay_dollars(render):
    page = render(
        new_markdown_cell(
            "`$HOME` costs \\$5, or $5 to $10, `$$` and `$$`\n\n5$ to 6$, 3 $ a$, $5/$10\n\n$3`$A`\n\n"
            "```sh\necho $A $B $$x$$\n```\n"
        ),
        new_code_cell("price = '$5 and $6'"),
    )
    assert not page.math
    money = ("$HOME", "costs $5, or $5 to $10, $$ and $$", "5$ to 6$, 3 $ a$, $5/$10", "$3$A")
    for text in (*money, "echo $A $B $$x$$", "'$5 and $6'"):
        assert text in page.main.text


def test_progress_bars_are_dropped_and_rewritten_lines_keep_their_last_state(render):
    bar = "\rbank:   0%|          | 0/20 [00:00<?, ?it/s]\rbank: 100%|████| 20/20 [00:00<00:00, 99.1it/s]\n"
    page = render(
        new_code_cell("a", outputs=[stream(bar, "stderr"), stream("9it [00:01, 8.9it/s]\n", "stderr")]),
        new_code_cell(
            "b", outputs=[stream("1\r2\r"), stream("step 3\nkept 5%\n"), stream("careful\n", "stderr")]
        ),
        new_code_cell("c", outputs=[shown({WIDGET: {}, "text/plain": bar.strip()})]),
    )
    assert [tag.text for tag in page("pre", class_="out")] == ["step 3\nkept 5%"]
    assert page.find("details", class_="messages").pre.text == "careful" and "it/s" not in page.text


def test_outputs_keep_their_order(render):
    page = render(new_code_cell("x", outputs=[stream("one"), shown({"image/png": PIXEL}), stream("two")]))
    assert re.search(r"one.*<img.*two", str(page), flags=re.DOTALL)


def test_parameters_and_failures_are_named(render):
    error = new_output(
        "error", ename="ValueError", evalue="epochs", traceback=["\x1b[31mValueError\x1b[0m: epochs"]
    )
    page = render(
        new_markdown_cell(
            "<span>An Exception was encountered</span>", metadata={"tags": ["papermill-error-cell-tag"]}
        ),
        tagged("parameters", "epochs = 20"),
        tagged("injected-parameters", "epochs = 30"),
        tagged("raises-exception", "1 / 0", error, count=3),
        new_code_cell("train()", outputs=[error], execution_count=4),
    )
    labels = [tag.text for tag in page("p", class_="label")]
    assert labels == ["Default parameters", "Parameters of this run", "✕ The run failed in this cell"]
    assert "stopped in cell 4" in page.text and "train()" in page.find(id="failed-cell").text
    assert "An Exception" not in page.text and "\x1b" not in page.text


def test_images_have_alternative_texts_and_tables_have_header_cells(render):
    frame = pd.DataFrame({"teacher": ["vgg19_bn"], "TAC": [81.2]}, index=["a"])
    page = render(
        new_markdown_cell("# Question\n\n## What *R12* sees\n\n| a | b |\n|---|---|\n| 1 | x |"),
        new_code_cell("f", outputs=[shown({"image/png": PIXEL}, **{"image/png": {"width": 70}})]),
        new_code_cell("g", outputs=[shown({"image/png": PIXEL}, alt='A "fine" line')]),
        new_code_cell("t", outputs=[shown({"text/html": "<style scoped>td{}</style>" + frame.to_html()})]),
        new_markdown_cell("## Question"),
    )
    assert [img["alt"] for img in page("img")] == ["Figure in the part “What R12 sees”", 'A "fine" line']
    assert [tag["scope"] for tag in page("th")] == ["col", "col", "col", "col", "row"]
    assert page.find("td", string="81.2")["class"] == ["number"] and page.html["lang"] == "en"
    assert [tag.get("id") for tag in page(["h1", "h2"])] == ["Question", "What-R12-sees", None]
    assert len(page("style")) == 1 and len(page("div", class_="scroll")) == 2 and len(page("h1")) == 1


def test_html_in_markdown_keeps_its_nesting(render):
    page = render(
        new_markdown_cell("<details><summary>Why</summary>\n\n*inside* <sup>a **b**</sup>\n\n</details>")
    )
    assert page.details.em.text == "inside" and page.details.sup.strong.text == "b"


def test_a_notebook_without_a_heading_is_titled_by_its_run(render):
    assert render(new_markdown_cell("text"), title="vgg19_bn, FT").h1.text == "vgg19_bn, FT"


def test_local_images_are_embedded_and_links_lead_home(render, tmp_path):
    (tmp_path / "local.svg").write_text(SVG)
    page = render(new_markdown_cell("![a bird](local.svg)"), home="../index.html")
    assert page.img["src"].startswith("data:image/svg+xml;base64,") and page.img["alt"] == "a bird"
    assert page.nav.a["href"] == "../index.html"


def test_every_link_of_a_site_leads_to_a_file_of_it(build):
    index = build()
    written = list(index.parent.rglob("*.html"))
    assert len(written) == 3
    for path in written:
        for tag in parse(path)(lambda tag: tag.has_attr("href") or tag.has_attr("src")):
            address = tag.get("href") or tag["src"]
            if not address.startswith(("#", "data:")):
                assert (path.parent / address.replace("%20", " ")).is_file(), address
    assert not list(index.parent.rglob("*.tmp"))


@pytest.mark.fault("an unreadable notebook in the report")
def test_missing_failed_and_unreadable_runs_are_said_in_words(build):
    index = parse(build())
    assert "2 runs are missing: birds FZ, birds FT." in index.text
    assert "1 notebook cannot be read: lcnet." in index.text
    assert "1 run is missing: vit." in parse(build(missing=["vit"])).text
    assert "missing" not in parse(build(missing=[])).text
    states = [tag.text for tag in index("span", class_="state")]
    assert states == ["✓ done; TAC 81.2 %", "✕ failed", "○ waiting", "✕ failed"]
    assert [tag.text for tag in index("h4")] == ["birds · FT"]
    assert [bool(tag.a) for tag in index("li")] == [True, True, False, False]


def test_a_table_is_written_whole_and_shown_in_part(build):
    index = build()
    assert len(pd.read_csv(index.parent / "tables" / "all runs.csv")) == 30
    assert "The first 10 of 30 rows." in parse(index).text
    assert list(pd.read_csv(index.parent / "tables" / "headline.csv")["metric"]) == ["R12", HARM]


def test_a_fresh_page_is_not_rendered_again(build):
    page = build().parent / "teachers" / "a b.html"
    first = page.stat().st_mtime_ns
    build()
    assert page.stat().st_mtime_ns == first


@pytest.mark.parametrize(
    "content",
    ['{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', '{"nbformat": 9, "cells": []}', ""],
    ids=["no cells", "a version to come", "empty"],
)
def test_a_notebook_that_is_none_is_unreadable(content, tmp_path):
    (tmp_path / "run.ipynb").write_text(content)
    with pytest.raises(notebook.Unreadable):
        notebook.write_page(tmp_path / "run.ipynb", tmp_path / "run.html")
    assert not (tmp_path / "run.html").exists()


def test_an_image_that_is_not_attached_makes_a_notebook_unreadable(render):
    with pytest.raises(notebook.Unreadable):
        render(new_markdown_cell("![a bird](attachment:bird.png)"))


def test_an_address_within_a_page_is_used_once(render):
    error = new_output("error", ename="ValueError", evalue="x", traceback=["x"])
    page = render(
        new_markdown_cell("# content\n\n<b id='a'>x</b> <b id='a'>y</b>"),
        *[new_code_cell("f()", outputs=[error], execution_count=count) for count in (1, 2)],
    )
    ids = [tag["id"] for tag in page(id=True)]
    assert sorted(ids) == ["a", "content", "failed-cell"] and "stopped in cell 1" in page.text


def test_a_study_in_which_only_the_baseline_was_trained_has_a_report(finished):
    for job in finished.jobs():
        if job.stage == "distill" and job.strategy != "CE":
            for part in records.record_jobs(finished, job):
                (finished.path(part) / "record.json").unlink()
    index = pages.build(finished, states(finished))
    assert "<h2" in index.read_text() and not (finished.folder / "report" / "tables" / "claims.csv").exists()


def test_a_finished_study_shows_its_figures_headline_and_claims_from_records_alone(finished):
    index = pages.build(finished, states(finished)).read_text()
    assert 'src="figures/against.svg"' in index and "rho in the claimed direction" in index
    assert "The same for all: teachers 3" in index, re.findall("Every metric[^<]*", index)
    written = finished.folder / "report" / "tables"
    claims = pd.read_csv(written / "claims.csv")
    assert len(claims) == 26 and set(claims.needed[claims.family == "registered"]) == {7}
    assert 'src="figures/progress.svg"' in index and "against no teacher students have" in index
    first, table = parsed(index).find(class_="answer").find(class_="lead"), parsed(index).table
    names = ["byobnet", "resnet", "efficientnet", "no teacher", "chance"]
    assert first.text.startswith("The students of") and "±" in first.text
    assert sorted(row.td.text for row in table.tbody("tr")) == sorted(names)
    assert {"picked by", "R12", "TAC", "SSP"} <= {header.text for header in table("th")}
    picked = [row("td")[3].text for row in table.tbody("tr")]
    assert all(any(rule in text for text in picked[:3]) for rule in ("R12", "TAC", "SSP"))
    sizes = {
        name: len(pd.read_csv(written / f"{name}.csv"))
        for name in ("pay", "temperatures", "progress", "power", "orders")
    }
    assert sizes == {"pay": 6, "temperatures": 0, "progress": 4, "power": 30, "orders": 1}


def test_the_claims_have_a_page_with_the_command_the_time_and_the_interval_of_each(finished):
    index = pages.build(finished, states(finished))
    assert parsed(index.read_text()).find("a", href="claims.html")
    page = parsed((index.parent / "claims.html").read_text())
    assert "'fgkd run tiny.yaml' tests all of these claims" in page.main.text
    names = [header.text for header in page.thead("th")]
    rows = [dict(zip(names, (cell.text for cell in row("td")))) for row in page.tbody("tr")]
    claims = pd.read_csv(index.parent / "tables" / "claims.csv").set_index("claim")
    assert sorted(row["claim"] for row in rows) == sorted(claims.index)
    assert {row["claim"] for row in rows[:3]} == {*paper.REGISTERED}
    signed = claims.loc[rows[0]["claim"]]
    assert rows[0]["here"] == f"{signed.ours:+.3f}" and rows[0]["95 % interval"] == ""
    assert (rows[0]["data sets"], rows[0]["verdict"]) == ("1", "cannot tell")
    assert {row["verdict"] for row in rows if "TGDA" in row["claim"]} == {"not in this study"}
    assert all(bool(row["time"]) == (row["groups"] != "0") for row in rows)
    assert all(re.fullmatch(r"(\d+ (s|min))?", row["time"]) for row in rows)


def test_the_time_of_a_claim_is_that_of_the_jobs_that_it_rests_on():
    teachers = pd.DataFrame({"recipe": ["pretext", "FT", "CAL"], "seconds": [1.0, 2, 4]})
    banks = pd.DataFrame(
        {"run": ["b", "c", "c"], "strategy": ["FT", "CAL", "TGDA"], "seconds": [8.0, 16, 16]}
    )
    students = pd.DataFrame({"strategy": ["CE", "FT", "CAL", "TGDA"], "seconds": [32.0, 64, 128, 256]})
    tables = {"teachers": teachers, "metrics": banks, "students": students}
    assert pages._seconds(tables, ()) == 511
    assert pages._seconds(tables, ("TGDA",)) == 1 + 4 + 16 + 32 + 256
    assert pages._seconds(tables, ("CAL", "TGDA")) == 1 + 4 + 16 + 32 + 128 + 256


def test_every_claim_about_some_strategies_is_known_as_such(finished):
    pages.build(finished, states(finished))
    claims = pd.read_csv(finished.folder / "tables" / "claims.csv").claim
    scoped = {claim: paper.strategies_of(claim) for claim in claims if paper.strategies_of(claim)}
    named = [claim for claim in claims if re.search("CAL|TGDA", claim) and "less FZ, FT" not in claim]
    assert sorted(scoped) == sorted(named)
    assert all(all(name in claim for name in names) for claim, names in scoped.items())


def states(study):
    return {job: {"state": "done", "seconds": None, "error": None} for job in study.jobs()}


def test_a_study_of_two_teachers_one_strategy_and_no_baseline_says_what_it_cannot_say(finished, make_study):
    changes = {"teachers.efficientnet": ..., "strategies": ["FT"], "recipes.FZ": ..., "baseline": False}
    small = make_study(changes)
    assert not records.missing(small)
    index = (
        BeautifulSoup(pages.build(small, states(small)).read_text(), "html.parser").find(class_="answer").text
    )
    assert "The students of" in index and "A rank correlation needs three teachers" in index
    assert "Whether distillation paid it cannot say" in index
    written = small.folder / "report" / "tables"
    assert pd.read_csv(written / "pay.csv").empty and pd.read_csv(written / "power.csv").empty
    assert set(pd.read_csv(written / "claims.csv").verdict) == {"cannot tell"}


def test_what_the_study_says_of_a_data_set_is_a_note_of_its_report(finished, make_study):
    note = "drawn, so that no network has seen them"
    noted = make_study({"datasets.birds.note": note})
    assert pages.notes(noted)[0] == f"birds: {note}" and note not in " ".join(pages.notes(finished))
    assert note in pages.build(noted, states(noted)).read_text()


def test_losses_of_other_temperatures_are_a_table_next_to_kd(finished, make_study):
    """The records of a loss of the same name, T and beta may come from elsewhere: here KD's own, copied."""
    both = make_study({"losses": {"soft": {"loss": "kd", "temperature": 4, "beta": 1}}})
    for job in both.jobs():
        if job.stage != "distill" or job.strategy == "CE":
            continue
        for part in records.record_jobs(both, job):
            if part.loss == "soft":
                kd = records.read_json(both.path(part).parent / "kd" / "record.json")
                rows = [row | {"loss": "soft"} for row in kd["rows"]]
                own = kd | {"fingerprint": both.fingerprint(part), "rows": rows}
                records.write_json(both.path(part) / "record.json", own)
    index = pages.build(both, states(both)).read_text()
    assert "whether the answer depends on T and beta: R12 agrees by" in index
    temperatures = pd.read_csv(both.folder / "report" / "tables" / "temperatures.csv")
    assert temperatures.loss.to_list() == ["soft"] * 3 and set(temperatures.temperature) == {4}
    known = temperatures.dropna(subset="difference")
    assert len(known) and (known.difference == 0).all() and set(known.datasets) == {1}


FORBIDDEN = ["script", "iframe", "object", "embed", "form", "base", "link", "svg", "template", "noscript"]


def test_no_attack_is_more_than_text_in_any_place_of_a_site(tmp_path):
    for page in map(parse, attacks.hostile_site(tmp_path).values()):
        assert not page([*FORBIDDEN, "textarea", "xmp", "maction", "annotation-xml", "mglyph"])
        assert len(page("style")) == 1 and not page("meta", attrs={"http-equiv": "refresh"})
        names = {name for tag in page.main(True) for name in tag.attrs}
        assert not [name for name in names if name.startswith("on") or ":" in name]
        assert not names & {"srcdoc", "srcset", "action", "formaction", "background"}
        styled = {tag["style"] for tag in page.main(style=True)}
        assert all(re.fullmatch(r"(text-align: \w+;?|)", style) for style in styled), styled
        for tag in page(href=True) + page(src=True):
            address = tag.get("href", tag.get("src"))
            assert re.match("#|https?:|data:image/|figures/|tables/|(index|claims|run).html", address), tag
        assert "49" not in page.main.text and "7*7" in page.main.text


def test_a_page_of_another_notebook_is_rendered_again_however_old_that_is(tmp_path):
    entry = site.Entry("Data", "birds", tmp_path / "a.ipynb", "a.html", "done")
    for source in ("first", "second"):
        save(entry.notebook, new_markdown_cell(source))
        os.utime(entry.notebook, (1, 1))
        site.write(site.Site("x", "x", [], [entry]), tmp_path / "site")
        assert source in (tmp_path / "site" / "a.html").read_text()


@pytest.mark.parametrize("file", ["x.yaml", "a & b's.yaml", "é/x.yaml", "runs/x/data/birds.npy"])
def test_no_page_tells_where_its_files_lie(file, render, tmp_path, monkeypatch):
    home = tmp_path / "home" / "alice"
    monkeypatch.setenv("HOME", str(home))
    error = new_output("error", ename="OSError", evalue=f"{home}/{file}", traceback=[f"in {home}/{file}:3"])
    inside = home / "study"
    cells = [
        new_code_cell(f"study = '{inside}/{file}'", outputs=[stream(f"read {inside}/{file}, {home}"), error]),
        new_markdown_cell(f"of {home}/{file}, {studies.PROJECT}/notebooks/a.ipynb and {inside}"),
    ]
    page = render(*cells, folders=(inside,))
    assert "alice" not in str(page) and str(studies.PROJECT) not in str(page)
    assert f"'{file}'" in page.text and f"~/{file}" in page.text and "and study" in page.text
    text = f"{home}/{file} and {home}s/b"
    options = {"title": text, "question": text, "answer": [text], "missing": [text], "notes": [text]}
    index = site.write(site.Site(**options, entries=[], facts={text: text}, folders=(inside,)), tmp_path)
    assert f"~/{file}" in parse(index).text and f"{home}/" not in parse(index).text
    assert f"{home}s/b" in parse(index).text
