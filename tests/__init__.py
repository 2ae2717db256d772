"""The tests of CoreVital and what they share."""
