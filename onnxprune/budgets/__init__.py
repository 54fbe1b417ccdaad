"""Budgets that turn scores into a choice of units: one file each, found by name."""
