"""What a step costs: operations, collectives and device memory, counted."""
