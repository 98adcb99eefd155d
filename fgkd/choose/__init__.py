"""Choosing a teacher for a folder of photos: audit, candidates, ranking, pilots, verification, hand-over.

What `fgkd choose` and notebook 08 do, step by step: `run` has papermill execute the notebook.  It computes
through `fgkd.distillation.stages`, on two studies that it writes: one of the training photos alone, by which
it chooses, and the very study on the true splits, by which the choice is verified.
Imports `engine` and below; may be imported by `cli` alone.
"""

NOTEBOOK = "08_choose_your_teacher"
LOG = "progress.log"  # in the folder of the results: what is done, a line each
