"""The quickstart's assets in a bucket of a real S3 server: made once, whole or not at all, found by every later pod."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support.s3_server import S3Server

from wrpo_engine.artifacts.s3_client import S3Bucket
from wrpo_engine.config import S3Storage
from wrpo_engine.errors import DataError
from wrpo_engine.quickstart import assets, models
from wrpo_engine.quickstart.bucket import BucketAssets
from wrpo_engine.quickstart.building import Asset
from wrpo_engine.quickstart.store import AssetStore

BUCKET, PREFIX = "assets", "quick/start"
RECIPE = {"version": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    running = S3Server(tmp_path_factory.mktemp("s3")).start()
    running.make_bucket(BUCKET)
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def environment(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**server.environ(), "AWS_ENDPOINT_URL": server.endpoint}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


Pod = Callable[[str], BucketAssets]


@pytest.fixture
def pod(server: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> Pod:
    """`pod(name)`: the store as a pod with a scratch directory of that name sees it; a prefix for each test."""
    uri = f"s3://{BUCKET}/{PREFIX}/{request.node.name}"

    def open_store(name: str) -> BucketAssets:
        bucket = S3Bucket.open(S3Storage(uri=uri, endpoint=server.endpoint), {}, lambda: False)
        return BucketAssets(bucket, AssetStore(tmp_path / name))

    return open_store


def build(text: str, *names: str) -> Callable[[Path], None]:
    def fill(directory: Path) -> None:
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)

    return fill


def names_of(store: BucketAssets) -> list[str]:
    return sorted(entry.key for entry in store.bucket.listing())


def test_an_asset_that_one_pod_made_is_current_for_the_next_and_comes_with_its_bytes(pod: Pod) -> None:
    pod("first").make("models/a", RECIPE, build("data", "weights", "deep/config"))
    second = pod("second")
    assert second.is_current("models/a", RECIPE)
    assert not second.is_current("models/a", {"version": 2})
    assert not second.is_current("models/b", RECIPE)
    second.provide("models/a")
    assert (second.root / "models/a/deep/config").read_text() == "data"
    assert names_of(second) == ["models/a/asset.json", "models/a/deep/config", "models/a/weights"]


def test_a_newer_recipe_leaves_nothing_of_the_older_one(pod: Pod) -> None:
    pod("first").make("models/a", RECIPE, build("old", "weights", "gone"))
    second = pod("second")
    second.make("models/a", {"version": 2}, build("new", "weights"))
    assert names_of(second) == ["models/a/asset.json", "models/a/weights"]
    assert second.bucket.read("models/a/weights") == b"new"


def test_a_build_that_was_killed_half_way_is_not_current(pod: Pod) -> None:
    store = pod("first")
    store.make("models/a", RECIPE, build("data", "weights", "config"))
    store.bucket.delete(["models/a/weights"])
    assert not store.is_current("models/a", RECIPE)
    store.bucket.delete(["models/a/asset.json"])
    assert not store.is_current("models/a", RECIPE)


def test_an_altered_asset_is_not_built_upon(pod: Pod) -> None:
    pod("first").make("models/a", RECIPE, build("data", "weights"))
    second = pod("second")
    second.bucket.put("models/a/weights", b"tada")
    with pytest.raises(DataError, match=r"models/a/weights differs from its asset.json"):
        second.provide("models/a")


def test_a_file_is_written_only_where_it_differs(pod: Pod) -> None:
    store = pod("first")
    store.write("datasets/prompts", "one")
    before = store.bucket.stat("datasets/prompts")
    store.write("datasets/prompts", "one")
    assert store.bucket.stat("datasets/prompts") == before
    store.write("datasets/prompts", "two")
    assert store.bucket.read("datasets/prompts") == b"two"


def make_base(out: Path, _on_step: object) -> None:
    (out / "weights").write_text("base")


def make_derived(root: Path, out: Path, _on_step: object) -> str:
    (out / "weights").write_text((root / "models/base/weights").read_text() + " and more")
    return "it is derived"


def plan(root: Path) -> list[Asset]:
    derive = partial(make_derived, root)
    return [
        Asset(name="models/base", recipe=RECIPE, build=make_base),
        Asset(name="models/derived", recipe=RECIPE, build=derive, made_from=("models/base",)),
    ]


def test_the_command_makes_in_a_bucket_what_it_makes_in_a_directory(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assets, "plan_assets", plan)
    monkeypatch.setattr(models, "IMPORTS", ("torch",))
    monkeypatch.setattr(assets, "write_prompts", lambda store, **_: store.write(assets.PROMPTS, "prompts"))
    monkeypatch.setenv("WRPO_SCRATCH", str(tmp_path))
    out = f"s3://{BUCKET}/command"
    assert assets.main(["--out", str(tmp_path / "volume")]) == 0
    assert assets.main(["--out", out]) == 0
    server.client().delete_object(Bucket=BUCKET, Key="command/models/derived/asset.json")
    capsys.readouterr()
    assert assets.main(["--out", out]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [
        "[1/2] models/base: exists already",
        "[2/2] models/derived: making it",
        "models/derived: it is derived",
    ]
    assert said[-1] == f"all assets are in {out}"
    content = {key: read(server, key) for key in server.keys(BUCKET, "command/")}
    volume = {path.relative_to(tmp_path / "volume"): path.read_bytes() for path in (tmp_path / "volume").rglob("*.*")}
    assert content["command/models/derived/weights"] == b"base and more"
    assert content["command/models/base/asset.json"] == volume[Path("models/base/asset.json")]
    assert content[f"command/{assets.PROMPTS}"] == volume[Path(assets.PROMPTS)]
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]


def read(server: S3Server, key: str) -> bytes:
    content: bytes = server.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return content


REFUSED = {
    "no bucket": ("s3:///x", 64, "error: s3:///x names no bucket. Write s3://BUCKET/PREFIX.\n"),
    "another scheme": (
        "gs://bucket/x",
        64,
        "error: gs://bucket/x: nothing is written to gs://. Write a path, s3://BUCKET/PATH or storage://PATH.\n",
    ),
}


@pytest.mark.parametrize(("out", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_place_that_is_none_is_refused(out: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert assets.main(["--out", out]) == code
    assert capsys.readouterr().err == message


def test_a_bucket_that_is_not_there_is_an_error_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert assets.main(["--out", "s3://nobody-made-this/x"]) == 78
    assert "there is no bucket nobody-made-this. Create the bucket" in capsys.readouterr().err


def test_the_record_is_what_the_directory_store_records(pod: Pod) -> None:
    store = pod("first")
    store.make("models/a", RECIPE, build("data", "weights"))
    record = json.loads(store.bucket.read("models/a/asset.json") or b"")
    assert record == store.local.read_record("models/a")
