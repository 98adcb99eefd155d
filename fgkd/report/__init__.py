"""What a reader sees: figures in one style, and the offline pages of a study's report.

Imports `records`, `analysis` and below, and no PyTorch at import; may be imported by `cli` alone.
"""
