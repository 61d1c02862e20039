"""Applications that write messages, and flush them."""
