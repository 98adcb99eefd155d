"""What the tables show: how well metrics rank teachers, what choosing gains, the paper's claims, findings.

`correlation` has the rho of one group, `blocks` means over datasets, `groups` the points and summaries of a
study's groups, `selection` the picks; `paper` and `findings` are built on these.  `records` has what each job
computed, with its provenance, and joins it to a study's tables.
Imports `metrics` and `study`, and no PyTorch; may be imported by `data` and all above it.
"""
