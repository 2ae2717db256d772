"""Programs for developing CoreVital."""
