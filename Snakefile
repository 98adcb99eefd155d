# The engine: a study's jobs as jobs, each one call of papermill.  `fgkd run runs/demo.yaml` starts it; by hand:
#     snakemake --cores 2 --config study=runs/demo.yaml
# A job's output is the small result.json that its notebook writes last.  Its executed notebook is the job's log and is kept when
# it fails; checkpoints and weights are undeclared files, so that a retry continues.  A bank is deleted after its last student, and
# no new one is begun while students can be trained: no more banks lie on disk than jobs run.
import sys
from fgkd import study as studies
from fgkd.engine import states

study = studies.load(config["study"])
# The jobs are the jobs that are left to run, and the banks of their students, so that these are deleted after them.
left = states.left(study)
reads = {job: study.banks_of(job) if states.wants_bank(study, job) else () for job in left if job.stage == "distill"}
jobs = {job.id: job for job in study.jobs() if job in left or any(job in banks for banks in reads.values())}


def result(job):
    return str(study.path(job) / "result.json")


def inputs(wildcards):
    job = jobs[wildcards.id]
    banks = [str(study.path(bank) / "views") for bank in reads.get(job, ())]
    return [result(c) for c in study.before(job) if c.id in jobs] + banks


def arguments(wildcards):
    given = jobs[wildcards.id].parameters(study)
    return [str(word) for name, value in given.items() for word in ("-r" if isinstance(value, str) else "-p", name, value)]


def asked(stage, name):
    """What the study asks for a run of the stage; short stages ask for nothing and stay on this machine."""
    return getattr(study.resources[stage], name) if stage in study.resources else 0


rule all:
    localrule: True
    default_target: True
    input: [result(job) for job in jobs.values()]

for stage, notebook in studies.STAGES.items():
    rule:
        name: stage
        input: inputs
        output:
            [f"{study.folder}/{{id}}/result.json"] + ([temp(directory(f"{study.folder}/{{id}}/views"))] if stage == "bank" else [])
        log: notebook=f"{study.folder}/{{id}}/{notebook}.ipynb"
        wildcard_constraints: id=f"{stage}/.*|study/{stage}"
        priority: {"data": 3, "distill": 2, "bank": 1}.get(stage, 0)  # data first, so that what is wrong with them shows; students as soon as there is a bank
        threads: study.threads
        localrule: stage not in study.resources
        resources:
            gpu=asked(stage, "gpus"),
            mem_mb=asked(stage, "memory"),
            runtime=asked(stage, "minutes"),
        params:
            arguments=arguments,
            python=sys.executable,
            notebook=str(studies.PROJECT / "notebooks" / f"{notebook}.ipynb"),
        shell:
            "FGKD_GPU={resources.gpu} FGKD_EXIT=$(dirname {log.notebook:q})/exit.json {params.python:q} -m fgkd.engine.execute"
            " {params.notebook:q} {log.notebook:q} {params.arguments:q}"
