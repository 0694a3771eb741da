"""A private PostgreSQL on loopback, from the system's packages: for the benchmarks, and for the store's tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

USER = "postgres"


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, the newest of several; None where PostgreSQL is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].split(".")[0]))
    found = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextmanager
def cluster(*, durable: bool = True) -> Iterator[str]:
    """Its URL. `durable=False` leaves out what protects from a crash of the machine, which tests need not wait for.

    PostgreSQL refuses to run as root: then it runs as its own user. Raises RuntimeError where it is not installed.
    """
    folder = programs()
    if folder is None:
        raise RuntimeError("PostgreSQL's initdb is not installed: apt-get install postgresql")
    owner = USER if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="sortednet-postgres-") as temporary:
        if owner:
            entry = pwd.getpwnam(owner)
            os.chown(temporary, entry.pw_uid, entry.pw_gid)
        data = Path(temporary) / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = f"-p {port} -k {temporary} -c listen_addresses=127.0.0.1"
        if not durable:
            settings += " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"

        def call(program: str, *arguments: str) -> None:
            command = [str(folder / program), "-D", str(data), *arguments]
            done = subprocess.run(command, user=owner, cwd=temporary, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                raise RuntimeError(f"{program}: {done.stdout.decode(errors='replace')}")

        call("initdb", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", *([] if durable else ["--no-sync"]))
        log = str(Path(temporary) / "log")  # a file, for the server keeps it open
        call("pg_ctl", "-w", "-l", log, "-o", settings, "start")
        try:
            yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-w", "-m", "immediate", "stop")
