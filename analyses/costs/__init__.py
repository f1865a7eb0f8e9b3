"""Questions about costs, answered by formulas."""
