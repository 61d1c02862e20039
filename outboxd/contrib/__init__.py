"""What joins outboxd with frameworks; each module needs the extra of its name."""
