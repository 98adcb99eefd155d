"""Losses, the training loop for teachers and students, and the bank of a teacher's logits.

`stages` has a function for each notebook, which loads what was computed or computes it; `check` compares what
lies on disk with its records, `export` hands a trained network over.
Imports `models` and below; may be imported by `engine`, `choose` and notebooks.
"""
