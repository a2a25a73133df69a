"""One run: its folder, checkpoints, logs, results, and what ends it when it hangs."""
