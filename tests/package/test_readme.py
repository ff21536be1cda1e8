"""The README's code runs, and what it links to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_quick_tour_runs(capsys):
    pytest.importorskip("torch_geometric")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "2 of 2 message passing layers swapped" in capsys.readouterr().out
    assert names["w"].grad.abs().sum() > 0
    assert names["off"].report().bytes_out > 0


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_make_targets_in_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for document in DOCUMENTS:
        for text in re.findall(
            r"`make ([a-z-]+)|^    make ([a-z-]+)", document.read_text()
        ):
            assert set(text) - {""} <= targets, document.name


def test_benchmarks_in_the_readme_exist():
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.S)
    for name in re.findall(r"OP=([a-z]+)", text):
        assert (ROOT / "benchmarks" / f"bench_{name}.py").exists(), name
