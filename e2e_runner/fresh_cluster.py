"""The cluster that servers of our own start with: which programs make it, as whom, and where it is cached."""

import asyncio
import contextlib
import os
import pwd
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from e2e_runner.postgres import boot, cluster
from e2e_runner.postgres.binaries import Binaries, find_binaries
from e2e_runner.postgres.cluster import Cache, Template
from e2e_runner.postgres.image import NoImageError
from e2e_runner.server_host import NAME_A_SERVER, CannotStart, ServerHost, hand_over, no_folder, why

_SIZE = 40 << 20  # bytes, about
_LOCK_PATIENCE = 60.0  # seconds; another run makes the same cluster
_LOOK_AGAIN = 0.02  # seconds
VERSION = re.compile(r"\(PostgreSQL\) (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Which programs are run, and as whom."""

    binaries: Binaries
    version: str  # "18.6"
    identity: str  # see `boot`


async def choose(host: ServerHost, environ: Mapping[str, str]) -> Installation:
    """Take the first programs that run, as the first user who may run them. Raises CannotStart."""
    found = find_binaries(environ)
    if not found.binaries:
        raise CannotStart(
            "no PostgreSQL server is installed here",
            facts=(f"looked in {', '.join(found.looked_in)}",),
        )
    facts = []
    for binaries in found.binaries:
        for identity in identities():
            done = await host.run(
                (str(binaries.folder / "postgres"), "--version"), identity, folder=host.disk()
            )
            version = VERSION.search(done.output)
            if done.code == 0 and version is not None:
                return Installation(binaries=binaries, version=version[1], identity=identity)
            facts.append(f"{binaries.folder}, {as_whom(identity)}: {why(done)}")
    raise CannotStart("the PostgreSQL programs that were found cannot be run", facts=facts)


async def obtain(
    host: ServerHost, installation: Installation, cache: Cache, *, distrusted: bool = False
) -> Template:
    """Give the cached cluster, or make it and cache it where that is possible.

    `distrusted` says that the cached one proved useless. Raises CannotStart.
    """
    version = installation.version
    try:
        key = Cache.key(installation.binaries.folder, version, installation.identity)
    except OSError as error:
        raise CannotStart(f"the PostgreSQL programs are gone: {error}") from error
    if not distrusted and (found := cache.find(key, version)):
        return found
    lock = await _locked(cache, key)
    if lock is None:
        return await _make(host, installation)
    with lock:
        # Another run may have made it while this one waited.
        if not distrusted and (found := cache.find(key, version)):
            return found
        return await _make(host, installation, cache, key)


async def _locked(cache: Cache, key: str) -> contextlib.ExitStack | None:
    """Take the right to make an entry of the cache; None when the cache cannot be used."""
    deadline = time.monotonic() + _LOCK_PATIENCE
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            if (lock := cache.try_lock(key)) is not None:
                return lock
            await asyncio.sleep(_LOOK_AGAIN)
    return None


async def _make(
    host: ServerHost, installation: Installation, cache: Cache | None = None, key: str = ""
) -> Template:
    """Make a cluster and its image: in the cache, else in a folder of the run. Raises CannotStart."""
    identity = installation.identity
    try:
        folder = host.new_folder(host.base_for(_SIZE))
        data = folder / cluster.DATA
        data.mkdir(mode=0o700)
        password = cluster.new_password()
        password_file = folder / cluster.PASSWORD
        cluster.write_secret(password_file, password)
        for path in (data, password_file):
            hand_over(path, identity)
        done = await host.run(
            cluster.initdb_command(installation.binaries.folder, data, password_file),
            identity,
            folder=folder,
        )
        if done.code != 0:
            raise CannotStart(
                f"initdb of PostgreSQL {installation.version} failed, {as_whom(identity)}",
                facts=cluster.tail(done.output) or (why(done),),
                advice=(NAME_A_SERVER,),
            )
        password_file.unlink()
        cluster.add_settings(data)
        what = {"version": installation.version, "password": password}
        template: Template | None = None
        if cache is not None:
            template = await asyncio.to_thread(cache.publish, key, data, **what)
        if template is None:
            image = folder / cluster.IMAGE
            template = await asyncio.to_thread(cluster.write_image, data, image, **what)
        host.remove_soon(data)
    except OSError as error:
        raise no_folder(error) from error
    except NoImageError as error:
        raise CannotStart(f"the fresh cluster cannot be used: {error}", advice=()) from error
    return template


def identities() -> tuple[str, ...]:
    """List as whom the programs may be run, best first; they refuse root, and unknown users."""
    uid = os.geteuid()
    if uid == 0:
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            return (f"{boot.NOBODY}:{boot.NOBODY}", "namespace")
        return (f"{nobody.pw_uid}:{nobody.pw_gid}", "namespace")
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return ("namespace", "self")
    return ("self",)


def as_whom(identity: str) -> str:
    """Say as whom a program was run."""
    match identity:
        case "self":
            return "as this user"
        case "namespace":
            return "in a user namespace"
        case _:
            return f"as uid {identity.partition(':')[0]}"
