"""Deletion: grace periods, finalizers, propagation, and the special rules of namespaces and CRDs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.registry import strategies
from wrpo_devcluster.apiserver.registry.pipeline import RequestPipeline
from wrpo_devcluster.apiserver.schema import codec
from wrpo_devcluster.apiserver.schema.kinds import Kind
from wrpo_devcluster.apiserver.validation import crds
from wrpo_devcluster.client import JsonObject

ORPHAN, FOREGROUND = "orphan", "foregroundDeletion"
_JOB_WARNING = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set"
    " propagationPolicy=Orphan to suppress this warning"
)


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """Parsed metav1.DeleteOptions, from body and query."""

    propagation: str | None = None
    grace_s: int | None = None
    uid: str | None = None
    resource_version: str | None = None

    @classmethod
    def parse(cls, body: Any) -> DeleteOptions:
        """Return the options of a request's body; the defaults if it is no object. Raise 422 for an unknown
        propagation.
        """
        body = body if isinstance(body, dict) else {}
        propagation = body.get("propagationPolicy")
        if propagation is None and body.get("orphanDependents") is not None:
            propagation = "Orphan" if body["orphanDependents"] else "Background"
        if propagation not in {None, "Orphan", "Background", "Foreground"}:
            cause = errors.unsupported_field("propagationPolicy", propagation, ("Foreground", "Background", "Orphan"))
            raise errors.invalid("DeleteOptions", "meta.k8s.io", "", [cause])
        conditions = body.get("preconditions") or {}
        grace = body.get("gracePeriodSeconds")
        return cls(
            propagation,
            int(grace) if grace is not None else None,
            conditions.get("uid"),
            conditions.get("resourceVersion"),
        )


class Deleter:
    """Deletion of objects through the pipeline."""

    def __init__(self, pipeline: RequestPipeline) -> None:
        self.pipeline = pipeline

    def delete(
        self, kind: Kind, namespace: str | None, name: str, options: DeleteOptions, context: Context
    ) -> tuple[JsonObject, bool]:
        """Delete an object; return it and whether it is gone already."""
        old = self.pipeline.get(kind, namespace, name)
        self._check_preconditions(kind, old, options)
        self.pipeline.admission.validate_deletion(kind, old, context)
        if (kind.group, kind.kind) == ("batch", "Job") and options.propagation is None:
            context.warn(_JOB_WARNING)
        if (kind.group, kind.kind) == ("", "Namespace"):
            return self._delete_namespace(kind, old, context)
        if (kind.group, kind.kind) == ("apiextensions.k8s.io", "CustomResourceDefinition"):
            return self._delete_crd(kind, old, context)
        return self._delete(kind, old, options, context)

    @staticmethod
    def _check_preconditions(kind: Kind, old: JsonObject, options: DeleteOptions) -> None:
        meta = old["metadata"]
        if options.uid is not None and options.uid != meta["uid"]:
            why = (
                f"the UID in the precondition ({options.uid}) does not match the UID in record ({meta['uid']})."
                " The object might have been deleted and then recreated"
            )
            raise errors.conflict(kind.kind, kind.group, meta["name"], why)
        if options.resource_version is not None and options.resource_version != meta["resourceVersion"]:
            why = (
                f"the ResourceVersion in the precondition ({options.resource_version}) does not match the"
                f" ResourceVersion in record ({meta['resourceVersion']}). The object might have been modified"
            )
            raise errors.conflict(kind.kind, kind.group, meta["name"], why)

    def _delete(self, kind: Kind, old: JsonObject, options: DeleteOptions, context: Context) -> tuple[JsonObject, bool]:
        meta = dict(old["metadata"])
        finalizers = _finalizers(kind, meta.get("finalizers") or [], options)
        grace = self._grace(kind, old, options)
        if not finalizers and grace == 0:
            final = old if context.dry_run else self.pipeline.remove(kind, old)
            return final, True
        moment = self.pipeline.clock()
        if meta.get("deletionTimestamp"):
            # A second deletion may only shorten the grace period.
            shorter = grace < meta.get("deletionGracePeriodSeconds", 0)
            if not shorter and finalizers == (meta.get("finalizers") or []):
                return old, False
            if shorter:
                self._mark(meta, moment, grace)
        else:
            self._mark(meta, moment, grace)
            if meta.get("generation"):
                meta["generation"] += 1
        meta.pop("finalizers", None)
        if finalizers:
            meta["finalizers"] = finalizers
        new = {**old, "metadata": meta}
        if context.dry_run:
            return new, False
        return self.pipeline.store_unchecked(kind, new, old), False

    @staticmethod
    def _mark(meta: JsonObject, moment: datetime, grace: int) -> None:
        meta["deletionTimestamp"] = codec.format_time(moment + timedelta(seconds=grace))
        meta["deletionGracePeriodSeconds"] = grace

    @staticmethod
    def _grace(kind: Kind, old: JsonObject, options: DeleteOptions) -> int:
        """Return the seconds that a pod gets to terminate; other objects end at once."""
        if (kind.group, kind.kind) != ("", "Pod"):
            return 0
        if not old["spec"].get("nodeName") or (old.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
            return 0
        if options.grace_s is not None:
            return max(options.grace_s, 0)
        if old["metadata"].get("deletionGracePeriodSeconds") is not None:
            return int(old["metadata"]["deletionGracePeriodSeconds"])
        return int(old["spec"].get("terminationGracePeriodSeconds", 30))

    def _delete_namespace(self, kind: Kind, old: JsonObject, context: Context) -> tuple[JsonObject, bool]:
        if old["metadata"]["name"] in {"default", "kube-system", "kube-public"}:
            why = "this namespace may not be deleted"
            raise errors.forbidden(kind.plural, "", old["metadata"]["name"], why)
        if old["metadata"].get("deletionTimestamp"):
            return old, False
        meta = {**old["metadata"], "deletionTimestamp": self.pipeline.now()}
        new = {**old, "metadata": meta, "status": {**old["status"], "phase": "Terminating"}}
        if not old["spec"].get("finalizers") and not meta.get("finalizers"):
            return (old if context.dry_run else self.pipeline.remove(kind, old)), True
        if context.dry_run:
            return new, False
        return self.pipeline.store_unchecked(kind, new, old), False

    def _delete_crd(self, kind: Kind, old: JsonObject, context: Context) -> tuple[JsonObject, bool]:
        if old["metadata"].get("deletionTimestamp"):
            return old, False
        new = crds.terminating(old, self.pipeline.now())
        if context.dry_run:
            return new, False
        return self.pipeline.store_unchecked(kind, new, old), False


def _finalizers(kind: Kind, present: list[str], options: DeleteOptions) -> list[str]:
    """Return the object's finalizers with those that carry out the propagation policy."""
    others = [name for name in present if name not in {ORPHAN, FOREGROUND}]
    if options.propagation == "Orphan":
        return [*others, ORPHAN]
    if options.propagation == "Foreground":
        return [*others, FOREGROUND]
    if options.propagation == "Background":
        return others
    if present != others:
        return present
    # batch/v1 Jobs keep their pods by default, for compatibility.
    return [*others, ORPHAN] if (kind.group, kind.kind) == ("batch", "Job") else others


def success(kind: Kind, obj: JsonObject) -> JsonObject:
    """Return the reply of a delete after which the object is gone."""
    if strategies.returns_deleted(kind):
        return obj
    details = {"name": obj["metadata"]["name"], "group": kind.group, "kind": kind.plural, "uid": obj["metadata"]["uid"]}
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {key: value for key, value in details.items() if value},
    }
