"""Networks: timm's with their normalisation, with counterfactual attention (CAL), and VAN.

Imports `data` and below; may be imported by `distillation` and all above it.
"""
