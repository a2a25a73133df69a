"""Detectors: the parts of training and testing that work on regions of images."""
