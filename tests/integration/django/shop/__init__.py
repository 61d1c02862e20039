"""The application of the test project."""
