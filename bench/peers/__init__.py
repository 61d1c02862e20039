"""
outboxd beside other queues in PostgreSQL, each as a process of its own that takes turns with the others.

`python -m bench.peers` installs them, runs them and prints a table. See `bench/peers/README.md` for the method.
"""
