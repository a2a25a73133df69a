"""Detectors: a network that looks at pictures and then at regions of them."""
