"""What is taken away: tables, figures, bundles, reports."""
