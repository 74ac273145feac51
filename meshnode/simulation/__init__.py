"""A deterministic simulator of meshes: the production engine on a LAN of the mind. Ships with the package (pure).

Each module knows only those before it:

timeline    events in order, chance by purpose, the trace hash
network     packets: latency, loss, blocked ways; tcp makes ordered connections of them
processor   clocks, speed, and being stopped; process is one node, the engine in a shell; connection is how two of them meet
world       hosts, and the processes on them
faults      what can go wrong, as values; scenario puts them in time, with bounds; scenarios is the catalogue, of happenings
insight     what only somebody who sees everything can check; reach says who could have heard whom
watcher     measures, and holds what the nodes believe against what is
run         one scenario, one seed, one result; shrink finds a smaller one that fails as well

routing     apart from all these: where requests go, by the production policies; see there

`scripts/simulate` is the command for it. What is not modelled stands at the top of tcp and process.
"""
