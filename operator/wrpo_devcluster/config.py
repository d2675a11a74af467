"""Cluster configuration: nodes, images, addresses and switches, kept as JSON in the state directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wrpo_devcluster.delays import NONE, Delays

_CONFIG_FILE = "cluster.json"
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ", "USER", "LOGNAME")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node. `gpus` is advertised as nvidia.com/gpu when it is not 0."""

    name: str
    cpu: str
    memory: str
    gpus: int = 0
    pods: int = 110
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    disk: str = "1Ti"
    """Its ephemeral-storage."""
    extended: Mapping[str, str] = field(default_factory=dict)
    """Further resources, e.g. {"amd.com/gpu": "8"}."""


@dataclass(frozen=True, slots=True)
class SimulatedRule:
    """What simulated pods with certain labels do."""

    labels: Mapping[str, str]
    """All of them must be labels of the pod."""
    annotations: Mapping[str, str]
    """Added to those of the pod, which take precedence."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Configuration of `serve`. `python -m wrpo_devcluster up --help` describes the options that set it."""

    state_dir: Path
    nodes: tuple[NodeConfig, ...]
    port: int = 0
    """Port of the API server. 0 selects a free one, which is kept over restarts."""
    simulated: bool = False
    """Pods follow fake.test/ annotations instead of running processes."""
    without_controllers: tuple[str, ...] = ()
    """Names of controllers that do not run, e.g. `pytorchjob-controller`, as on a bare control plane."""
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Image (with or without tag, or its last path part) -> entrypoint, for containers without a command."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that every container gets, before its own."""
    crd_status_delay_s: float = 0.0
    """Seconds for which a new CRD has no conditions and is not served. Real servers take up to some seconds."""
    rbac_delay_s: float = 0.0
    """Seconds after a start in which all but administrators get 403. Real servers load roles in about a second."""
    backoff_scale: float = 1.0
    """Factor on crash-loop, image-pull and Job backoffs."""
    volume_refresh_s: float = 5.0
    allow_host_path: bool = False
    rules: tuple[SimulatedRule, ...] = ()
    """What simulated pods do in addition to their annotations: the first whose labels a pod has."""
    delays: Delays = NONE
    """Delays of simulated pods, of the scheduler and of the Job controller."""
    shutdown_grace_s: float = 20.0
    """Seconds that pods get to terminate when the cluster is stopped."""
    warm: str = ""
    """Module of a program whose containers are forked from a process that has imported it
    (`wrpo_devcluster.kubelet.warm_server`). Empty: all containers start as usual."""

    @property
    def pods_dir(self) -> Path:
        """Directory with the data of all pods, one directory for each uid."""
        return self.state_dir / "pods"

    def container_environment(self, tools_dir: Path) -> dict[str, str]:
        """Return the variables of every container, with the directory of the node's own programs in PATH."""
        path = self.environment.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        return {**self.environment, "PATH": f"{path}:{tools_dir}"}


def default_node() -> NodeConfig:
    """Return a node the size of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return NodeConfig(name="wrpo-dev", cpu=str(os.cpu_count() or 1), memory=f"{memory // 1024}Ki")


def parse_rules(text: str) -> tuple[SimulatedRule, ...]:
    """Return the rules of a JSON list of {"labels": {...}, "annotations": {...}}; ValueError for another text."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    rule = 'must be a JSON list of {"labels": {...}, "annotations": {"fake.test/...": "..."}} with texts as values'
    if not isinstance(entries, list):
        raise ValueError(rule)  # noqa: TRY004  # for users, who gave a file
    for place, entry in enumerate(entries):
        is_entry = isinstance(entry, dict) and set(entry) == {"labels", "annotations"}
        parts = entry.values() if is_entry else ()
        if not is_entry or not all(isinstance(p, dict) and all(isinstance(v, str) for v in p.values()) for p in parts):
            raise ValueError(f"[{place}] is wrong: the file {rule}")
    return tuple(SimulatedRule(**entry) for entry in entries)


def simulated_config(
    state_dir: Path, *, cpu: str, memory: str, gpus: int = 0, nodes: tuple[NodeConfig, ...] = ()
) -> ClusterConfig:
    """Return a cluster whose pods follow annotations instead of running: of these nodes, or of two with `gpus` each."""
    nodes = nodes or tuple(NodeConfig(name=f"gpu-{index}", cpu=cpu, memory=memory, gpus=gpus) for index in (0, 1))
    return ClusterConfig(state_dir=state_dir, nodes=nodes, simulated=True)


def default_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that containers get from this machine, with the interpreter's programs first in PATH.

    Gloo is set to loopback, because it is the only network that pods share. Threads of OpenMP sleep while they wait,
    because by default they hold a core on which another pod could compute.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    passed = {name: environ[name] for name in _PASSED_ON if name in environ}
    # What this interpreter imports from outside its installation, the pods' interpreters can import too.
    installed = (sys.prefix, sys.base_prefix)
    extra = [entry for entry in sys.path if Path(entry).is_absolute() and not entry.startswith(installed)]
    imports = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(extra))} if extra else {}
    shared = {"GLOO_SOCKET_IFNAME": "lo", "OMP_WAIT_POLICY": "PASSIVE"}
    return {"LANG": "C.UTF-8", **passed, **imports, "PATH": path, **shared}


def save_config(config: ClusterConfig) -> None:
    """Write the configuration to the state directory, from which `load_config` reads it."""
    data = asdict(config)
    data.pop("state_dir")
    path = config.state_dir / _CONFIG_FILE
    temporary = path.with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(data, indent=2), encoding="utf-8")
    temporary.replace(path)


def load_config(state_dir: Path) -> ClusterConfig | None:
    """Return the configuration with which the state directory was last started; None before the first start."""
    try:
        data = json.loads((state_dir / _CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    nodes = tuple(NodeConfig(**{**node, "taints": tuple(node["taints"])}) for node in data.pop("nodes"))
    images = {name: tuple(command) for name, command in data.pop("images").items()}
    without = tuple(data.pop("without_controllers", ()))
    data["rules"] = tuple(SimulatedRule(**rule) for rule in data.pop("rules", ()))
    data["delays"] = Delays(**data.pop("delays", {}))
    return ClusterConfig(state_dir=state_dir, nodes=nodes, images=images, without_controllers=without, **data)
