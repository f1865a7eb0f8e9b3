"""What a model costs by its config: formulas, devices, rooflines."""
