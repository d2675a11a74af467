"""What `make prose` finds, where, and in which kinds of files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import prose
from scripts.prose import Finding, check, read_rule, read_rules

MARKDOWN = {
    "a banned word, on the line on which it is": ("One line,\nthen it goes\non.", [(2, "Idiom", "goes on")]),
    "a banned word in any spelling": ("It LIES there.", [(1, "Idiom", "LIES")]),
    "a heading that is a question": ("# Who asks", [(1, "Headings", "Who")]),
    "a table cell": ("| a | b |\n|---|---|\n| c | made anew |", [(3, "Idiom", "anew")]),
    "a list item below another": ("- one\n- two tells\n", [(2, "Idiom", "tells")]),
    "a reason with 'for'": ("It waits, for the pod is gone.", [(1, "Because", ", for the pod is")]),
    "a word of the glossary": ("The model's answers.", [(1, "Answer", "answers")]),
    "the text of a link, not its address": ("[it lies](told.md)", [(1, "Idiom", "lies")]),
    "not code": ("`goes on`\n\n```\nanew\n```\n\n    told\n", []),
    "not a part that a program writes": ("<!-- a-b -->\nIt lies.\n<!-- /a-b -->\n\nIt told.", [(5, "Idiom", "told")]),
    "not a word that contains one": ("Relies, and stands for alpha, stand-in.", []),
    "not 'for' as a preposition": ("It waits, for example for a pod.", []),
}


def found(tmp_path: Path, name: str, text: str) -> list[Finding]:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return check(path, read_rules())


@pytest.mark.parametrize("case", MARKDOWN.values(), ids=MARKDOWN)
def test_findings_in_a_page(case: tuple[str, list[tuple[int, str, str]]], tmp_path: Path) -> None:
    text, expected = case
    findings = found(tmp_path, "page.md", text)
    assert [(finding.line, finding.rule) for finding in findings] == [(line, rule) for line, rule, _ in expected]
    assert [f"'{word}'" in finding.message for finding, (*_, word) in zip(findings, expected, strict=True)] == [
        True for _ in expected
    ]


def test_a_long_sentence_is_found_where_it_begins(tmp_path: Path) -> None:
    short = "word " * 20 + "end.\n"
    findings = found(tmp_path, "page.md", f"{short}Then {'word ' * 60}end.")
    assert [(finding.line, finding.rule) for finding in findings] == [(2, "SentenceLength")]


def test_docstrings_comments_and_messages_of_a_module_are_prose_and_names_are_not(tmp_path: Path) -> None:
    module = (
        '"""It goes on like this."""\ntold = "anew"\n# what it lies on\nraise ValueError(f"{told} stands in `lies`")\n'
    )
    findings = found(tmp_path, "module.py", module)
    assert [(finding.line, finding.rule) for finding in findings] == [(1, "Idiom"), (3, "Idiom")]
    findings = found(tmp_path, "module.py", 'def f(x: int) -> str:\n    return f"the file {x} lies there"\n')
    assert [(finding.line, finding.rule) for finding in findings] == [(2, "Idiom")]


def test_examples_in_a_docstring_are_not_prose(tmp_path: Path) -> None:
    module = 'def f():\n    """Do it.\n\n        f  goes on\n\n    It tells `x\n    y` all.\n    """\n'
    assert [finding.line for finding in found(tmp_path, "module.py", module)] == [6]


def test_each_line_of_a_paragraph_that_click_does_not_wrap_is_a_sentence(tmp_path: Path) -> None:
    items = "  item one of the list\\n" * 20
    module = f'HELP = "A list.\\n\\n\\b\\nItems:\\n{items}  it lies"\n'
    assert [finding.rule for finding in found(tmp_path, "module.py", module)] == ["Idiom"]


def test_descriptions_of_a_schema_are_prose_and_its_names_are_not(tmp_path: Path) -> None:
    schema = "properties:\n  lies:\n    type: string\n    description: it lies and it waits\n"
    assert [finding.line for finding in found(tmp_path, "crd.yaml", schema)] == [4]
    assert [finding.line for finding in found(tmp_path, "two.yaml", f"{schema}---\n{schema}")] == [4, 9]


def test_a_rule_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Spelling.yml"
    path.write_text("extends: spelling\nmessage: m\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"Spelling\.yml: a rule that extends 'spelling' is not supported by prose\.py$"
    ):
        read_rule(path)


def test_a_pattern_without_files_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^pyproject\.toml, tool\.prose\.paths: 'nowhere/\*\.md' matches no file$"):
        prose.listed({"paths": ["nowhere/*.md"]})


def test_the_documentation_follows_the_rules() -> None:
    run = subprocess.run([sys.executable, prose.__file__], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.splitlines()[:-1]) == (0, [])
