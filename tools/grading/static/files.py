"""Required files: the layout that the course text recommends."""

from collections.abc import Iterator

from tools.grading.finding import Check, Finding
from tools.grading.static.look import THEMES, Look

REQUIRED = {  # what the course asks for: who makes it, and the criterion it serves
    "utils.py": ("copy it from the kit", 2),
    "models/baseline_cnn.py": ("copy it from the kit", 2),
    "models/optimized_cnn.py": ("copy it from the kit", 2),
    "checkpoints/best_model.pth": ("run theme 3", 2),
    "checkpoints/model_retrained.pth": ("run theme 7", 2),
    "exports/model.onnx": ("run theme 4", 2),
    "requirements.txt": ("copy it from the kit and add what you import", 2),
    "README.md": ("write how your results are reproduced", 4),
}
NAME = "required files"


def required_files(look: Look) -> Iterator[Finding]:
    """TensorRT is a bonus, and the report has a check of its own."""
    complete = True
    for theme, name in THEMES.items():
        if theme not in look.places:
            says = f"Theme {theme} is missing: hand in notebooks/theme{theme}_{name}"
            yield Check(NAME, 1).fail(f"{says}.ipynb.", "notebooks")
            complete = False
    for path, (remedy, criterion) in REQUIRED.items():
        there = path in look.paths
        if not there or look.size(path) == 0:
            says = f"{path} is {'empty' if there else 'missing'}: {remedy}."
            yield Check(NAME, criterion).fail(says, path)
            complete = False
    if complete:
        yield Check(NAME, 1).passed(
            "All eight themes and all required files are there."
        )
    if any(
        path.startswith("exports/") and path.endswith((".trt", ".engine"))
        for path in look.paths
    ):
        says = "A TensorRT engine is there (bonus): see theme 4."
        yield Check(NAME).note(says, "exports")
