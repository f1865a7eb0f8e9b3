"""Files as the workbench reads and writes them: whole or not at all, and of a declared shape."""
