"""JobSet (jobset.x-k8s.io/v1alpha2): one replicated job, an Indexed Job with one pod per node, and its Service.

JobSet's controller creates the Job and a headless Service, which gives the pods host names. It sets no PET_...
variables, so they are rendered here: the master is the pod of completion index 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrpo_operator.api.backends import BACKENDS, JOBSET_GANG
from wrpo_operator.plan.model import Manifest
from wrpo_operator.render.jobs import FINAL_CODE_RULE
from wrpo_operator.render.training.base import GangRequest, master_port, torchrun_variables

FAILURE_POLICY: dict[str, Any] = {
    # The operator recreates the gang, so that each attempt has its own name, logs and record.
    "maxRestarts": 0,
    "rules": [{"name": "finalExitCode", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
}
"""This rule only changes the reason of the condition Failed. The reason marks the failure as final even if the pods are
already deleted."""


class JobSetBackend:
    """JobSet of Kubernetes SIGs, without Kubeflow."""

    facts = BACKENDS["JobSet"]

    def render(self, request: GangRequest) -> tuple[Manifest, ...]:
        """Return the JobSet, after its PodGroup if it has one."""
        gang, subdomain = request.gang, request.name
        template = request.template(self.facts.container)
        master = f"{request.name}-{JOBSET_GANG}-0-0.{subdomain}"
        port = master_port(request.planned)
        container = template["spec"]["containers"][0]
        container["env"] = [*container["env"], *torchrun_variables(gang, master=master, port=port)]
        job = {
            "completionMode": "Indexed",
            "completions": gang.nodes,
            "parallelism": gang.nodes,
            # A gang fails as a whole: a disrupted pod is not replaced individually, unlike that of a shard.
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [FINAL_CODE_RULE]},
            "template": template,
        }
        jobset: dict[str, Any] = {
            "network": {"enableDNSHostnames": True, "subdomain": subdomain, "publishNotReadyAddresses": True},
            "failurePolicy": FAILURE_POLICY,
            "replicatedJobs": [{"name": JOBSET_GANG, "replicas": 1, "template": {"spec": job}}],
            **request.suspend(),
        }
        return request.child(self.facts, jobset)

    def rank_of(self, labels: Mapping[str, str]) -> int | None:  # noqa: ARG002
        """Return None: the pods are those of an Indexed Job."""
        return None
