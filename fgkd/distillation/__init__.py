"""Losses, the training loop for teachers and students, and the bank of a teacher's logits.

Imports `models` and below; may be imported by `stages` and all above it.
"""
