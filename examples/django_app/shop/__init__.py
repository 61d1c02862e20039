"""Accounts and their invoices."""
