"""Request pipeline of every read and write, over HTTP or in-process."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from wrpo_devcluster.apiserver.admission.chain import Admission
from wrpo_devcluster.apiserver.apis import errors
from wrpo_devcluster.apiserver.apis.request import Context
from wrpo_devcluster.apiserver.fieldmanager import applied, managed, patch
from wrpo_devcluster.apiserver.fieldmanager.managed import AppliedConfiguration, ManagerKey, Managers
from wrpo_devcluster.apiserver.registry import strategies
from wrpo_devcluster.apiserver.registry.carry_over import carry_over
from wrpo_devcluster.apiserver.registry.decode import check_identity, decode
from wrpo_devcluster.apiserver.schema import codec, typed
from wrpo_devcluster.apiserver.schema.kinds import Kind, Registry, Target
from wrpo_devcluster.apiserver.storage.store import Store
from wrpo_devcluster.apiserver.validation import metadata, objects
from wrpo_devcluster.client import JsonObject, Patch
from wrpo_devcluster.objects import random_suffix

_APPLY_SETS_STATUS_ONLY = "status"


class RequestPipeline:
    """Validation, admission, ownership and storage of every served kind."""

    def __init__(self, store: Store, registry: Registry, admission: Admission, clock: Callable[[], datetime]) -> None:
        self.store = store
        self.registry = registry
        self.clock = clock
        self.admission = admission
        self.after_write: list[Callable[[Kind, JsonObject | None, JsonObject | None], None]] = []
        """Called with kind, new and old object after every durable write."""

    def now(self) -> str:
        """Return the time as objects have it."""
        return codec.format_time(self.clock())

    # Reading

    def get(self, kind: Kind, namespace: str | None, name: str) -> JsonObject:
        """Return a stored object, which must not be changed; raise 404 if there is none."""
        record = self.store.get(kind.storage_key, namespace or "", name)
        if record is None:
            raise errors.not_found(kind.plural, kind.group, name)
        return record.obj

    # Creating

    def create(
        self, target: Target, body: JsonObject, context: Context, *, managers: Managers | None = None
    ) -> JsonObject:
        """Decode, check and store a new object, and return it. The target has a name if the URL has one."""
        kind, name = target.kind, target.name
        obj = decode(kind, body, context)
        self._place(kind, target.namespace, obj)
        if name and obj["metadata"].setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({obj['metadata']['name']}) does not match the name on the URL ({name})"
            )
        meta = obj["metadata"]
        if meta.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        return self.create_decoded(kind, obj, context, managers)

    def _place(self, kind: Kind, namespace: str | None, obj: JsonObject) -> None:
        meta = obj["metadata"]
        if not kind.namespaced:
            meta.pop("namespace", None)
        elif meta.setdefault("namespace", namespace) != namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )

    def create_decoded(
        self, kind: Kind, obj: JsonObject, context: Context, managers: Managers | None = None
    ) -> JsonObject:
        """Check and store a new object that is decoded already; fields that only the server sets are replaced."""
        meta = obj["metadata"]
        for name in (
            "uid",
            "resourceVersion",
            "generation",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ):
            meta.pop(name, None)
        meta.pop("managedFields", None)
        obj = strategies.without_status(kind, obj)
        self._generate_name(kind, obj)
        name, namespace = meta.get("name", ""), meta.get("namespace", "")
        self.admission.check_definition(kind, name)
        self.admission.check_namespace(kind, namespace, name)
        meta["creationTimestamp"] = self.now()
        meta["uid"] = str(uuid.uuid4())
        if managers is None:
            managers = managed.record_update(
                kind.node,
                codec.zero(kind.node) if kind.custom is None else {"metadata": {}},
                obj,
                ManagerKey(context.manager, "Update", kind.api_version, ""),
                now=self.now(),
            )
        self.admission.mutate(kind, obj)
        strategies.prepare_create(kind, obj)
        if kind.plural == "services" and kind.group == "":
            self._allocate(obj)
        causes = objects.faults(kind, obj, None)
        if causes:
            raise errors.invalid(kind.kind, kind.group, name, causes)
        for warning in metadata.finalizer_warnings(kind, meta):
            context.warn(warning)
        existing = self.store.get(kind.storage_key, namespace, name)
        if existing is not None:
            is_leaving = "deletionTimestamp" in existing.obj["metadata"]
            raise errors.already_exists(kind.plural, kind.group, name, is_leaving=is_leaving)
        self.admission.validate(kind, obj, None, context)
        if managers:
            meta["managedFields"] = managed.dump(managers)
        if context.dry_run:
            return obj
        return self.store_unchecked(kind, obj, None)

    def _generate_name(self, kind: Kind, obj: JsonObject) -> None:
        meta = obj["metadata"]
        if meta.get("name") or not meta.get("generateName"):
            return
        namespace = meta.get("namespace", "")
        for _ in range(8):
            meta["name"] = meta["generateName"][:58] + random_suffix()
            if self.store.get(kind.storage_key, namespace, meta["name"]) is None:
                return

    def _allocate(self, obj: JsonObject) -> None:
        taken = {
            address
            for record in self.store.list("/services", None)
            for address in record.obj["spec"].get("clusterIPs") or ()
        }
        # Seeded by the random uid, because clusters on one machine share its loopback addresses.
        strategies.allocate_addresses(obj, taken, uuid.UUID(obj["metadata"]["uid"]).int)

    def store_unchecked(self, kind: Kind, obj: JsonObject, old: JsonObject | None) -> JsonObject:
        """Store the server's own write, without validation or a record of ownership."""
        meta = obj["metadata"]
        record = self.store.put(kind.storage_key, meta.get("namespace", ""), meta["name"], obj)
        for hook in self.after_write:
            hook(kind, record.obj, old)
        return record.obj

    def remove(self, kind: Kind, obj: JsonObject, *, last: JsonObject | None = None) -> JsonObject:
        """Remove an object from the store and return its final version; `last` replaces the stored one in it."""
        meta = obj["metadata"]
        final = self.store.delete(kind.storage_key, meta.get("namespace", ""), meta["name"], last)
        for hook in self.after_write:
            hook(kind, None, final)
        return final

    # Changing

    def update(self, target: Target, body: JsonObject, context: Context) -> tuple[JsonObject, bool]:
        """Carry out a PUT; return the object and whether it was created."""
        kind, name, subresource = target.kind, target.name, target.subresource
        record = self.store.get(kind.storage_key, target.namespace or "", name)
        stored = record.obj if record is not None else None
        new = decode(kind, body, context, stored=stored, subresource=subresource)
        self._place(kind, target.namespace, new)
        meta = new["metadata"]
        if meta.setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
            )
        if record is None:
            if subresource or not strategies.may_create_on_update(kind):
                raise errors.not_found(kind.plural, kind.group, name)
            return self.create_decoded(kind, new, context), True
        if not meta.get("resourceVersion") and strategies.needs_version(kind):
            cause = errors.invalid_field("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(kind.plural, kind.group, name, [cause])
        return self.change(target, record.obj, new, context), False

    def change(
        self, target: Target, old: JsonObject, new: JsonObject, context: Context, *, managers: Managers | None = None
    ) -> JsonObject:
        """Replace `old` by the decoded `new`, with validation, admission and ownership."""
        kind, subresource = target.kind, target.subresource
        _check_preconditions(kind, new, old)
        new = carry_over(kind, old, new, subresource)
        meta, before = new["metadata"], old["metadata"]
        if managers is None:
            key = ManagerKey(context.manager, "Update", kind.api_version, subresource)
            managers = self._owners(kind, new, old, key)
        meta.pop("managedFields", None)
        entries = managed.dump(managers)
        if entries:
            meta["managedFields"] = entries
        if not subresource and (kind.group, kind.plural) == ("", "services"):
            strategies.carry_over_service(new, old)
        causes = objects.faults(kind, new, old)
        if causes:
            raise errors.invalid(kind.kind, kind.group, before["name"], causes)
        for warning in metadata.finalizer_warnings(kind, meta, before):
            context.warn(warning)
        self.admission.validate(kind, new, old, context, subresource)
        if strategies.has_generation(kind) and strategies.spec_changed(kind, new, old):
            meta["generation"] = before.get("generation", 0) + 1
        if _finished(new):
            return self._finish(kind, new, old, context)
        if _unchanged(new, old):
            return old
        if context.dry_run:
            return new
        return self.store_unchecked(kind, new, old)

    def _owners(self, kind: Kind, new: JsonObject, old: JsonObject, key: ManagerKey) -> Managers:
        """Return the managedFields after an update by the manager `key`."""
        given = new["metadata"].get("managedFields")
        if given == [{}]:
            # An explicitly emptied list drops every record of ownership.
            old = {**old, "metadata": {k: v for k, v in old["metadata"].items() if k != "managedFields"}}
        if given == [{}] or given is None:
            new["metadata"].pop("managedFields", None)
        return managed.record_update(kind.node, old, new, key, now=self.now())

    def _finish(self, kind: Kind, new: JsonObject, old: JsonObject, context: Context) -> JsonObject:
        """Delete an object whose last finalizer was removed."""
        if context.dry_run:
            return new
        final = self.remove(kind, old, last=new)
        return {**new, "metadata": {**new["metadata"], "resourceVersion": final["metadata"]["resourceVersion"]}}

    def patch(self, target: Target, body: Any, context: Context, *, style: Patch) -> tuple[JsonObject, bool]:
        """Carry out any of the four kinds of patches; return the object and whether it was created."""
        if style == "apply":
            return self._apply(target, body, context)
        kind, namespace, name, subresource = target.kind, target.namespace, target.name, target.subresource
        old = self.get(kind, namespace, name)
        try:
            if style == "merge":
                patched = patch.merge_patch(old, body)
            elif style == "json":
                patched = patch.json_patch(old, body)
            elif kind.custom is not None:
                raise errors.unsupported_media_type(
                    ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
                )
            else:
                patched = patch.strategic_merge(kind.node, old, body)
        except patch.PatchError as problem:
            raise patch.refusal(problem) from problem
        new = decode(kind, patched, context, stored=old, subresource=subresource)
        meta = new["metadata"]
        if meta.get("name") != name or meta.get("namespace", "") != (namespace or ""):
            if meta.get("name") != name:
                raise errors.bad_request(
                    f"the name of the object ({meta.get('name', '')}) does not match the name on the URL ({name})"
                )
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        return self.change(target, old, new, context), False

    def _apply(self, target: Target, body: Any, context: Context) -> tuple[JsonObject, bool]:
        kind, namespace, name, subresource = target.kind, target.namespace, target.name, target.subresource
        check_identity(kind, body)
        config: JsonObject = {**body, "metadata": dict(body.get("metadata") or {})}
        meta = config["metadata"]
        if meta.get("managedFields") is not None:
            raise errors.bad_request("metadata.managedFields must be nil")
        meta.setdefault("name", name)
        if meta["name"] != name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
            )
        if kind.namespaced:
            self._place(kind, namespace, config)
        record = self.store.get(kind.storage_key, namespace or "", name)
        if record is None and subresource:
            raise errors.not_found(kind.plural, kind.group, name)
        normal = applied.checked(kind, config, namespace, name)
        version, uid = meta.get("resourceVersion"), meta.get("uid")
        normal["metadata"] = {key: value for key, value in normal["metadata"].items() if key != "resourceVersion"}
        live = record.obj if record is not None else {}
        if record is not None and version and version != live["metadata"]["resourceVersion"]:
            raise errors.conflict(kind.plural, kind.group, name)
        if record is None and uid:
            causes = [errors.invalid_field("metadata.uid", uid, "field is immutable")] * 2
            raise errors.invalid(kind.kind, kind.group, name, causes)
        given = AppliedConfiguration(
            self._applicable(kind, normal, subresource),
            ManagerKey(context.manager, "Apply", "", subresource),
            api_version=kind.api_version,
            force=context.force,
        )
        merged, managers = managed.apply(kind.node, live, given, self.now())
        merged = {**merged, "kind": kind.kind, "apiVersion": kind.api_version}
        merged.setdefault("metadata", {})
        new = decode(kind, merged, context, stored=live or None, subresource=subresource)
        if record is None:
            return self.create_decoded(kind, new, context, managers), True
        return self.change(target, live, new, context, managers=managers), False

    @staticmethod
    def _applicable(kind: Kind, config: JsonObject, subresource: str) -> JsonObject:
        """Return the part of an applied configuration that this endpoint may set."""
        if subresource == _APPLY_SETS_STATUS_ONLY:
            meta = {key: value for key, value in config["metadata"].items() if key in {"name", "namespace"}}
            return {key: value for key, value in config.items() if key in {"kind", "apiVersion", "status"}} | {
                "metadata": meta
            }
        return {key: value for key, value in config.items() if key != "status"} if kind.has_status else config


def _check_preconditions(kind: Kind, new: JsonObject, old: JsonObject) -> None:
    """Refuse a change that names another version, or another object of the same name."""
    meta, before = new["metadata"], old["metadata"]
    if meta.get("resourceVersion", before["resourceVersion"]) not in {before["resourceVersion"], "", None}:
        raise errors.conflict(kind.plural, kind.group, before["name"])
    if meta.get("uid", before["uid"]) != before["uid"]:
        why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {before['uid']}"
        raise errors.conflict(kind.plural, kind.group, before["name"], why)


def _finished(obj: JsonObject) -> bool:
    meta = obj["metadata"]
    if not meta.get("deletionTimestamp") or meta.get("finalizers"):
        return False
    if obj.get("kind") == "Namespace" and obj.get("apiVersion") == "v1":
        return not obj["spec"].get("finalizers")
    return not meta.get("deletionGracePeriodSeconds")


def _unchanged(new: JsonObject, old: JsonObject) -> bool:
    """Return whether two objects are equal except for the times of managedFields."""

    def owners(obj: JsonObject) -> list[JsonObject]:
        entries = [
            {key: value for key, value in entry.items() if key != "time"}
            for entry in obj["metadata"].get("managedFields") or ()
        ]
        return sorted(
            entries,
            key=lambda entry: (entry["manager"], entry["operation"], entry["apiVersion"], entry.get("subresource", "")),
        )

    def rest(obj: JsonObject) -> JsonObject:
        return {**obj, "metadata": {**obj["metadata"], "managedFields": None}}

    return typed.same(rest(new), rest(old)) and typed.same(owners(new), owners(old))
