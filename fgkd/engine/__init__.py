"""Batch runs: Snakemake over a study's jobs, their states, kernels and cost; what a terminal shows of them.

Imports `report`, `distillation` and below, and no PyTorch at import; may be imported by `choose` and `cli`.
"""
