"""The language of the code: names, docstrings, homonyms and phrases."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sweep", "backends", "analysis")
VAGUE = set(
    re.findall(
        r"\w+",
        "of found one told own said left here what words known held wanted others such it they whole face asked seen "
        "drawn kept given",
    )
)
MOST = 0.01  # share of the bound names, or of the docstrings
PLACEHOLDERS = {"name", "text", "value", "values", "part", "row", "result", "first", "place", "kind"}
MOST_PLACEHOLDERS = 0.1  # share of the names that a package binds, self and cls aside
OPENERS = ("What", "Whether", "How", "Of")
# Written so that this file does not hold the phrases itself.
PHRASES = re.compile(
    r"cannot be ha[d]|is another tha[n]|are other tha[n]|for want o[f]|has the fac[e]|the same fac[e]|of who[m] "
    r"|cannot be tol[d]\b|is said (once|alou[d])|allowe[d] (is|are)\b|trie[d] again|another tr[y]\b|for eve[r]\b"
    r"|thric[e]\b|such a on[e]\b|stands ther[e]\b|(None|empty|NaN|0) (if|where) there (is|are) non[e]\b",
    re.IGNORECASE,
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Names that several modules define on purpose.
SHARED = {
    "main": "the entry of each program",
    "load": "the entry of each of the host's libraries, and of the analysis",
    "draw": "the entry of each figure",
    "POSITION": "the place of each figure",
    "FOLDER": "both sides of a conversion: the backend writes what the library reads in another environment",
    "CTranslate2": "a backend, and its library on the host",
    "ExLlama": "a backend, and its library on the host",
    "Transformers": "a backend, and its library on the host",
    "TransformersCB": "a backend, and its library on the host",
    "VLLMOffline": "a backend, and its library on the host",
    "compare": "the command, and the comparison of answers with the reference",
    "summarise": "a trial's records, and a run's trials",
    "measure": "one interface: by the client, and inside the engine",
    "run": "a command, and the sweep that it runs",
    "write_whole": "a run's own, and the one for any file, which it calls",
    "copy": "a command, and the copy that it makes",
    "Floats": "the same short name of a numpy type",
}


def modules(package: str = "") -> dict[str, ast.Module]:
    folders = [package] if package else PACKAGES
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def bound_names(tree: ast.Module):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_names_say_what_they_hold(package: str) -> None:
    names = [(name, f"{path}:{line}") for path, tree in modules(package).items() for name, line in bound_names(tree)]
    vague = [f"{where} {name}" for name, where in names if name.strip("_") in VAGUE]
    assert len(vague) <= MOST * len(names), f"{len(vague)} of {len(names)}:\n" + "\n".join(vague)


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks", "scripts"])
def test_few_names_are_placeholders(package: str) -> None:
    names = [name for tree in modules(package).values() for name, _ in bound_names(tree) if name not in ("self", "cls")]
    placeholders = [name for name in names if name.strip("_") in PLACEHOLDERS]
    assert len(placeholders) <= MOST_PLACEHOLDERS * len(names), f"{len(placeholders)} of {len(names)} names"


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_begin_with_what_a_thing_is_or_does(package: str) -> None:
    openers = {
        f"{path}:{node.lineno} {node.name}": docstring.split()[0]
        for path, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
        if (docstring := ast.get_docstring(node))
    }
    wrong = [f"{where}: {word}" for where, word in openers.items() if word in OPENERS]
    assert len(wrong) <= MOST * len(openers), f"{len(wrong)} of {len(openers)}:\n" + "\n".join(wrong)


@functools.cache
def definitions() -> dict[str, set[str]]:
    """The modules that define each class, function and constant at their top level."""
    paths_of = defaultdict(set)
    for path, tree in modules().items():
        for node in tree.body:
            if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
                paths_of[node.name].add(path)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        paths_of[target.id].add(path)
    return paths_of


def test_a_name_is_defined_in_one_module() -> None:
    """A private name may occur in two: it is local there. In three it hides an idea, or means three things."""
    repeated = {
        name: sorted(paths)
        for name, paths in definitions().items()
        if len(paths) > (2 if name.startswith("_") else 1) and name not in SHARED
    }
    assert not repeated, "\n".join(f"{name}: {', '.join(paths)}" for name, paths in sorted(repeated.items()))


def test_the_shared_names_are_still_shared() -> None:
    assert not [name for name in SHARED if len(definitions()[name]) < 2]


def test_no_phrase_that_a_reader_stumbles_over() -> None:
    folders = (*PACKAGES, "benchmarks", "scripts", "tests", "docs", "conf")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*.md"))
    lines = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for path in paths
        if path.suffix in (".py", ".md", ".yaml")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PHRASES.search(line)
    ]
    assert not lines, "\n".join(lines)


def test_the_rules_see_what_they_forbid() -> None:
    tree = ast.parse("def f(of, *, own=1):\n    for one in of:\n        told = one")
    assert [name for name, _ in bound_names(tree) if name in VAGUE] == ["of", "own", "one", "told"]
    assert PHRASES.search("this cannot be " + "had of that")


# Sentences -----------------------------------------------------------------------------------------------------------

LONGEST = 30  # words of a sentence
SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\be\.g)(?<!\bal)(?<!\bed)[.!?][)\"”*_]*(?:\s+|$)")
CODE = re.compile(r"[|$\\]")  # a pattern or a script, not prose
INLINE = re.compile(r"`[^`]*`|(?<=\])\([^)]*\)")
BLOCK_TAG = re.compile(r"<(?!/?(?:b|em|i|code|a|strong|span)\b)[^>]*>|\{%.*?%\}", re.DOTALL)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text; a piece of inline code is one word, and the address of a link none."""
    for sentence in SENTENCE_END.split(INLINE.sub(lambda code: re.sub(r"[\s.!?]", "_", code.group()), text)):
        yield " ".join(sentence.split())


def markdown_texts(page: str) -> Iterator[str]:
    """The paragraphs, list items and cells of a page, but no code or heading. A cell's semicolon ends a definition."""
    page = re.sub(r"^```.*?^```|(?<=\n\n) {4}.*?(?=\n\n|\Z)|<!--.*?-->|^#.*?$", "\n", page, flags=re.M | re.S)
    yield from re.split(r"\||; ", "\n".join(re.findall(r"^\|.*$", page, re.MULTILINE)))
    yield from re.split(r"(?m)\n\s*\n|^\s*(?:[-*]|\d+\.) ", re.sub(r"(?m)^\|.*$", "\n", page))


def yaml_texts(text: str) -> Iterator[str]:
    """The comments of a YAML file: those of successive lines are one text, except an indented (a table's) line."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        code, _, comment = f" {line}".partition(" #")
        if block and (code.strip() or not comment.strip() or comment.startswith("  ")):
            yield " ".join(block)
            block = []
        block += [comment] if comment.strip() else []


def template_texts(text: str) -> Iterator[str]:
    """The visible texts of a template, between the tags of its blocks."""
    text = re.sub(r"\{#.*?#\}", "", text, flags=re.DOTALL)
    yield from BLOCK_TAG.split(re.sub(r"\{\{.*?\}\}", "X", text, flags=re.DOTALL))


def literal_texts(source: str) -> Iterator[str]:
    """The string literals of a module, with X for what is filled in: messages, help and labels, but no docstring."""
    tree = ast.parse(source)
    other = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    other |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if id(node) not in other and all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
            yield from () if CODE.search(text) else text.split("\n\n")


READERS = {".md": markdown_texts, ".yaml": yaml_texts, ".html": template_texts, ".py": literal_texts}


@functools.cache
def user_texts() -> list[tuple[str, str]]:
    """All texts that a user may read, with their files: pages, comments of the YAML, templates, messages and help."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*")]
    paths = [path for folder in (*PACKAGES, "conf") for path in sorted((ROOT / folder).rglob("*.*"))]
    return [
        (str(path.relative_to(ROOT)), text)
        for path in (*pages, *paths)
        if path.suffix in READERS
        for text in READERS[path.suffix](path.read_text())
    ]


def test_no_sentence_is_longer_than_thirty_words() -> None:
    long = [
        f"{path}: {sentence}"
        for path, text in user_texts()
        for sentence in sentences(text)
        if sum(bool(re.search(r"\w", word)) for word in sentence.split()) > LONGEST
    ]
    assert not long, f"{len(long)}:\n" + "\n".join(long)


RETIRED = re.compile(
    r"\bcandidates?\b|\bengines? and (its )?settings\b|\basked the same\b(?! thing)|\btold apart\b"
    r"|\bgoes on\b|\bbr(oke|eaks) off\b|\b(already runs|runs already)\b|\bof measuring\b"
    r"|\b(holds|keeps) (the|an) SLO\b",
    re.IGNORECASE,
)
RECORDED = ("CHANGELOG.md", "docs/measurements/studies.md")  # say what was said before


def test_no_retired_word_reaches_a_user() -> None:
    """A configuration, at a task and load. A single word is a key, or a name."""
    lines = [f"{path}: {' '.join(text.split())}" for path, text in user_texts() if " " in text and RETIRED.search(text)]
    assert not [line for line in lines if not line.startswith(RECORDED)]
