"""What a comparison looks like: tables and words; no torch."""
