"""Crops as training takes them: decoded, sampled, augmented."""
