"""Optimizers, the parameters they treat differently, and schedules."""
