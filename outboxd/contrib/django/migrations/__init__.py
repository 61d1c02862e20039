"""What Django has to know of outboxd: permissions. Its tables are made by `manage.py outboxd migrate`."""
