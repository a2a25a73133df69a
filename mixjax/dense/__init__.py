"""Detection and segmentation on boxes, feature maps and masks: pure functions.

A box is (x0, y0, x1, y1), float32, in continuous coordinates: pixel i covers [i, i + 1]
and widths are x1 - x0. Padding is marked by boolean arrays, never by coordinates.
Functions take one image unless their shapes begin with B; all shapes are static, so
that they run under jit and vmap. In masks, 1 is the object.
"""
