"""Observes generations in torch and reduces them to the columns of a record."""
