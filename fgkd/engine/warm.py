"""What notebooks import, for the process that their kernels are forked from.

What cannot be imported is left to the notebook that needs it, which then says why.
"""

import contextlib

with contextlib.suppress(Exception):
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib_inline.backend_inline  # noqa: F401
    import seaborn  # noqa: F401

    from fgkd import stages  # noqa: F401
    from fgkd.report import plots  # noqa: F401
