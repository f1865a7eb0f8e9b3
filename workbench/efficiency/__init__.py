"""What a model costs to run: counted from its config, and measured on this machine."""
