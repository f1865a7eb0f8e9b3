"""Questions about experts together: in a token, across layers, along a text."""
