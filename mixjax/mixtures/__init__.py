"""Mixtures: of whole images (unmix, mixmask, erase), and of tokens (masking too)."""
