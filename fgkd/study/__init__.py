"""A study: its YAML file, the jobs it falls into, their inputs, fingerprints and folders.

`config` declares what a file may say, `files` reads one, `jobs` says what follows from it, `plugins` and
`contents` read and hash what it names outside itself.  Imports nothing else of the package, and no PyTorch;
may be imported by all of it.
"""

from fgkd.study.config import (
    LOSSES,
    OFFICIAL,
    PRETEXT,
    RECIPES,
    DataSpec,
    Distillation,
    Loss,
    Model,
    OfficialName,
    Recipe,
    Resources,
    Sizes,
    check_weights,
)
from fgkd.study.errors import StudyError
from fgkd.study.files import PROJECT, load
from fgkd.study.jobs import FIRST, STAGES, Job, Study, check_parameters
