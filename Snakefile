# The engine: a study's jobs as Snakemake's, each one call of papermill.  `fgkd run runs/demo.yaml` starts it;
# by hand:
#     snakemake --cores 2 --config study=runs/demo.yaml
# A job's output is the small result.json that its notebook writes last.  Its executed notebook is the job's
# log and is kept when it fails; checkpoints and weights are undeclared files, so that a retry continues.  A
# bank is deleted after its last student, and no new one is begun while students can be trained: no more banks
# lie on disk than jobs run.
# All paths are below the study's folder and made of names that a study may have: Snakemake, papermill and the
# shell would each read the characters of others in their own way.
import os
import re
from snakemake.logging import logger
from fgkd import study as studies
from fgkd.engine import events, execute, kernels, states

kernels.end_with_driver()

study = studies.load(config.get("study") or os.environ["FGKD_STUDY"])
os.environ["FGKD_STUDY"] = study.file
workdir: str(study.folder)

if os.environ.get("FGKD_RUN"):  # an `fgkd run` has begun the file that tells what is left
    left = {job.id for job in events.jobs(study)}
    if workflow.is_main_process:
        lock = states.lock(study.folder / states.ENGINE)
        logger.addHandler(events.Writer(study.folder.resolve() / events.FILE))
else:
    left = {job.id for job in states.left(study)}

jobs = {job.id: job for job in study.jobs()}
known = {}
readers = [job for job in study.jobs() if job.id in left and states.wants_bank(study, job, known)]
banks = {job.id: study.banks_of(job) for job in readers}
kept = {bank.id for read in banks.values() for bank in read}.difference(left)


def inputs(wildcards):
    results = [f"{earlier.id}/result.json" for earlier in study.before(jobs[wildcards.id]) if earlier.id in left]
    return results + [f"{bank.id}/views" for bank in banks.get(wildcards.id, ())]


def parameters(wildcards):
    # A notebook names its study file by its name: where it lies says who ran it.
    return jobs[wildcards.id].parameters(study) | {"study": os.path.basename(study.file)}


def outputs(stage):
    return ["{id}/result.json"] + ([temp(directory("{id}/views"))] if stage == "bank" else [])


def resource(stage, name):
    """A resource of a stage's jobs; short stages take none and stay on this machine."""
    return getattr(study.resources[stage], name) if stage in study.resources else 0


rule all:
    localrule: True
    default_target: True
    input: [f"{id}/result.json" for id in jobs if id in left]

if kept:  # banks of an earlier run: their rule deletes them after the last student that is left
    rule kept:
        output: temp(directory("{id}/views"))
        wildcard_constraints: id="|".join(map(re.escape, kept))

    ruleorder: kept > bank

for stage, row in studies.STAGES.items():
    rule:
        name: stage
        input: inputs
        output: outputs(stage)
        log: notebook=f"{{id}}/{row.notebook}.ipynb"
        wildcard_constraints: id=f"{stage}/.*|study/{stage}"
        priority: row.priority
        threads: study.threads
        localrule: stage not in study.resources
        resources:
            gpu=resource(stage, "gpus"),
            mem_mb=resource(stage, "memory"),
            runtime=resource(stage, "minutes"),
        params:
            parameters=parameters,
            notebook=str(studies.PROJECT / "notebooks" / f"{row.notebook}.ipynb"),
        run:
            gpu, ending = str(resources.gpu), f"{wildcards.id}/exit.json"
            execute.execute(params.notebook, log.notebook, params.parameters, gpu=gpu, ending=ending)
