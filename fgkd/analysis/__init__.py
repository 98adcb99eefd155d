"""What the tables say: rank correlations and their intervals, the paper's claims, further findings.

Imports `metrics.claims` and `study`, and no PyTorch; may be imported by `records` and all above it.
"""
