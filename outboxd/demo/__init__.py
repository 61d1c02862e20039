"""
`outboxd demo`: a PostgreSQL, a shop and the daemon, to watch them work.

    shop.py       changes orders and members, and writes a message in the same transaction
    demo.toml     the daemon's configuration; its comments say what to change for yours
    receivers.py  what happens with each message; one of them fails now and then
    __main__.py   the daemon as the demo starts it
    daemon.py     its process and its log, seen from outside
    figures.py    what is counted
    screen.py     how it is shown
    show.py       start, run, stop
"""
