"""Training: a run is built, begun, stepped through, explained and opened again."""
