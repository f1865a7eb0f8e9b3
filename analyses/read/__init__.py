"""What analyses read: tokens, their order, counts by document, controls."""
