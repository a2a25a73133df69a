"""Mixtures: of tokens (masking) and, later in the pipeline, of whole images."""
