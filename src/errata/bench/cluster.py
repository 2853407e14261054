"""Cluster: the machines of a Ray cluster, as far as a benchmark needs to know them.

    with connected(address) as cluster:
        rows, refused = Dispatch(cluster, file, streams, models, output, share).carry_out()

It needs `pip install 'errata[ray]'`. Nothing is sent home: usage statistics and the dashboard are off.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from errata.errors import BadOption, ErrataError, MissingExtra

Result = TypeVar("Result")
PATIENCE = 5.0
"""Seconds between two looks at whether the cluster is there ..."""
GRACE = 15.0
"""... and how many it may be gone."""


class Share(NamedTuple):
    """What one cell takes of a machine, and how it computes there."""

    cpus: int = 1
    """CPUs, which are its threads too."""
    gpus: float | None = None
    """GPUs, or a part of one; by default one where the cluster has any."""
    device: str | None = None
    dtype: str = "auto"

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


@contextmanager
def connected(address: str | None = None) -> Iterator["Cluster"]:
    """Scope: the cluster at `address`, or RAY_ADDRESS, or else one of this machine alone.

    What Ray itself would print is dropped. Raises `MissingExtra` without Ray, `BadOption` for an address of another kind,
    `ErrataError` where no cluster answers.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "--engine ray") from None
    if ray.is_initialized():
        with redirect_stdout(StringIO()):
            yield Cluster(ray)
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options["include_dashboard"] = False
    elif address != "auto":
        _reach(address)
    with redirect_stdout(StringIO()):
        try:
            ray.init(address=address, **options)
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise ErrataError(f"no Ray cluster can be used at {address}: {' '.join(str(error).split())}") from error
        try:
            yield Cluster(ray)
        finally:
            ray.shutdown()


class Cluster:
    """The cluster that this process is connected to."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.address: str = ray.get_runtime_context().gcs_address
        self._looked = self._seen = monotonic()

    def fitting(self, share: Share) -> Share:
        """A share with its GPUs. Raises `BadOption` for one that no machine has room for."""
        there = any("GPU" in machine for machine in self._machines())
        gpus = float(there and share.device != "cpu") if share.gpus is None else share.gpus
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise BadOption(f"--gpus-each {gpus:g}: a part of one GPU, or a whole number of them")
        share = share._replace(gpus=gpus)
        if not self.room(share):
            raise BadOption(f"no machine of the Ray cluster has {share}; give other --cpus-each or --gpus-each")
        return share

    def room(self, share: Share) -> int:
        """How many of such shares the machines have, if nobody else uses them."""
        asked = {"CPU": share.cpus, "GPU": share.gpus}
        return sum(
            min(int(machine.get(kind, 0) / count) for kind, count in asked.items() if count)
            for machine in self._machines()
        )

    def _machines(self) -> list[dict[str, float]]:
        """What there is of each kind, machine by machine."""
        return [node["Resources"] for node in self.ask(self.ray.nodes) if node["Alive"]]

    def look(self) -> None:
        """Raise `ErrataError` where the head has been gone for a while."""
        if monotonic() - self._looked >= PATIENCE:
            there = _answers(self.address)
            self._looked = monotonic()
            self._seen = self._looked if there else self._seen
        if self.gone:
            raise ErrataError(f"the Ray cluster at {self.address} is gone")

    @property
    def gone(self) -> bool:
        """Whether the head had been missing for too long when it was last looked for."""
        return self._looked - self._seen >= GRACE

    def ask(self, call: Callable[[], Result]) -> Result:
        """What a call gives that the head has to answer. Ray by itself waits, and after a minute ends the process."""
        answer: Future[Result] = Future()

        def wait() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001  # it is raised again, by `result`
                answer.set_exception(error)

        self.look()
        Thread(target=wait, daemon=True).start()
        while True:
            try:
                return answer.result(timeout=PATIENCE)
            except TimeoutError:
                if answer.done():
                    raise
                self.look()


def _reach(address: str) -> None:
    """Ray would wait for minutes."""
    if "://" in address or not address.rpartition(":")[2].isdecimal():
        raise BadOption(
            f"--address {address}: HOST:PORT of the head of a Ray cluster, as `ray start` tells it, or auto"
        )
    if not _answers(address):
        raise ErrataError(f"no Ray cluster answers at {address}; `ray start --head` starts one and tells its address")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE):
            return True
    except OSError:
        return False
