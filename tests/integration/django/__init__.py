"""A Django project of its own: settings in conftest.py, models and receivers in `shop`."""
