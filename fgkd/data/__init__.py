"""Images: drawn birds, folders of photos, the paper's data sets in their official layouts, and random views.

Imports `records` and `study`; may be imported by `models` and all above it.
"""
