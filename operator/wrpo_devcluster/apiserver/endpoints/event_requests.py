"""Writes of events.k8s.io Events, which are stored as core Events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.errors import Cause
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.endpoints import event_forms
from wrpo_devcluster.apiserver.fieldmanager import managed, patch
from wrpo_devcluster.apiserver.registry.decode import decode
from wrpo_devcluster.apiserver.schema import codec
from wrpo_devcluster.apiserver.schema.kinds import Kind, Target
from wrpo_devcluster.apiserver.services import Services
from wrpo_devcluster.apiserver.validation.event import validate_event, validate_event_update
from wrpo_devcluster.client import JsonObject, Patch


def create(services: Services, kind: Kind, namespace: str | None, body: Any, context: Context) -> JsonObject:
    """Store a new Event; return it in the core form."""
    obj = decode(kind, body, context)
    obj["metadata"].setdefault("namespace", namespace)
    _refuse(kind, obj, validate_event(event_forms.to_core(obj), is_new_form=True))
    key = managed.ManagerKey(context.manager, "Update", kind.api_version, "")
    managers = managed.record_update(kind.node, codec.zero(kind.node), obj, key, now=services.pipeline.now())
    core = event_forms.to_core(obj)
    target = Target(services.registry.core("events"), namespace, "")
    return services.pipeline.create(target, core, context, managers=managers)


def update(services: Services, target: Target, body: Any, context: Context) -> JsonObject:
    """Replace an Event; return it in the core form."""
    stored = replace(target, kind=services.registry.core("events"))
    old = services.pipeline.get(stored.kind, stored.namespace, stored.name)
    obj = decode(target.kind, body, context)
    obj["metadata"].setdefault("namespace", target.namespace)
    new = event_forms.to_core(obj)
    _refuse(target.kind, obj, validate_event_update(new, old, is_new_form=True))
    return services.pipeline.update(stored, new, context)[0]


def patch_event(services: Services, target: Target, content: Any, style: Patch, context: Context) -> JsonObject:
    """Patch an Event in the client's form, and store the core form."""
    old = event_forms.from_core(services.pipeline.get(services.registry.core("events"), target.namespace, target.name))
    try:
        if style == "json":
            new = patch.json_patch(old, content)
        elif style == "strategic":
            new = patch.strategic_merge(target.kind.node, old, content)
        else:
            new = patch.merge_patch(old, content)
    except patch.PatchError as problem:
        raise patch.refusal(problem) from problem
    return update(services, target, new, context)


def _refuse(kind: Kind, obj: JsonObject, causes: list[Cause]) -> None:
    if causes:
        raise errors.invalid(kind.kind, kind.group, obj["metadata"].get("name", ""), causes)
