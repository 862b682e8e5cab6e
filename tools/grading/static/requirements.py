"""Requirement files as pip reads them, and which package an import comes from: by
tables, so that two machines judge alike.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

# Import name: the packages, any of which brings it, where they are called otherwise.
PACKAGES = {
    "absl": {"absl-py"},
    "attr": {"attrs"},
    "bs4": {"beautifulsoup4"},
    "cupy": {"cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"},
    "cv2": {
        *("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
        "opencv-contrib-python-headless",
    },
    "dateutil": {"python-dateutil"},
    "docx": {"python-docx"},
    "dotenv": {"python-dotenv"},
    "faiss": {"faiss-cpu", "faiss-gpu"},
    "fitz": {"pymupdf"},
    "git": {"gitpython"},
    "imblearn": {"imbalanced-learn"},
    "mpl_toolkits": {"matplotlib"},
    "onnxruntime": {
        *("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"),
        *("onnxruntime-openvino", "onnxruntime-silicon", "onnxruntime-training"),
    },
    "PIL": {"pillow"},
    "pkg_resources": {"setuptools"},
    "skimage": {"scikit-image"},
    "sklearn": {"scikit-learn"},
    "tensorflow": {
        *("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-macos"),
    },
    "tensorrt": {"tensorrt", "tensorrt-cu12", "tensorrt-cu13"},
    "umap": {"umap-learn"},
    "yaml": {"pyyaml"},
}
# What a package always brings with it, of what students import.
BRINGS = {
    "gradio": {"fastapi", "httpx", "pandas", "pillow", "pydantic", "uvicorn"},
    "fastapi": {"pydantic", "starlette"},
    "jupyter": {"ipykernel", "ipywidgets", "nbconvert", "nbformat"},
    "kaggle": {"requests", "tqdm", "urllib3"},
    "lightning": {"torch", "torchmetrics", "pytorch-lightning"},
    "matplotlib": {"contourpy", "cycler", "numpy", "packaging", "pillow", "pyparsing"},
    "onnx": {"numpy", "protobuf"},
    "onnxruntime": {"numpy", "protobuf"},
    "onnxscript": {"numpy", "onnx", "onnx-ir"},
    "optuna": {"alembic", "colorlog", "numpy", "packaging", "pyyaml", "sqlalchemy"},
    "pandas": {"numpy", "python-dateutil"},
    "papermill": {"nbclient", "nbformat", "requests", "tqdm"},
    "pytorch-lightning": {"torch", "torchmetrics", "tqdm"},
    "scikit-image": {"imageio", "numpy", "pillow", "scipy"},
    "scikit-learn": {"joblib", "numpy", "scipy", "threadpoolctl"},
    "seaborn": {"matplotlib", "numpy", "pandas"},
    "statsmodels": {"numpy", "pandas", "patsy", "scipy"},
    "streamlit": {"altair", "numpy", "pandas", "pillow", "requests"},
    "tensorboard": {"absl-py", "grpcio", "numpy", "protobuf", "werkzeug"},
    "timm": {"huggingface-hub", "pyyaml", "safetensors", "torch", "torchvision"},
    "torch": {"filelock", "fsspec", "jinja2", "networkx", "sympy", "setuptools"},
    "torchvision": {"numpy", "pillow", "torch"},
    "transformers": {"huggingface-hub", "numpy", "pyyaml", "regex", "requests"},
    "wandb": {"gitpython", "protobuf", "pydantic", "requests"},
}
ADDRESS = re.compile(r"(\w+\+)?[a-z][\w+.-]*://|file:", re.IGNORECASE)
ARCHIVE = re.compile(r"\.(whl|zip|tar|tar\.(gz|bz2|xz)|tgz)$", re.IGNORECASE)


def providers(module: str) -> set[str]:
    """Packages that bring a module, by their canonical names."""
    return PACKAGES.get(module) or {canonicalize_name(module)}


def with_what_they_bring(names: set[str]) -> set[str]:
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += BRINGS.get(name.removesuffix("-gpu"), ())
    return found


class Line(NamedTuple):
    """One requirement: where it stands, its text, the package (None where pip would
    not understand it), whether it is pinned; or the file that it includes.
    """

    number: int
    text: str
    name: str | None
    exact: bool
    included: str = ""


def parse(text: str) -> Iterator[Line]:
    """The requirements of a file, and the files that it includes."""
    for number, line in _logical_lines(text):
        # options after a requirement, such as --hash
        words = re.split(r"\s+(?=--)", line)[0]
        if editable := re.match(r"(?:-e|--editable)[\s=]+(.+)", line):
            words = editable[1]
        elif included := re.match(r"(?:-r|--requirement)[\s=]*(.+)", line):
            yield Line(number, line, None, False, included[1].strip("\"' "))
            continue
        elif line.startswith("-"):
            continue
        if _is_place(words):
            yield Line(number, words, _name_of_place(words), True)
            continue
        try:
            requirement = Requirement(words)
        except InvalidRequirement:
            yield Line(number, words, None, False)
            continue
        exact = any(part.operator in ("==", "===") for part in requirement.specifier)
        name = canonicalize_name(requirement.name)
        yield Line(number, words, name, exact or requirement.url is not None)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that end in a backslash joined with the next."""
    begun, number = "", 0
    for count, line in enumerate([*text.splitlines(), ""], 1):
        number = number if begun else count
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            begun += line[:-1] + " "
            continue
        joined = re.sub(r"(^|\s+)#.*", "", begun + line).strip()
        begun = ""
        if joined:
            yield number, joined


def _is_place(words: str) -> bool:
    """Whether this is an address or a file instead of a name."""
    if ADDRESS.match(words):
        return True
    first = re.split(r"[\s;@]", words)[0]
    return first.startswith(".") or "/" in first or bool(ARCHIVE.search(first))


def _name_of_place(words: str) -> str:
    """The package that an address or a file holds, as far as its name tells."""
    if egg := re.search(r"[#&]egg=([\w.-]+)", words):
        return canonicalize_name(egg[1])
    path = urlsplit(words.split(";")[0].strip()).path.partition("@")[0]
    last = PurePosixPath(unquote(path)).name
    if ARCHIVE.search(last):
        last = re.split(r"-(?=\d)", last)[0]
    return canonicalize_name(re.sub(r"\.git$|\[.*", "", last))
