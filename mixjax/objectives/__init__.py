"""Loss terms as pure functions of arrays."""
