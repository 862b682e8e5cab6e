"""Required files: the layout that the course text recommends, and what stands in its
place where a group works otherwise.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from kit.names import original, plain
from tools.grading.finding import Check, Finding, listed
from tools.grading.static.code import called
from tools.grading.static.look import Look, calls, headings
from tools.grading.submission import IGNORED, is_check, is_of_kit
from tools.grading.themes import THEMES
from tools.shared.foreign import shown

NAME = "required files"
WEIGHTS = {".pth", ".pt", ".ckpt", ".safetensors", ".bin"}
# What the course asks for: what may stand in its place, who makes it, the criterion.
REQUIRED = {
    "utils.py": (r".*/utils\.py", "hand in the one that your notebooks import", 2),
    "models/baseline_cnn.py": ("", "hand in the network of your checkpoint", 2),
    "models/optimized_cnn.py": ("", "hand in the network of your checkpoint", 2),
    "checkpoints/best_model.pth": (
        r".*(best|optim|champion|final)[^/]*\.(pth|pt|ckpt|safetensors)",
        "hand in the weights of theme 3",
        2,
    ),
    "checkpoints/model_retrained.pth": (
        r".*(retrain|finetun|fine_tun|reentrain|theme7)[^/]*\.(pth|pt|ckpt|safetensors)",
        "hand in the weights of theme 7",
        2,
    ),
    "exports/model.onnx": (r".*\.onnx", "hand in the export of theme 4", 2),
    "requirements.txt": (
        r"(.*/)?(requirements?(?!.*(dev|bonus|scale|test)).*\.txt"
        r"|environment.*\.ya?ml|pyproject\.toml|pipfile)",
        "write one, with all that you import",
        2,
    ),
    "README.md": (
        r"(.*/)?(readme|lisez[ -]?moi)[^/]*\.(md|txt|rst|pdf|docx|ipynb)",
        "write how your results are reproduced",
        4,
    ),
}
# Calls that only one theme makes: they tell where a theme without a notebook stands.
SIGNS = {
    4: ("InferenceSession",),
    5: ("InferenceLogger",),
    6: ("ks_2samp", "compute_mmd", "detect_pixel_drift"),
    7: ("validate_retrained_model",),
}


def required_files(look: Look) -> Iterator[Finding]:
    """TensorRT is a bonus, and the report has a check of its own."""
    lacking = [*_themes(look), *_files(look)]
    yield from lacking
    if not lacking:
        yield Check(NAME, 1).passed(
            "All eight themes and all required files are there."
        )
    if "README.md" in look.paths and is_of_kit(look.root, "README.md"):
        says = "README.md is the kit's own: how are the group's results reproduced?"
        yield Check(NAME, 4).note(says, "README.md")
    if any(
        path.startswith("exports/") and path.endswith((".trt", ".engine"))
        for path in look.paths
    ):
        says = "A TensorRT engine is there (bonus): see theme 4."
        yield Check(NAME).note(says, "exports")


def _themes(look: Look) -> Iterator[Finding]:
    for theme, name in THEMES.items():
        if theme in look.places:
            continue
        if place := _elsewhere(look, theme):
            says = f"Theme {theme} has no notebook of its own; its work seems to stand"
            kind = "Themes {what} have no notebooks of their own; their work stands"
            yield Check(NAME, 1).human(
                f"{says} here.", place, kind=f"{kind} here, it seems.", what=str(theme)
            )
        else:
            says = f"Theme {theme} is missing: hand in notebooks/theme{theme}_{name}"
            kind = "Themes {what} are missing: hand in their notebooks."
            yield Check(NAME, 1).fail(
                f"{says}.ipynb.", "notebooks", kind=kind, what=str(theme)
            )


def _elsewhere(look: Look, theme: int) -> str:
    """Where another notebook works on a theme: a heading that names it, or a call."""
    for notebook in [*look.notebooks.values(), *look.others]:
        for cell, heading in headings(notebook):
            if re.match(rf"(?i)\W*th[eéè]me[\s_:#-]*0?{theme}(?!\d)", heading):
                return f"{shown(notebook.path)}, cell {cell.number}"
    for source in look.sources:
        if source.cell and not look.on_the_kit:
            for call in calls(source, *SIGNS.get(theme, ())):
                return source.where(call)
    return ""


def _files(look: Look) -> Iterator[Finding]:
    letters = {plain(path): path for path in sorted(look.paths)}
    for path, (pattern, remedy, criterion) in REQUIRED.items():
        check, there = Check(NAME, criterion), letters.get(plain(path))
        if there and look.size(there) == 0:
            yield check.fail(f"{path} is empty: {remedy}.", path)
        elif not there:
            yield from _missing(look, check, path, pattern, remedy)


def _missing(
    look: Look, check: Check, path: str, pattern: str, remedy: str
) -> Iterator[Finding]:
    instead = [name for name in _candidates(look) if pattern and _is(name, pattern)]
    networks = [] if look.on_the_kit else _networks(look)
    if path.startswith("models/") and networks:
        says = f"{path} is not there; networks are defined elsewhere: read them."
        kind = "{what} are not there; networks are defined elsewhere: read them."
        yield check.human(says, listed(networks, 3, "; "), kind=kind, what=path)
    elif path == "utils.py" and not instead:
        if user := _imports_utils(look):
            yield check.fail(f"utils.py is missing, and imported here: {remedy}.", user)
        else:
            yield check.note("There is no utils.py, and nothing imports one.")
    elif instead:
        names = listed(map(shown, instead), 3)
        says = f"{path} is missing; this may stand for it: {names}."
        yield check.human(says, path)
    else:
        kind = "{n} files are missing: {what}. Ask for them."
        says = f"{path} is missing: {remedy}."
        yield check.fail(says, path, kind=kind, what=path)


def _candidates(look: Look) -> list[str]:
    """Files that may stand for another, shallow ones first."""
    return [
        path.as_posix()
        for path in look.submission.files
        if not IGNORED.intersection(path.parts)
        and not path.is_relative_to("exports/models")
        and not is_check(path)
    ]


def _is(name: str, pattern: str) -> bool:
    folder, _, last = name.rpartition("/")
    asked = f"{plain(folder)}/{original(last)}".lstrip("/")
    return re.fullmatch(pattern, asked) is not None


def _networks(look: Look) -> list[str]:
    """Where classes of networks are defined, and known architectures are built."""
    found: dict[str, str] = {}
    for source in look.sources:
        for node in source.nodes:
            if isinstance(node, ast.ClassDef) and any(map(_is_module, node.bases)):
                found.setdefault(shown(node.name), source.where(node))
    for source in look.sources:
        for call in calls(source, *ARCHITECTURES):
            found.setdefault(called(call), source.where(call))
    return [f"{name} ({where})" for name, where in found.items()]


ARCHITECTURES = (
    *("resnet18", "resnet34", "resnet50", "densenet121", "densenet169", "vgg16"),
    *("efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"),
    *("squeezenet1_1", "convnext_tiny", "vit_b_16", "inception_v3", "create_model"),
)


def _is_module(base: ast.expr) -> bool:
    name = getattr(base, "attr", getattr(base, "id", ""))
    return name in ("Module", "Sequential", "LightningModule")


def _imports_utils(look: Look) -> str:
    """Where the group's code imports utils; empty if it does not."""
    for source in look.sources:
        if source.path == Path("utils.py"):
            continue
        for node in source.nodes:
            names = [alias.name for alias in getattr(node, "names", ())]
            if isinstance(node, ast.Import) and "utils" in names:
                return source.where(node)
            if isinstance(node, ast.ImportFrom) and node.module == "utils":
                return source.where(node)
    return ""
