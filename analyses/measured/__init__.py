"""Questions asked of measurements."""
