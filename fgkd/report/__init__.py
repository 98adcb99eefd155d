"""What a reader sees: figures in one style, and the offline pages of a study's report.

`plots` draws, `pages` builds a study's report, `site` writes its files, `notebook` renders an executed
notebook, `markup` makes HTML safe.  Imports `records`, `analysis` and below, and no PyTorch at import; may be
imported by `cli`, and `plots` by notebooks.
"""
