"""Questions about which experts are chosen."""
