"""Choosing a teacher for a folder of photos: audit, candidates, ranking, pilots, verification, hand-over.

What `fgkd choose` and notebook 08 do, step by step.  It computes through `fgkd.stages`, on two studies that
it writes: one of the training photos alone, by which it chooses, and the very study on the true splits, by
which the choice is verified.  Imports stages, export and what is below them; the commands and the engine
import it.
"""

NOTEBOOK = "08_choose_your_teacher"
LOG = "progress.log"  # in the folder of the results: what is done, a line each
