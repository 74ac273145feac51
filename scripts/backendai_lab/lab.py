"""Ports and places of the lab, and what is started in which order."""

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backendai_lab import people, programs, services, settings
from backendai_lab.programs import Processes, Unavailable
from backendai_lab.settings import ManagerPlace

__all__ = ["Lab", "Unavailable"]
_NO_ENGINE = {"DOCKER_HOST": "tcp://127.0.0.1:9"}
"""A manager only wants to make a client for Docker, and never uses it here."""


class Lab:
    """A lab below `directory`, at ports from `base` on. Everything that is done already is left as it is."""

    def __init__(self, directory: Path, base: int) -> None:
        self.directory = directory
        self.processes = Processes(directory)
        self.postgres, self.etcd = base, base + 20
        self.redis = {"23": base + 10, "26": base + 11}
        self.managers = {"23": base + 81, "26": base + 82}
        self.coordinator, self.worker = base + 300, base + 301
        self.replicas = base + 320
        """Replica `n` listens at this plus `n`."""
        self._slots = (base + 302, base + 319)
        self._base = base

    def facts(self) -> dict[str, Any]:
        """What a test needs to know."""
        return {
            "managers": {
                release: f"http://127.0.0.1:{port}"
                for release, port in self.managers.items()
                if self.processes.is_alive(f"manager{release}")
            },
            "replicas": self.replicas,
            "users": {
                name: {"access_key": people.ACCESS_KEYS[name], "secret_key": people.SECRET_KEYS[name]} for name in people.USERS
            },
            "services": [service._asdict() for service in services.SERVICES],
        }

    def start(self, *, old: bool) -> None:
        """`old`: a manager 23.09.10 as well. Raises Unavailable."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)  # the database's user has to get through
        programs.unpack_debian(self.directory)
        self._start_database()
        self._start_stores("26")
        self._prepare("26")
        self.start_manager("26")
        self._start_proxy()
        if old:
            self._start_stores("23")
            self._prepare("23")
            self.start_manager("23")
        self.seed(old=old)

    def seed(self, *, old: bool) -> None:
        """Replicas that run, and services that are as they were at first."""
        for service in services.SERVICES:
            if service.model and service.replica < 80:
                self.start_replica(service.replica, service.model)
        urls = services.register(self.coordinator)
        for service in services.SERVICES:
            self._sql("backend26", services.rows_of_26(service, urls[service.id], self.replicas))
        services.route(self.coordinator, self.replicas)
        if old:
            self._sql("backend23", services.image_of_23(self.coordinator))
            for service in services.SERVICES:
                self._sql("backend23", services.rows_of_23(service, urls[service.id]))

    def start_replica(self, number: int, model: str) -> None:
        name = f"replica{number}"
        script = Path(__file__).parent / "replica.py"
        self.processes.start(name, [sys.executable, script, str(self.replicas + number), model])
        self.processes.wait_for_port(name, self.replicas + number)

    def stop_replica(self, number: int) -> None:
        self.processes.stop(f"replica{number}", how=signal.SIGKILL)

    def start_manager(self, release: str) -> None:
        name, place = f"manager{release}", self._place(release)
        (place.directory / "ipc").mkdir(exist_ok=True)
        self.processes.start(
            name, [self._backend_ai(release), "mgr", "start-server"], cwd=place.directory, environment=_NO_ENGINE
        )
        self.processes.wait_for_port(name, place.port)

    def stop_manager(self, release: str) -> None:
        self.processes.stop(f"manager{release}")

    def stop(self) -> None:
        names = ["manager26", "manager23", "worker", "coordinator", *(f"replica{number}" for number in range(1, 10))]
        for name in [*names, "redis26", "redis23", "etcd"]:
            self.processes.stop(name)
        if (self.directory / "pg").exists():
            self._as_postgres([str(programs.postgres_bin() / "pg_ctl"), "-D", str(self.directory / "pg"), "-m", "fast", "stop"])

    # Parts

    def _start_database(self) -> None:
        binaries, data = programs.postgres_bin(), self.directory / "pg"
        log = self.directory / "log" / "postgres.log"
        log.parent.mkdir(exist_ok=True)
        log.touch()
        if not data.exists():
            data.mkdir()
            self._give_to_postgres(data, log)
            self._as_postgres([str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres"], must=True)
        if self._as_postgres([str(binaries / "pg_ctl"), "-D", str(data), "status"]).returncode != 0:
            options = f"-p {self.postgres} -c listen_addresses=127.0.0.1 -c unix_socket_directories={data}"
            command = [str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(log), "-o", options, "start"]
            self._as_postgres(command, must=True)

    def _give_to_postgres(self, *paths: Path) -> None:
        if os.getuid() == 0:
            owner = self._postgres_user()
            for path in paths:
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def _as_postgres(self, command: Sequence[str], *, must: bool = False) -> subprocess.CompletedProcess[bytes]:
        """PostgreSQL refuses to run as root; everybody else runs it as he is."""
        user = self._postgres_user().pw_uid if os.getuid() == 0 else None
        null = subprocess.DEVNULL  # a server that inherits a pipe keeps whoever reads it waiting for ever
        ran = subprocess.run(command, stdin=null, stdout=null, stderr=null, cwd="/", check=False, user=user)
        if must and ran.returncode != 0:
            raise Unavailable(f"{Path(command[0]).name} failed; see {self.directory / 'log' / 'postgres.log'}")
        return ran

    def _postgres_user(self) -> pwd.struct_passwd:
        try:
            return pwd.getpwnam("postgres")
        except KeyError:
            raise Unavailable("there is no user postgres, as which PostgreSQL could run") from None

    def _start_stores(self, release: str) -> None:
        root = self.directory / "root"
        libraries = ":".join(str(path) for path in (*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu")))
        name, port, data = f"redis{release}", self.redis[release], self.directory / f"redis{release}"
        data.mkdir(exist_ok=True)
        command: list[str | Path] = [
            root / "usr/bin/redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--dir",
            data,
            "--save",
            "",
        ]
        self.processes.start(name, command, environment={"LD_LIBRARY_PATH": libraries})
        self.processes.wait_for_port(name, port)
        client, peer = (f"http://127.0.0.1:{each}" for each in (self.etcd, self.etcd + 1))
        self.processes.start(
            "etcd",
            [
                root / "usr/bin/etcd", "--data-dir", self.directory / "etcd", "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}",
            ],
        )  # fmt: skip
        self.processes.wait_for_port("etcd", self.etcd)

    def _place(self, release: str) -> ManagerPlace:
        return ManagerPlace(
            database=f"backend{release}",
            directory=self.directory / f"manager{release}",
            port=self.managers[release],
            internal_port=self._base + 83 if release == "26" else None,
            monitor_port=self._base + 200 + (10 if release == "26" else 0),
            etcd_port=self.etcd,
            postgres_port=self.postgres,
        )

    def _backend_ai(self, release: str) -> Path:
        return programs.environment_of(release, self.directory) / "bin/backend.ai"

    def _prepare(self, release: str) -> None:
        """Settings, schema and fixtures: once."""
        place = self._place(release)
        ready = place.directory / ".ready"
        if ready.exists():
            return
        place.directory.mkdir(exist_ok=True)
        is_new = release == "26"
        self._write_settings(place)
        self._sql("postgres", f"drop database if exists {place.database}")
        self._sql("postgres", f"create database {place.database}")
        self._run(release, "mgr", "generate-rpc-keypair", ".", "manager")
        self._run(release, "mgr", "etcd", "put", "config/redis/addr", f"127.0.0.1:{self.redis[release]}")
        self._run(release, "mgr", "etcd", "put-json", "volumes", "volumes.json")
        if not is_new:
            self._run(release, "mgr", "etcd", "put", "config/docker/registry/cr.local", "https://cr.local.invalid")
            self._run(release, "mgr", "etcd", "put", "config/docker/registry/cr.local/type", "docker")
        self._run(release, "mgr", "schema", "oneshot")
        for name, rows in people.fixtures(new=is_new, coordinator_port=self.coordinator).items():
            (place.directory / f"{name}.json").write_text(json.dumps(rows))
            self._run(release, "mgr", "fixture", "populate", f"{name}.json")
        if is_new:
            self._grant_roles(place.directory)
            self._prepare_proxy(place.directory)
        ready.touch()

    def _write_settings(self, place: ManagerPlace) -> None:
        (place.directory / "manager.toml").write_text(settings.manager_toml(place))
        alembic = settings.alembic_ini("ai.backend.manager.models:alembic", place.database, self.postgres)
        (place.directory / "alembic.ini").write_text(alembic)
        (place.directory / "volumes.json").write_text(settings.volumes())

    def _grant_roles(self, directory: Path) -> None:
        """Without them 26.9 refuses everything to everybody but a superadmin."""
        (directory / "seed/fixtures/manager").mkdir(parents=True, exist_ok=True)
        self._run("26", "mgr", "permissions", "emit", "--repository", "seed")
        self._run("26", "mgr", "fixture", "populate", "seed/fixtures/manager/example-role-presets.json")
        self._run("26", "mgr", "permissions", "provision")

    def _prepare_proxy(self, directory: Path) -> None:
        database = "appproxy26"
        self._sql("postgres", f"drop database if exists {database}")
        self._sql("postgres", f"create database {database}")
        monitor, redis = self._base + 220, self.redis["26"]
        coordinator = settings.coordinator_toml(
            port=self.coordinator, monitor_port=monitor, redis_port=redis, postgres_port=self.postgres, database=database
        )
        (directory / "app-proxy-coordinator.toml").write_text(coordinator)
        worker = settings.worker_toml(
            port=self.worker, monitor_port=monitor + 10, redis_port=redis, coordinator_port=self.coordinator, services=self._slots
        )
        (directory / "app-proxy-worker.toml").write_text(worker)
        alembic = settings.alembic_ini("ai.backend.appproxy.coordinator.models:alembic", database, self.postgres)
        (directory / "alembic-appproxy.ini").write_text(alembic)
        file = "app-proxy-coordinator.toml"
        self._run("26", "app-proxy-coordinator", "-f", file, "schema", "oneshot", "-f", "alembic-appproxy.ini")

    def _start_proxy(self) -> None:
        directory = self._place("26").directory
        for name, port in (("coordinator", self.coordinator), ("worker", self.worker)):
            command: list[str | Path] = [
                self._backend_ai("26"),
                f"app-proxy-{name}",
                "-f",
                f"app-proxy-{name}.toml",
                "start-server",
            ]
            self.processes.start(name, command, cwd=directory)
            self.processes.wait_for_port(name, port)
        self.processes.wait_for_line("coordinator", "joined")

    def _run(self, release: str, *arguments: str) -> None:
        command = [str(self._backend_ai(release)), *arguments]
        ran = subprocess.run(
            command, cwd=self._place(release).directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        with (self.directory / "log" / f"prepare{release}.log").open("a") as log:
            log.write(f"{time.strftime('%T')} {' '.join(arguments)}: {ran.returncode}\n{ran.stdout}{ran.stderr}\n")
        if ran.returncode != 0:
            raise Unavailable(f"backend.ai {' '.join(arguments)} failed; see {self.directory / 'log' / f'prepare{release}.log'}")

    def _sql(self, database: str, statements: str) -> None:
        command = ["psql", "-q", "-h", "127.0.0.1", "-p", str(self.postgres), "-U", "postgres", "-v", "ON_ERROR_STOP=1", database]
        ran = subprocess.run([*command, "-c", statements], capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise Unavailable(f"psql {database}: {ran.stderr.strip()[-300:]}")
