"""The report of a study, drawn from the records there are: an offline site that anyone can read.

It reads well on a phone, on paper and with a screen reader, and says what is missing.  No page holds a script
or loads anything from another host.  `fgkd.report.site` writes the files, `fgkd.report.notebook` renders the
page of a run.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fgkd.analysis import paper, records
from fgkd.analysis.records import duration
from fgkd.metrics.claims import METRICS, UNDEFINED
from fgkd.report import plots, results, verdicts
from fgkd.report.site import STATES, Entry, Site, Table, write
from fgkd.study import FIRST, PRETEXT, PROJECT, RECIPES, Job, Study

RESULTS = {
    "tac": "TAC {tac:.1%}",
    "ratio12": "R12 {ratio12:.3f}",
    "accuracy": "{student} {loss} {accuracy:.1%}",
    "train": "{train:,} training images",
}
HEADLINE = {
    "metric": "metric",
    "agrees": "rho in the claimed direction",
    "low": "from",
    "high": "to (95 %)",
    "mean_abs_rho": "|rho|",
    "chance_abs_rho": "|rho| under the null",
    "strong": "strong groups",
    "chance_strong": "strong under the null",
    "groups": "groups",
    "datasets": "data sets",
    "teachers": "teachers",
}
OFTEN_CONSTANT = ("groups", "datasets", "teachers", "chance_abs_rho", "chance_strong")


def build(study: Study, states: Mapping[Job, Mapping], folder: Path | None = None) -> Path:
    """Write the report of a study to `runs/<study>/report/` and return the path of its index.

    states: state, seconds and error of each job, as `fgkd status` shows them.
    folder: where tables, figures and the report go instead of `runs/<study>/`.
    """
    folder = folder or study.folder
    tables = records.collect(study)
    tables |= results.conclude(study, tables)
    answer = [verdicts.explain_missing_rho(tables.get("correlations", pd.DataFrame()))]
    figures = []
    if "standings" in tables:
        answer = [*_answer(study, tables), *answer]
        plots.set_style()
        for name, draw in results.figures(study, tables).items():
            plots.save(draw(), folder / "figures", name)
            figures.append((folder / "figures" / f"{name}.svg", results.CAPTIONS[name]))
    for name, frame in tables.items():
        records.write_table(frame, folder / "tables" / f"{name}.csv")
    headline = tables.pop("headline", None)
    standings = tables.pop("standings", None)
    claims = tables.pop("claims", None)
    missing = {job: state for job, state in states.items() if state["state"] != "done"}
    known: dict[Job, str] = {}  # fingerprints
    site = Site(
        title="Which teacher should your small model learn from?",
        question=f"{study.name}: {study.question}" if study.question else study.name,
        answer=[paragraph for paragraph in answer if paragraph],
        entries=[_entry(study, job, state, known) for job, state in states.items()],
        standings=None if standings is None else _standings_table(standings, tables["picks"]),
        missing=[_describe_missing(job, state) for job, state in missing.items()],
        notes=notes(study, known),
        figures=figures,
        headline=_headline_table(headline) if figures else None,
        claims=None if claims is None else _claims_table(study, claims, tables),
        tables=[Table(name, frame) for name, frame in tables.items()],
        facts=_facts(study, known),
        folders=(folder, study.folder, study.folder.parent, Path(study.file).parent),
    )
    return write(site, folder / "report")


def notes(study: Study, known: dict | None = None) -> list[str]:
    """Say what a reader of the numbers should know.

    It is what the study says of its data sets, copies in both splits, and where R12 loses its meaning.
    """
    sentences = [f"{key}: {spec.note}" for key, spec in study.datasets.items() if spec.note]
    for job in study.jobs():
        for record in records.of(study, job, known) if job.stage in ("data", "bank") else ():
            copies = [note for note in record.get("notes", []) if "also in train" in note]
            sentences += [f"{job.dataset}: {note}" for note in copies]
            row = record["rows"][0]
            share = row.get("ratio12_nonpositive", 0)
            if share > UNDEFINED:
                teacher = f"{job.dataset}, {job.strategy} teacher {job.teacher}"
                sentences.append(
                    f"{teacher}: the second logit is 0 or negative in {share:.1%} of views, "
                    f"where R12 loses its meaning; its mean is {row['ratio12']:.3f}"
                )
    return sentences


def _answer(study: Study, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """In paragraphs: which teacher, whether distillation paid, whether T and beta matter."""
    standings = verdicts.describe_standings(tables["standings"], tables["picks"]).replace("+-", "±")
    temperatures = tables["temperatures"]
    tuned = verdicts.describe_temperatures(temperatures, study) if len(temperatures) else ""
    return [standings, verdicts.describe_gains(tables["pay"]), tuned]


def _entry(study: Study, job: Job, state: Mapping, known: dict) -> Entry:
    """What the index shows of a job: what came out of it, and how long it took."""
    details = []
    for row in records.rows(study, job, known):
        details += [template.format(**row) for name, template in RESULTS.items() if name in row]
    if state["seconds"]:
        details.append(f"{state['seconds']:.0f} s")
    if state["state"] not in STATES:
        details.append(state["state"])
    title = job.teacher or job.dataset or job.notebook
    return Entry(
        section=job.row.section,
        title=title if job.seed == FIRST else f"{title} · seed {job.seed}",
        notebook=study.path(job) / f"{job.notebook}.ipynb",
        href=f"{job.id}.html",
        state=state["state"] if state["state"] in STATES else "waiting",
        detail=", ".join(dict.fromkeys(details)),
        row=" · ".join(dict.fromkeys([job.dataset, job.strategy])) if job.teacher else "",
    )


def _describe_missing(job: Job, state: Mapping) -> str:
    error = f": {state['error']}" if state["error"] else ""
    return f"{job.id} ({state['state']}{error})"


def _standings_table(standings: pd.DataFrame, picks: pd.DataFrame) -> Table:
    """The teachers in a reader's words, with the paper's rules that pick each."""
    undefined = standings.ratio12_nonpositive > UNDEFINED
    columns = {
        "teacher": standings.teacher,
        "student accuracy": _format(standings.accuracy, "{:.1%}") + _format(standings.error, " ± {:.1%}"),
        "may be best": standings.tied.map({True: "yes", False: "no"}).fillna(""),
        "picked by": [_list_rules(teacher, picks) for teacher in standings.teacher],
        "R12": _format(standings.ratio12, "{:.3f}") + undefined.map({True: " †", False: ""}),
        "TAC": _format(standings.tac, "{:.1%}"),
        "SSP": _format(standings.ssp, "{:.4f}"),
    }
    caption = (
        "Teachers by the accuracy of their students: means over groups, ± half of a 95 % interval for other "
        "test images, and for other seeds where there are several."
    )
    if undefined.any():
        caption += " †: the second logit is often zero or negative, where R12 loses its meaning."
    return Table("standings", standings, caption, pd.DataFrame(columns), limit=24)


def _format(values: pd.Series, pattern: str) -> pd.Series:
    return values.map(pattern.format).where(values.notna(), "")


def _list_rules(teacher: str, picks: pd.DataFrame) -> str:
    """The paper's rules that pick a teacher, such as 'R12 (3 of 5), TAC'."""
    rules = []
    for pick in picks[picks.rule.isin(["R12", "TAC", "SSP"])].itertuples():
        names, bracket, count = pick.teacher.partition(" (")
        if teacher in names.split(" = "):
            rules.append(f"{pick.rule}{bracket}{count}")
    return ", ".join(rules)


def _headline_table(headline: pd.DataFrame) -> Table:
    """The metrics in a reader's words; the caption says once what is the same in all rows."""
    constant = [name for name in OFTEN_CONSTANT if headline[name].nunique() == 1]
    values = [f"{HEADLINE[name]} {headline[name].iloc[0]:.3g}" for name in constant]
    caption = "Every metric, means over groups, best first."
    if values:
        caption += f" The same for all: {', '.join(values)}."
    shown = headline.assign(metric=[METRICS[name].label for name in headline.metric])
    shown = shown[[name for name in HEADLINE if name not in constant]].dropna(axis=1, how="all")
    return Table("headline", headline, caption, shown.round(3).rename(columns=HEADLINE), limit=24)


def _claims_table(study: Study, claims: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> Table:
    """The paper's claims in a reader's words, the registered ones first, with what a test of each takes."""
    file = Path(study.file)
    command = f"fgkd run {file.stem if file.parent == PROJECT / 'runs' else file.name}"
    first = claims.sort_values("family", ascending=False, kind="stable")
    registered = int((first.family == "registered").sum())
    seconds = [_seconds(tables, paper.strategies_of(claim)) for claim in first.claim]
    tested = first.groups > 0
    columns = {
        "claim": first.claim,
        "in print": _format(first.published, "{:+.3f}"),
        "here": _format(first.ours, "{:+.3f}"),
        "95 % interval": _format(first.low, "{:+.3f} to ") + _format(first.high, "{:+.3f}"),
        "groups": first.groups,
        "data sets": first.datasets,
        "verdict": first.verdict.where(tested, "not in this study"),
        "time": [
            duration(value / 3600) if is_tested else ""
            for value, is_tested in zip(seconds, tested, strict=True)
        ],
    }
    needed = "{registered} data sets for a registered claim, {exploratory} for another".format(**paper.NEEDED)
    caption = (
        f"'{command}' tests all of these claims, and computes what is missing. Each is a quantity that is "
        "above 0 where the claim holds, the mean over groups, with its interval over data sets. The first "
        f"{registered} were registered before any study ran: they hold or fail where p, corrected for their "
        f"number, is at most 0.05. The others are exploratory and only suggest. A verdict takes {needed}. "
        "The time is that of the jobs which a claim rests on, one after another."
    )
    return Table("claims", claims, caption, pd.DataFrame(columns), limit=len(claims))


def _seconds(tables: Mapping[str, pd.DataFrame], strategies: tuple[str, ...]) -> float:
    """The time of the jobs behind the students of some strategies, or of all for none.

    It includes the training on the pretext set, and students without a teacher.
    """
    teachers, banks, students = (tables[name] for name in ("teachers", "metrics", "students"))
    banks = banks.drop_duplicates("run")
    if strategies:
        recipes = {RECIPES[name] for name in strategies}
        teachers = teachers[teachers.recipe.isin({*recipes, PRETEXT})]
        banks = banks[banks.strategy.map(RECIPES).isin(recipes)]
        students = students[students.strategy.isin({*strategies, "CE"})]
    return float(sum(table.seconds.sum() for table in (teachers, banks, students)))


def _facts(study: Study, known: dict | None = None) -> dict[str, str]:
    """What the study was made with: its settings, and all commits, devices and versions in its records."""
    facts = {
        "study": Path(study.file).name,
        "seed": ", ".join(map(str, study.seeds)),
        "teachers": ", ".join(teacher.model for teacher in study.teachers.values()),
        "students": ", ".join(student.model for student in study.students.values()),
        "strategies": ", ".join(study.strategies),
    }
    for recipe_name, recipe in study.recipes.items():
        facts[f"recipe {recipe_name}"] = ", ".join(f"{key} {value}" for key, value in vars(recipe).items())
    provenances: list[dict] = []
    for job in study.jobs():
        provenances += [record["provenance"] for record in records.of(study, job, known)]
    if provenances:
        made = pd.DataFrame(provenances)
        for name in ("commit", "device", "python", "threads"):
            facts[name] = _count_values(made[name])
        packages = pd.DataFrame(made.packages.tolist(), columns=list(records.PACKAGES)).fillna("absent")
        facts["packages"] = ", ".join(f"{name} {_count_values(packages[name])}" for name in packages)
    return facts


def _count_values(values: pd.Series) -> str:
    """A value that is the only one, or each with the number of its records."""
    counts = values.astype(str).value_counts()
    if len(counts) == 1:
        return counts.index[0]
    return ", ".join(f"{value} ({count} records)" for value, count in counts.items())
