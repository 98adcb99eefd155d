"""Images: drawn birds, folders of photos, the paper's datasets in their official layouts, and random views.

`datasets` loads any of them through a cache of decoded images; `birds`, `folders` and `official` say which
images there are; `photos` remembers what was read of each; `fetching` downloads; `views` crops and flips.
Imports `analysis` and below; may be imported by `models` and all above it.
"""
