"""ftrl."""
