"""How arrays are laid out over devices, and a batch over sub-batches."""
