"""A deterministic simulator of routing: the production policies over nodes of unequal speed, from news that is old (pure).

Each module knows only those before it:

workload    requests: lengths and arrivals fitted to public traces, and conversations that grow
server      one node at work: slots that share its speed, a queue, a cache of prefixes, loading, slowing down, crashing
rivals      the policies of others, and those that know everything, to compare with
mesh        nodes that ask each other: what each has been told and when, attempts, bounces, failures
scenario    what a run is made of, as a value, with the bounds that it must keep
measure     what a run came to
scenarios   the catalogue

`scripts/simulate-routing` is the command for it. What is not modelled stands at the top of server and mesh.
"""
