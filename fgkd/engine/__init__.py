"""Batch runs: Snakemake over a study's jobs, their states, kernels and cost; what a terminal shows of them.

Imports `records` and below; may be imported by `cli` alone.
"""
