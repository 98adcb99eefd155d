# The engine: a study's jobs as Snakemake's, each one call of papermill.  `fgkd run runs/demo.yaml` starts it;
# by hand:
#     snakemake --cores 2 --config study=runs/demo.yaml
# A job's output is the small result.json that its notebook writes last.  Its executed notebook is the job's
# log and is kept when it fails; checkpoints and weights are undeclared files, so that a retry continues.  A
# bank is deleted after its last student, and no new one is begun while students can be trained: no more banks
# lie on disk than jobs run.
# All paths are below the study's folder and made of names that a study may have: Snakemake, papermill and the
# shell would each read the characters of others in their own way.
import json
import os
from pathlib import Path
from fgkd import study as studies
from fgkd.engine import execute, kernels, states

kernels.belong()

study = studies.load(config.get("study") or os.environ["FGKD_STUDY"])
os.environ["FGKD_STUDY"] = study.file
workdir: str(study.folder)

# The jobs that are left to run, and the banks that their students read, so that these are deleted after them.
listed = os.environ.get("FGKD_JOBS")
left = set(json.loads(Path(listed).read_text()) if listed else [job.id for job in states.left(study)])
known = {}
banks = {job: study.banks_of(job) for job in study.jobs() if job.id in left and states.wants_bank(study, job, known)}
read = {bank for of_job in banks.values() for bank in of_job}
jobs = {job.id: job for job in study.jobs() if job.id in left or job in read}


def inputs(wildcards):
    job = jobs[wildcards.id]
    results = [f"{earlier.id}/result.json" for earlier in study.before(job) if earlier.id in jobs]
    return results + [f"{bank.id}/views" for bank in banks.get(job, ())]


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
    input: [f"{id}/result.json" for id in jobs]

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
