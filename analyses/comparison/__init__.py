"""Questions asked of two recordings."""
