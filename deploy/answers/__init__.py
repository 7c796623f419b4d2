"""What a match means: thresholds, refinements, possible and impossible transitions, pictures."""
