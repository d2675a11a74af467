"""The embedded control plane in the role of somebody else's: simulated nodes and pods, and few controllers.

    PYTHONPATH=operator:. python tests/e2e/foreign_cluster.py up DIRECTORY     prints KUBECONFIG=...
    PYTHONPATH=operator:. python tests/e2e/foreign_cluster.py down DIRECTORY

It has what a bare control plane with real Job, garbage-collection and namespace controllers has: no controller of
PyTorchJobs or TrainJobs, no binder of volumes, no Deployments; and new CRDs have no conditions at first. For trying
WRPO_E2E_CLUSTER=1 without a cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path

from wrpo_devcluster import lifecycle
from wrpo_devcluster.config import ClusterConfig, NodeConfig

ABSENT = (
    "pytorchjob-controller",
    "trainjob-controller",
    "jobset-controller",
    "persistentvolume-controller",
    "deployment-controller",
    "replicaset-controller",
)


def config(state_dir: Path) -> ClusterConfig:
    nodes = tuple(NodeConfig(name=f"gpu-{index}", cpu="16", memory="128Gi", gpus=8) for index in range(2))
    return ClusterConfig(
        state_dir=state_dir, nodes=nodes, simulated=True, without_controllers=ABSENT, crd_status_delay_s=2.0
    )


def main() -> None:
    what, directory = sys.argv[1], Path(sys.argv[2])
    if what == "up":
        info = lifecycle.up(directory, config=config(directory), with_crds=tuple(sys.argv[3:]))
        sys.stdout.write(f"KUBECONFIG={info.kubeconfig}\n")
    elif what == "down":
        lifecycle.reset(directory)
    else:
        raise SystemExit(f"up or down, not {what!r}")


if __name__ == "__main__":
    main()
