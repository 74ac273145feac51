"""A Backend.AI cluster on one machine, without a container engine.

Real are the managers 26.9.6 and 23.09.10 (from PyPI), the app proxy's coordinator and worker, PostgreSQL, Redis and etcd (from
Debian). Not real are agents and containers: a replica is a process at a port. So new services cannot be scheduled, but discovery,
authorisation, tokens, proxying, health, eviction and rate limits are those of a real cluster.

    lab.py        ports and places, and what is started in which order
    programs.py   what has to be installed, and processes that are kept by their pid
    settings.py   the configuration files of managers and app proxy
    people.py     users, key pairs and what else a manager wants to find in its database
    services.py   the model services, as rows of the managers' databases and as circuits of the app proxy
    replica.py    the process that stands for a model server

It takes five to nine minutes the first time and about one afterwards, 1.6 GB of memory, and 0.9 GB of disk.
"""
