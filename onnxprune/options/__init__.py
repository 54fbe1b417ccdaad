"""What may be asked, declared once."""
