"""What notebooks import, for the process that their kernels are forked from.

What cannot be imported is left to the notebook that needs it, which then says why.
"""

import contextlib

with contextlib.suppress(Exception):
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib_inline.backend_inline  # noqa: F401
    import pandas

    # pandas takes a process without IPython for a terminal and would cut wide tables.
    pandas.set_option("display.max_columns", 20)
    import seaborn  # noqa: F401

    from fgkd.distillation import stages  # noqa: F401
    from fgkd.report import plots  # noqa: F401
