"""What several tests use: tiny runs, annotated sets, stand-ins of other programs."""
