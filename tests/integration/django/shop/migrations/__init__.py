"""Written as `makemigrations` would; a test asks whether it has anything to add."""
