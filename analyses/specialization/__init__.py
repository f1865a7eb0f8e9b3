"""Questions about what experts are chosen for."""
