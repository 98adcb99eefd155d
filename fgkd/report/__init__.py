"""What a reader sees: figures in one style, and the offline pages of a study's report.

`plots` draws; `results` gives the tables and figures of a study, `verdicts` its sentences; `pages` builds its
report, `site` writes the files, `notebook` renders an executed notebook, `markup` makes HTML safe.  Imports
`analysis` and below, and no PyTorch at import; may be imported by `engine`, `choose`, notebooks.
"""
