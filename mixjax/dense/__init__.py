"""Operations of detection and segmentation on boxes, maps and masks: pure functions.

A box is (x0, y0, x1, y1), float32, in continuous coordinates: pixel i covers [i, i + 1]
and widths are x1 - x0. Rows that hold nothing are said by booleans, never by their
coordinates. Functions are for one image unless their shapes begin with B; all shapes
are static, so they run under jit and vmap. Mask polarity: 1 is the object.
"""
