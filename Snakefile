# The engine: a study's jobs as Snakemake's, each one call of papermill.  `fgkd run runs/demo.yaml` starts it;
# by hand:
#     snakemake --cores 2 --config study=runs/demo.yaml
# A job's output is the small result.json that its notebook writes last.  Its executed notebook is the job's
# log and is kept when it fails; checkpoints and weights are undeclared files, so that a retry continues.  A
# bank is deleted after its last student, and no new one is begun while students can be trained: no more banks
# lie on disk than jobs run.
import sys
from fgkd import study as studies
from fgkd.engine import states

study = studies.load(config["study"])
# The jobs that are left to run, and the banks that their students read, so that these are deleted after them.
left = states.left(study)
banks = {job: study.banks_of(job) for job in left if states.wants_bank(study, job)}
read = {bank for of_job in banks.values() for bank in of_job}
jobs = {job.id: job for job in study.jobs() if job in left or job in read}


def result(job):
    return str(study.path(job) / "result.json")


def inputs(wildcards):
    job = jobs[wildcards.id]
    views = [str(study.path(bank) / "views") for bank in banks.get(job, ())]
    return [result(earlier) for earlier in study.before(job) if earlier.id in jobs] + views


def arguments(wildcards):
    words = []
    for name, value in jobs[wildcards.id].parameters(study).items():
        words += ["-r" if isinstance(value, str) else "-p", name, str(value)]
    return words


def outputs(stage):
    views = [temp(directory(f"{study.folder}/{{id}}/views"))] if stage == "bank" else []
    return [f"{study.folder}/{{id}}/result.json"] + views


def resource(stage, name):
    """A resource of a stage's jobs; short stages take none and stay on this machine."""
    return getattr(study.resources[stage], name) if stage in study.resources else 0


rule all:
    localrule: True
    default_target: True
    input: [result(job) for job in jobs.values()]

for stage, row in studies.STAGES.items():
    rule:
        name: stage
        input: inputs
        output: outputs(stage)
        log: notebook=f"{study.folder}/{{id}}/{row.notebook}.ipynb"
        wildcard_constraints: id=f"{stage}/.*|study/{stage}"
        priority: row.priority
        threads: study.threads
        localrule: stage not in study.resources
        resources:
            gpu=resource(stage, "gpus"),
            mem_mb=resource(stage, "memory"),
            runtime=resource(stage, "minutes"),
        params:
            arguments=arguments,
            python=sys.executable,
            notebook=str(studies.PROJECT / "notebooks" / f"{row.notebook}.ipynb"),
        shell:
            "FGKD_GPU={resources.gpu} FGKD_EXIT=$(dirname {log.notebook:q})/exit.json"
            " {params.python:q} -m fgkd.engine.execute"
            " {params.notebook:q} {log.notebook:q} {params.arguments:q}"
