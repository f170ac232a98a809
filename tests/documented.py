"""What README, CONTRIBUTING and docs/ show: command lines, Python blocks and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OURS = ("producer", "store", "student", "api")
STARTS = (*OURS, "python", "torchrun", "srun", "make", "OMP_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=$i")
VARIABLES = {"$SLURM_PROCID": "0", "$SLURM_NTASKS": "32", "$RANK": "0", "$i": "0"}

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)


def blocks(document: Path, *languages: str) -> list[str]:
    """The fenced blocks in these languages, in order."""
    return [body for language, body in _FENCE.findall(document.read_text()) if language in languages]


def commands(document: Path) -> list[list[str]]:
    """Every command line of fenced or indented blocks, in order, as words: variables set, optional parts included."""
    indented = re.findall(r"^ {4}.*$", _FENCE.sub("", document.read_text()), re.M)
    lines = "\n".join([*blocks(document, "", "bash", "sh"), *indented]).replace("\\\n", " ").splitlines()
    return [words for line in lines if _starts_a_command(line.split()) for words in _words(line)]


def inline_commands(document: Path) -> Iterator[list[str]]:
    """Our commands in running text; they may leave things out."""
    for code in re.findall(r"`([^`\n]+)`", _FENCE.sub("", document.read_text())):
        words = code.split()
        if len(words) > 1 and words[0] in OURS and words[1].isalpha():
            yield words


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """Targets of links and images within the project: the file, and the section after `#`, empty for none."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", document.read_text())):
        if "://" not in target:
            file, _, section = target.partition("#")
            yield (document.parent / file if file else document), section


def sections(document: Path) -> set[str]:
    """The names under which a page's headings can be linked to, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", document.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths_named(document: Path) -> Iterator[Path]:
    """Files and folders of the project in the text's backquotes; `arwkv_…` are below their package's folder."""
    for code in re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|md|txt))?)`", _FENCE.sub("", document.read_text())):
        first = code.split("/")[0]
        if first.startswith("arwkv_"):
            yield ROOT / first.removeprefix("arwkv_") / code
        elif (ROOT / first).is_dir():
            yield ROOT / code


def _starts_a_command(words: list[str]) -> bool:
    return len(words) > 1 and words[0] in STARTS and not words[1].startswith("(")  # a component in a picture


def _words(line: str) -> Iterator[list[str]]:
    for variable, value in VARIABLES.items():
        line = line.replace(variable, value)
    words = shlex.split(line.replace("[", " ").replace("]", " ").split(" & ")[0].removesuffix("&"), comments=True)
    if words[0] == "srun":
        yield from _words(words[words.index("-c") + 1])
        return
    while "=" in words[0]:
        del words[0]
    if words[0] == "torchrun":
        words = ["student", *words[words.index("arwkv_student.cli") + 1 :]]
    yield words
