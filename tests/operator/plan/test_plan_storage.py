"""A kind of storage is bound completely or refused: by the type checker, and at run time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from support.builders import raw_spec
from support.patience import LIMIT_S

from wrpo_engine.artifacts.roots import root_of
from wrpo_engine.contract.storage import S3Storage, Storage, StorageField, VolumeStorage
from wrpo_engine.errors import ConfigError
from wrpo_operator.api import sections
from wrpo_operator.api.base import SpecModel
from wrpo_operator.api.crd import schema
from wrpo_operator.api.parsing import parse_spec
from wrpo_operator.plan.storage import binding_of

ROOT = Path(__file__).resolve().parents[3]
CHECKED = (
    "wrpo_engine/contract/base.py",
    "wrpo_engine/contract/storage.py",
    "wrpo_engine/config.py",
    "wrpo_engine/artifacts/roots.py",
    "wrpo_operator/api/base.py",
    "wrpo_operator/api/sections.py",
    "wrpo_operator/plan/storage.py",
    "wrpo_operator/cli/storage.py",
)
PYDANTIC = """from typing import Any, ClassVar, Self

class BaseModel:
    model_fields: ClassVar[dict[str, Any]]
    def __init__(self, **values: Any) -> None: ...
    def model_dump(self, **options: Any) -> dict[str, Any]: ...
    @classmethod
    def model_validate(cls, value: Any) -> Self: ...

def __getattr__(name: str) -> Any: ...
"""
"""What the checked modules use of pydantic: reading all of it takes a minute, and a base of type Any checks nothing."""
VOLUME = sections.StorageVolume.model_validate({"claimName": "artifacts", "path": "lab/a"})
BUCKET = sections.StorageS3.model_validate(
    {"uri": "s3://lab/wrpo/", "endpoint": "http://s3:9000", "region": "eu", "credentialsSecretName": "keys"}
)


class StorageGcs(SpecModel):
    """A third kind, in the union alone."""

    uri: str


class WiderStorage(sections.Storage):
    gcs: StorageGcs | None = None


THIRD = WiderStorage.model_validate({"gcs": {"uri": "gs://bucket/prefix"}})


def test_a_volume_is_bound_by_its_claim_and_path() -> None:
    binding = binding_of(VOLUME)
    assert binding.identity == {"claim": "artifacts", "path": "lab/a"}
    assert binding.engine == VolumeStorage(path="lab/a")
    assert binding.environment == {"WRPO_VOLUME_ROOT": "/var/lib/wrpo"}
    assert binding.volumes == ({"name": "wrpo-storage", "persistentVolumeClaim": {"claimName": "artifacts"}},)
    assert binding.mounts == ({"name": "wrpo-storage", "mountPath": "/var/lib/wrpo"},)
    assert (binding.env_from, binding.credentials, binding.claim) == ((), None, "artifacts")


def test_a_bucket_is_bound_by_its_uri_and_endpoint() -> None:
    binding = binding_of(BUCKET)
    assert binding.identity == {"uri": "s3://lab/wrpo", "endpoint": "http://s3:9000"}
    assert binding.engine == S3Storage(uri="s3://lab/wrpo/", endpoint="http://s3:9000", region="eu")
    assert binding.environment == {"WRPO_SCRATCH": "/tmp"}
    assert binding.env_from == ({"secretRef": {"name": "keys"}},)
    assert (binding.volumes, binding.mounts, binding.credentials, binding.claim) == ((), (), "keys", None)


def test_spec_and_engine_have_the_same_kinds_with_the_same_fields() -> None:
    of_spec = {name: field.annotation for name, field in sections.Storage.model_fields.items()}
    assert {get_args(kind)[0] for kind in of_spec.values()} == set(get_args(sections.ChosenStorage))
    of_engine = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(Storage)[0])}
    assert set(of_spec) == set(of_engine)
    for kind, annotation in of_spec.items():
        section, member = get_args(annotation)[0], of_engine[kind]
        for name in set(member.model_fields) - {"kind"}:
            assert repr(section.model_fields[name].metadata) == repr(member.model_fields[name].metadata), (kind, name)


def test_every_field_that_an_error_of_a_storage_names_is_a_field_of_the_spec() -> None:
    for field in StorageField:
        node = schema()["properties"]["spec"]
        for part in field.split("."):
            assert part in node["properties"], field
            node = node["properties"][part]


@pytest.mark.parametrize(
    ("storage", "found"),
    [({}, "none"), ({"s3": {"uri": "s3://abc/d"}, "volume": {"claimName": "c"}}, "s3, volume")],
    ids=["none", "both"],
)
def test_a_storage_of_no_or_of_two_kinds_is_refused(storage: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match="exactly one") as error:
        _ = sections.Storage.model_validate(storage).chosen
    assert str(error.value) == f"spec.storage must have exactly one of s3 and volume; it has {found}"


def test_a_third_kind_without_a_binding_is_refused_when_it_is_used() -> None:
    with pytest.raises(TypeError) as error:
        binding_of(THIRD.chosen)
    assert str(error.value) == (
        "spec.storage: StorageGcs is a kind of storage that this version of the operator does not bind; use s3 or "
        "volume, or a version that supports it"
    )


def test_an_experiment_with_a_third_kind_has_no_artifact_key() -> None:
    from wrpo_operator.plan.graph import build_graph
    from wrpo_operator.plan.resources import settings_of
    from wrpo_operator.plan.starts import key_of

    spec = parse_spec(raw_spec())
    node = build_graph(spec)[0]
    third = spec.model_copy(update={"storage": THIRD})
    for use in (key_of, settings_of):
        with pytest.raises(TypeError, match="StorageGcs is a kind of storage"):
            use(third, node)


def test_a_kind_of_storage_that_the_engine_does_not_know_is_refused() -> None:
    unknown: Any = StorageGcs(uri="gs://bucket/prefix")
    with pytest.raises(ConfigError) as error:
        root_of(unknown, {})
    assert (error.value.code, str(error.value)) == (
        "StorageUnknown",
        "storage is 'StorageGcs': this version of the engine knows no such kind of storage",
    )


def copy_of_the_code(directory: Path) -> None:
    for package, source in (("wrpo_engine", ROOT), ("wrpo_operator", ROOT / "operator")):
        shutil.copytree(source / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "pydantic.pyi").write_text(PYDANTIC, encoding="utf-8")


def replace_once(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), encoding="utf-8")


def unhandled_kinds(directory: Path) -> list[str]:
    """Return the kinds that mypy finds unhandled in the modules that tell kinds apart; what else they import is Any."""
    flags = ["--follow-imports=skip", "--no-incremental", "--config-file=", "--no-error-summary"]
    command = [
        sys.executable,
        "-m",
        "mypy",
        *flags,
        "--no-site-packages",
        "--ignore-missing-imports",
        "pydantic.pyi",
        *CHECKED,
    ]
    ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert ran.stderr == ""
    return [line for line in ran.stdout.splitlines() if 'expected "Never"' in line]


def test_a_third_kind_in_the_union_alone_does_not_type_check(tmp_path: Path) -> None:
    copy_of_the_code(tmp_path)
    assert unhandled_kinds(tmp_path) == []
    replace_once(
        tmp_path / "wrpo_engine/contract/storage.py",
        "Storage: TypeAlias = Annotated[VolumeStorage | S3Storage,",
        'class GcsStorage(BaseModel):\n    kind: Literal["gcs"] = "gcs"\n\n\n'
        "Storage: TypeAlias = Annotated[VolumeStorage | S3Storage | GcsStorage,",
    )
    replace_once(
        tmp_path / "wrpo_operator/api/sections.py",
        "ChosenStorage: TypeAlias = StorageS3 | StorageVolume",
        "class StorageGcs(SpecModel):\n    uri: str\n\n\n"
        "ChosenStorage: TypeAlias = StorageS3 | StorageVolume | StorageGcs",
    )
    unhandled = 'error: Argument 1 to "{}" has incompatible type "{}"; expected "Never"  [arg-type]'
    refused = [line.split(": ", 1) for line in unhandled_kinds(tmp_path)]
    assert {(place.partition(":")[0], message) for place, message in refused} == {
        ("wrpo_engine/artifacts/roots.py", unhandled.format("unsupported", "GcsStorage")),
        ("wrpo_operator/plan/storage.py", unhandled.format("unbound", "StorageGcs")),
        ("wrpo_operator/cli/storage.py", unhandled.format("unbound", "StorageGcs")),
    }
