"""What every run has."""
