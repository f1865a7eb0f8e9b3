"""Questions about what experts are chosen for: domains, tokens, contexts, positions."""
