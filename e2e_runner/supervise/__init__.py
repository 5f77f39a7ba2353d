"""Starting the scripts, holding together what they start, and ending all of it.

Four kinds of process take part::

    e2e-run ── spawner ─┬─ keeper ── script ── whatever the script starts
    (asyncio)           ├─ keeper ── script ── ...
                        └─ network maker

The *spawner* is one small single-threaded process per run: forking it is cheap, and it may enter
namespaces that the runner itself must not. It forks the *keepers*, which hold one script each, and
the next one for as long as nothing was left behind. A keeper adopts every orphan of its script (as a child subreaper, or as the init of a PID namespace), so "is
anything left?" is one system call and no daemon can hide; it reaps, signals and kills on command.
The *network maker*, where networks are asked for, makes network namespaces, and opens sockets in them
for the runner. A namespace is a descriptor that the runner holds; a keeper goes there for the moment
in which it starts a script. Where this takes a user namespace, there is one for the whole run: the
maker has entered it, and so have the keepers of the scripts that get networks.
Keepers, maker and spawner are each held by a socket to the runner: when the runner dies, however it dies,
they see the end of the stream, kill what is left and go. The spawner then removes the folders that it
was told of, before they were made, and what killed PostgreSQL servers in them left in shared memory.

`launch`, `client`, `child` and `networks` are the runner's side. `spawner`, `keeper`, `containment`,
`netns`, `linux`, `sigchld` and `wire` are imported by the spawner process and therefore import only the standard library.
"""
