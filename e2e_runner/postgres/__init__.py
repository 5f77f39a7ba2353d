"""PostgreSQL: servers of our own, and the databases that a run makes on any server.

Import the module that is needed: a run in which no example wants PostgreSQL loads none of them, and
no driver.
"""
