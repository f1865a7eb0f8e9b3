"""Questions about what experts compute."""
