"""What a model costs to run, by formula and by measuring, beside a dense one."""
