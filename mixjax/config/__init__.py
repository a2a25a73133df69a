"""From recipes to calls: reading configurations, and names in them to code."""
