"""Batch runs: Snakemake over a study's jobs, their states, the kernels of their notebooks, their cost.

Imports `records` and below; may be imported by `cli` alone.
"""
