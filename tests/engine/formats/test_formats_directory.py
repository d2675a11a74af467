"""A directory's files are its splits by the names that `datasets` goes by; held-out files are never read unnoticed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wrpo_engine.errors import DataError, WrpoError
from wrpo_engine.formats.command import main
from wrpo_engine.formats.directory import Wanted, select
from wrpo_engine.formats.reading import read_triples
from wrpo_engine.prompts.reader import PromptColumn, read_values


def fill(directory: Path, names: Sequence[str]) -> None:
    """Write files whose only row names the file; .md, LICENSE and metadata get a text."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": name, "chosen": "a", "rejected": "b"}
        path.write_text(json.dumps(row) + "\n" if path.suffix in {".jsonl", ".json"} else "Terms of use\n")


def prompts(directory: Path, split: str = "train", **options: Any) -> list[str]:
    config = options.pop("config", None)
    return list(
        read_values(
            PromptColumn(dataset="d", path=str(directory), config=config, split=split, column="prompt", **options)
        )
    )


LAYOUTS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "names of files": (
        ["test.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation.jsonl"],
        {
            "train": ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
            "test": ["test.jsonl"],
            "validation": ["validation.jsonl"],
        },
    ),
    "keywords between separators, in any letters": (
        ["my-dev-set.jsonl", "prompts_TRAIN.jsonl", "x.eval.jsonl"],
        {"train": ["prompts_TRAIN.jsonl"], "validation": ["my-dev-set.jsonl"], "test": ["x.eval.jsonl"]},
    ),
    "names of directories": (
        ["test/a.jsonl", "training/a.jsonl", "training/deep/b.jsonl"],
        {"train": ["training/a.jsonl", "training/deep/b.jsonl"], "test": ["test/a.jsonl"]},
    ),
    "directories before files": (
        ["held/test/train.jsonl", "train/x.jsonl"],
        {"train": ["train/x.jsonl"], "test": ["held/test/train.jsonl"]},
    ),
    "any names as shards in data": (
        ["data/random-00000-of-00001.jsonl", "data/train_prefs-00000-of-00001.jsonl", "test.jsonl"],
        {
            "random": ["data/random-00000-of-00001.jsonl"],
            "train_prefs": ["data/train_prefs-00000-of-00001.jsonl"],
        },
    ),
    "no names": (["a.jsonl", "b.jsonl", "latest.jsonl"], {"train": ["a.jsonl", "b.jsonl", "latest.jsonl"]}),
    "files of no split beside files of one": (["more.jsonl", "train.jsonl"], {"train": ["train.jsonl"]}),
    "metadata beside files of no split": (
        ["a.jsonl", "dataset_info.json", "dataset_infos.json", "metadata.json", "state.json"],
        {"train": ["a.jsonl"]},
    ),
    "what is no data": (
        [
            ".cache/train.jsonl",
            "LICENSE.txt",
            "README.md",
            "_temporary/train.jsonl",
            "dataset_info.json",
            "dataset_infos.json",
            "metadata.json",
            "state.json",
            "train.jsonl",
        ],
        {"train": ["train.jsonl"]},
    ),
}


@pytest.mark.parametrize(("names", "splits"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_directory_has_the_splits_that_its_names_say(
    tmp_path: Path, names: list[str], splits: Mapping[str, list[str]]
) -> None:
    fill(tmp_path, names)
    for split, files in splits.items():
        assert prompts(tmp_path, split) == files
        assert read_triples(str(tmp_path), split=split)["prompt"].to_list() == files
    with pytest.raises(WrpoError) as error:
        prompts(tmp_path, "nosuch")
    listed = ", ".join(sorted(splits))
    assert error.value.message == f"prompts.split is 'nosuch': {tmp_path} has the splits {listed}"
    assert error.value.exit_code == 78


def test_shards_in_a_directory_called_data_are_splits_only_if_they_name_several(tmp_path: Path) -> None:
    """It may be a snapshot's own directory `data`, or any directory with the parts of one split."""
    data = tmp_path / "data"
    fill(data, ["train_prefs-00000-of-00001.jsonl", "train_sft-00000-of-00001.jsonl"])
    assert prompts(data, "train_sft") == ["train_sft-00000-of-00001.jsonl"]
    parts = tmp_path / "parts" / "data"
    fill(parts, ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"])
    assert prompts(parts) == ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"]


def test_what_is_not_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, ["LICENSE.txt", "test.jsonl", "train.jsonl", "other.jsonl"])
    with caplog.at_level("INFO"):
        prompts(tmp_path)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: reading the split train; other splits: test",
        f"{tmp_path}: not read: LICENSE.txt, other.jsonl",
    ]


CARD = """---
license: mit
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: a/*.jsonl
  - split: held_out
    path: [b/1.jsonl, "c/**"]
- config_name: other
  data_dir: other
---
# Rivers
"""


def test_a_dataset_card_says_what_the_splits_are(tmp_path: Path) -> None:
    fill(tmp_path, ["a/test.jsonl", "b/1.jsonl", "b/2.jsonl", "c/d/3.jsonl", "other/train.jsonl", "other/test.jsonl"])
    (tmp_path / "README.md").write_text(CARD)
    assert prompts(tmp_path) == ["a/test.jsonl"]
    assert prompts(tmp_path, "held_out") == ["b/1.jsonl", "c/d/3.jsonl"]
    assert prompts(tmp_path, config="other") == ["other/train.jsonl"]
    assert prompts(tmp_path, "test", config="other") == ["other/test.jsonl"]
    with pytest.raises(WrpoError) as error:
        prompts(tmp_path, config="nosuch")
    rule = f"the dataset card of {tmp_path} has the configurations main, other"
    assert error.value.message == f"prompts.config is 'nosuch': {rule}"
    (tmp_path / "README.md").write_text(CARD.replace("  default: true\n", ""))
    with pytest.raises(WrpoError, match=r"has several configurations \(main, other\), and none is named"):
        prompts(tmp_path)


BAD_CARDS = {
    "no YAML": ("configs: [", "its front matter is not valid YAML: while parsing"),
    "no list": ("configs: main", "its `configs` is 'main', where a list of objects is needed"),
    "no path": ("configs:\n- data_files:\n  - split: train", "`path` of a split is null, where patterns of files"),
    "outside": ("configs:\n- data_files: ../secret.jsonl", "it names '../secret.jsonl', which is not below its"),
    "no pattern": ("configs:\n- data_files: 'a**.jsonl'", "the pattern 'a**.jsonl': "),
}


@pytest.mark.parametrize(("front", "what"), BAD_CARDS.values(), ids=BAD_CARDS.keys())
def test_a_card_that_cannot_be_followed_is_named(tmp_path: Path, front: str, what: str) -> None:
    fill(tmp_path, ["train.jsonl"])
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
    with pytest.raises(DataError) as error:
        prompts(tmp_path)
    assert error.value.message.startswith(f"the dataset card {tmp_path}/README.md cannot be followed: {what}")


def link_to_nothing(directory: Path) -> None:
    fill(directory, ["train-1.jsonl"])
    (directory / "train-2.jsonl").symlink_to("../../blobs/0123")


def compressed(directory: Path) -> None:
    (directory / "train.jsonl.gz").write_bytes(b"")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "several types": (
        lambda directory: fill(directory, ["a.jsonl", "notes.txt", "b.csv"]),
        "holds data files of several types: a.jsonl, b.csv, notes.txt",
    ),
    "a name of two splits": (
        lambda directory: fill(directory, ["train-test.jsonl"]),
        "is of several splits by its name: test, train",
    ),
    "compressed files": (compressed, "; it has train.jsonl.gz"),
    "a broken link": (link_to_nothing, "train-2.jsonl is a link to ../../blobs/0123, which does not exist"),
    "documents only": (lambda directory: fill(directory, ["README.md", "LICENSE.txt"]), "holds no file of type "),
}


@pytest.mark.parametrize(("write", "what"), REFUSED.values(), ids=REFUSED.keys())
def test_a_directory_that_leaves_it_open_is_refused(tmp_path: Path, write: Callable[[Path], None], what: str) -> None:
    write(tmp_path)
    with pytest.raises(WrpoError) as error:
        prompts(tmp_path)
    assert what in error.value.message
    assert error.value.exit_code in {65, 78}
    with pytest.raises(WrpoError):
        read_triples(str(tmp_path))


@pytest.mark.parametrize("tool", ["prepare", "convert"])
def test_a_split_of_a_single_file_is_refused_unless_its_name_says_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    fill(tmp_path, ["prompts.jsonl", "x-test-1.jsonl"])

    def code(name: str, split: str) -> int:
        if tool == "convert":
            out = tmp_path / "out" / f"{name}-{split}"
            return main([str(tmp_path / name), str(out), "--to", "jsonl", "--split", split])
        try:
            return len(prompts(tmp_path / name, split)) - 1
        except WrpoError as error:
            return error.exit_code

    cases = {("prompts.jsonl", "train"): 0, ("prompts.jsonl", "test"): 78, ("prompts.jsonl", "nosuch"): 78}
    # The default is `train`: who names a held-out file means it.
    cases |= {("x-test-1.jsonl", "train"): 0, ("x-test-1.jsonl", "test"): 0, ("x-test-1.jsonl", "validation"): 78}
    assert {case: code(*case) for case in cases} == cases
    with pytest.raises(WrpoError) as error:
        prompts(tmp_path / "prompts.jsonl", "nosuch")
    assert error.value.message == (
        f"prompts.split is 'nosuch': {tmp_path}/prompts.jsonl is a single file, which has no splits"
    )


def test_lines_of_a_licence_are_no_prompts(tmp_path: Path) -> None:
    fill(tmp_path, ["LICENSE.txt", "licence-data.txt", "NOTICE.txt", "README.txt", "TERMS_OF_USE.txt", "prompts.txt"])
    (tmp_path / "prompts.txt").write_text("Name a river.\n")
    assert prompts(tmp_path) == ["Name a river."]


def test_documents_are_no_prompts_wherever_their_names_say_so(tmp_path: Path) -> None:
    fill(tmp_path, ["MIT-LICENSE.txt", "CONTRIBUTORS.txt", "data_card.txt", "robots.txt", "en_README.txt"])
    (tmp_path / "prompts_version_2.txt").write_text("Name a river.\n")
    assert prompts(tmp_path) == ["Name a river."]


HELD_OUT = {
    "testSet.jsonl": ["trainSet.jsonl", "testSet.jsonl"],
    "mytest.jsonl": ["mytrain.jsonl", "mytest.jsonl"],
    "testdata.jsonl": ["traindata.jsonl", "testdata.jsonl"],
    "tst.jsonl": ["trn.jsonl", "tst.jsonl"],
    "prefs-holdout.jsonl": ["prefs.jsonl", "prefs-holdout.jsonl"],
    "held_out.jsonl": ["data.jsonl", "held_out.jsonl"],
}


@pytest.mark.parametrize(("held_out", "files"), HELD_OUT.items(), ids=HELD_OUT.keys())
def test_files_that_are_held_out_by_other_names_are_not_trained_on(
    tmp_path: Path, held_out: str, files: list[str]
) -> None:
    fill(tmp_path, files)
    with pytest.raises(DataError) as error:
        prompts(tmp_path)
    assert error.value.message == (
        f"{tmp_path} holds {held_out}, held out by the name, but no file that names a split as `train.jsonl` and "
        "`test.jsonl` do"
    )


def test_words_that_contain_the_name_of_a_split_name_none(tmp_path: Path) -> None:
    files = ["contest.jsonl", "devices.jsonl", "latest.jsonl", "trainers.jsonl", "values.jsonl"]
    fill(tmp_path, files)
    assert prompts(tmp_path) == files


TWICE = {
    "split": "[{data_files: [{split: train, path: a.jsonl}, {split: train, path: b.jsonl}]}]",
    "configuration": "[{config_name: train, data_files: a.jsonl}, {config_name: train, data_files: b.jsonl}]",
}


@pytest.mark.parametrize(("what", "configs"), TWICE.items())
def test_a_card_that_names_something_twice_is_refused(tmp_path: Path, what: str, configs: str) -> None:
    fill(tmp_path, ["a.jsonl", "b.jsonl"])
    (tmp_path / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    with pytest.raises(DataError, match=f"it has the {what} 'train' twice"):
        prompts(tmp_path)


def test_a_configuration_where_there_is_none_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ["prompts.jsonl"])
    for path in (tmp_path, tmp_path / "prompts.jsonl"):
        with pytest.raises(WrpoError) as error:
            prompts(path, config="main")
        assert error.value.field == "prompts.config"


def test_a_directory_for_evaluation_may_have_one_split_of_any_name(tmp_path: Path) -> None:
    fill(tmp_path, ["test.jsonl"])
    assert prompts(tmp_path, only_split=True) == ["test.jsonl"]
    fill(tmp_path, ["validation.jsonl"])
    with pytest.raises(WrpoError, match="has the splits test, validation"):
        prompts(tmp_path, only_split=True)


def refuse(setting: str, rule: str, hint: str) -> WrpoError:
    return DataError(f"{setting}: {rule}", hint=hint)


PIECES = st.sampled_from(["train", "test", "dev", "valid", "eval", "data", "x", "latest", "random", "training"])
NAMES = st.lists(PIECES, min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from(["-", "_", ".", " ", "0"]).map(lambda border: border.join(words))
)
PATHS = st.tuples(
    st.lists(NAMES, max_size=2), NAMES, st.sampled_from(["", "-00000-of-00001", "-00001-of-00002", "_3"])
).map(lambda parts: "/".join([*parts[0], f"{parts[1]}{parts[2]}.jsonl"]))


@settings(max_examples=25, deadline=None)
@given(paths=st.lists(PATHS, min_size=1, max_size=4, unique=True))
def test_the_splits_are_those_of_datasets(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    directory = tmp_path_factory.mktemp("layout")
    fill(directory, paths)
    theirs = splits_of_datasets(directory)
    # What `datasets` reads into two splits is refused here.
    read = [path for files in theirs.values() for path in files]
    assume(len(read) == len(set(read)))
    for split, files in theirs.items():
        ours = select(directory, Wanted(split=split, suffixes=[".jsonl"], refuse=refuse))
        assert {str(path.relative_to(directory)) for path in ours.files} == files


def splits_of_datasets(directory: Path) -> dict[str, set[str]]:
    from datasets.data_files import get_data_patterns, resolve_pattern

    try:
        patterns = get_data_patterns(str(directory))
    except ValueError:
        # It gives up on shards like data/a-b-00000-of-00001, which have no name that it allows.
        return {}
    found: dict[str, set[str]] = {}
    for split, listed in patterns.items():
        for pattern in listed:
            with contextlib.suppress(FileNotFoundError):
                paths = resolve_pattern(pattern, base_path=str(directory))
                found.setdefault(split, set()).update(str(Path(path).relative_to(directory)) for path in paths)
    return found
