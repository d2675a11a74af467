"""Words in which API servers refuse objects."""

from __future__ import annotations

WORDS = {
    "nothing": "",
    "plain": "no",
    "several lines": "a\n\tb\r\n",
    "quota": 'jobs.batch "x" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, used: 1, limited: 1',
    "must specify": "failed quota: q2: must specify requests.cpu for: stage",
    "pod security": 'pods "x" is forbidden: violates PodSecurity "restricted:latest": hostNetwork',
    "webhook": 'admission webhook "policy.example" denied the request: cost centre',
    "policy": "jobs \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: cost centre",
    "typed patch": "failed to create typed patch object (ml/x; batch/v1, Kind=Job): .spec.template.spec.nonsense: "
    "field not declared in schema",
    "conversion": "failed to convert new object (ml/x; batch/v1, Kind=Job): quantities must match the regular "
    "expression",
    "validation": 'Job.batch "x" is invalid: spec.template.spec.tolerations[0].key: Invalid value: "-"',
    "immutable": 'Job.batch "x" is invalid: spec.template: Invalid value: {"Volumes":[]}: field is immutable',
    "6,000 characters": "v" * 6_000,
    "1,000,000 characters": "spec.template.spec.containers[0].env[3]" * 25_000,
    "another script": "拒绝 \U0001f999 " * 2_000,
}
