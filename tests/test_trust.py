"""No file can bring code into a run, no secret of the user gets out of it, and no
library reports on the user.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.submissions import HEX

from tools.shared.parsing import parse_cell, read_notebook
from tools.shared.secrets import secrets_in

KIT = Path(__file__).resolve().parent.parent
FOLDERS = ("kit", "tools", "models", "exercises", "benchmarks", "tests")
# Each of these runs code that a file or a text brings along.
RUNS_CODE = {
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "marshal.loads",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "dill.load",
    "shelve.open",
    "torch.hub.load",
    "torch.jit.load",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def says(call: ast.Call, name: str, value) -> bool:
    """Whether a call has this argument, as this constant."""
    return any(
        word.arg == name
        and isinstance(word.value, ast.Constant)
        and word.value.value is value
        for word in call.keywords
    )


def trusting(tree: ast.AST) -> list[str]:
    """Calls that trust what they read."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, given = dotted(call.func), {word.arg for word in call.keywords}
        if name in RUNS_CODE or any(
            word.arg == "shell" and not says(call, "shell", False)
            for word in call.keywords
        ):
            found.append(f"line {call.lineno}: {name}")
        if name == "torch.load" and not says(call, "weights_only", True):
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if (
            "allow_pickle" in given
            and "save" not in name
            and not says(call, "allow_pickle", False)
        ):
            found.append(f"line {call.lineno}: {name} with allow_pickle")
    return found


def sources():
    below = [path for folder in FOLDERS for path in (KIT / folder).rglob("*.py")]
    for path in sorted([*KIT.glob("*.py"), *below]):
        name = path.relative_to(KIT).as_posix()
        yield name, ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((KIT / "notebooks").glob("*.ipynb")):
        for cell in read_notebook(KIT, path.relative_to(KIT)).code:
            # runs a file of the kit's own
            if "/tools/colab/bootstrap.py" in cell.source:
                continue
            yield f"{path.name}, cell {cell.number}", parse_cell(cell.source)


def test_nothing_that_is_read_can_run_code():
    seen = list(sources())
    found = {where: calls for where, tree in seen if (calls := trusting(tree))}
    # Each runs a text of the kit's own, nothing that is read; kit/own.py what a group
    # has written into its own home.
    own = {
        "kit/own.py",
        "tests/test_own.py",
        "tests/test_handout.py",
        "tests/test_setup.py",
        "tests/support/books.py",
        "tests/test_search.py",
        "tests/test_fingerprint.py",
    }
    assert {where for where in found if where not in own} == set(), found
    assert len(seen) > 100 and any("tools/grading/static" in where for where, _ in seen)


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "pickle.load(file)",
        "joblib.load(path)",
        "pd.read_pickle(path)",
        "subprocess.run(text, shell=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text)",
        "os.system(text)",
    ],
)
def test_the_search_finds(line):
    assert trusting(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "model.eval()",
        "np.load(path, allow_pickle=False)",
        "subprocess.run(words, shell=False)",
    ],
)
def test_the_search_passes(line):
    assert not trusting(ast.parse(line))


# --- secrets

# put together here, so that no scanner takes this file for a leak
CANARIES = {
    "KAGGLE_USERNAME": "someone",
    "KAGGLE_KEY": HEX * 2,
    "KAGGLE_API_TOKEN": "KGAT" + "_canary" * 3 + HEX,
    "HF_TOKEN": "h" + "f_" + "canaryCANARY" * 3,
    "AWS_SECRET_ACCESS_KEY": "/".join(["canary"] * 5) + "/40chr",
    "WANDB_API_KEY": "c" * 40,
    "HTTPS_PROXY": "http://user:proxy-canary@127.0.0.1:9",
    "https_proxy": "http://user:proxy-canary@127.0.0.1:9",
}
SECRETS = [
    value
    for name, value in CANARIES.items()
    if name.isupper() and name != "KAGGLE_USERNAME"
][:-1]
SECRETS += ["proxy-canary"]


def test_no_file_of_the_kit_looks_like_a_leak():
    """Else a group that hands in a clone is told to revoke the keys of our tests."""
    endings = {".py", ".ipynb", ".md", ".toml", ".txt", ".yml", ".html", ".c", ".typ"}
    tops = [*FOLDERS, "notebooks", "demo", "docs", "report", ".github"]
    paths = [*KIT.glob("*.*")]
    paths += [path for top in tops for path in (KIT / top).rglob("*.*")]
    paths = [path.relative_to(KIT) for path in paths if path.suffix in endings]
    assert len(paths) > 200
    assert [found for path in paths for found in secrets_in(KIT, path)] == []


SESSION = """
import sys
import numpy as np
import utils

home = sys.argv[1]
course = utils.start(1, "pneumonia", "sample", "smoke", home=home)
print(utils.environment())
section = {"inputs": utils.hash_inputs(course), "note": "of a session"}
utils.record(course, "theme1", section)
utils.check_criteria(course, ("it ran", 1, "==", 1))
utils.load_or_run(course, "work", utils.hardware)
utils.InferenceLogger(course.logs / "production.csv").log(1, 0.5, 2.0, image="a")
utils.save_predictions(course, "p", np.full((2, 2), 0.5), np.array([0, 1]))
for source in ("kaggle", "nowhere"):
    try:
        utils.start(1, "solar", source, "smoke", home=home + "-" + source)
    except utils.CourseError as error:
        print(error)
    else:
        raise SystemExit("a download without a network must fail")
"""


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a user who holds secrets, whose own folders are `folder`."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "LANG", "OMP_NUM_THREADS", "MPLBACKEND")
        if name in os.environ
    }
    for name in ("user", "tmp"):
        (folder / name).mkdir()
    return (
        kept
        | CANARIES
        | {
            "HOME": str(folder / "user"),
            "TMPDIR": str(folder / "tmp"),
            "COURSE_THREADS": "1",
            "PYTHONPATH": str(KIT),
        }
    )


def session(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """What Python does, prints and leaves for that user."""
    command = [sys.executable, *command]
    return subprocess.run(
        command,
        env=surroundings(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


def holding(folder: Path, printed: str) -> list[str]:
    """Where a secret can be read: in what was printed, or in a file."""
    texts = {"the output": printed} | {
        str(path): path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file()
    }
    return [
        f"{secret[:8]} in {where}"
        for where, text in texts.items()
        for secret in SECRETS
        if secret in text
    ]


@pytest.mark.course
def test_no_secret_in_what_a_session_prints_or_leaves(tmp_path):
    told = session(tmp_path, "-c", SESSION, str(tmp_path / "home"))
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "home" / "exports" / "environment.txt").exists()
    assert "Kaggle" in told.stdout
    assert holding(tmp_path, told.stdout + told.stderr) == []
    assert holding(tmp_path, " ".join(SECRETS)) != []  # the search itself finds them


@pytest.mark.slow
def test_no_secret_in_an_executed_notebook(tmp_path):
    told = session(
        tmp_path,
        str(KIT / "course.py"),
        "run",
        "--source",
        "sample",
        "--profile",
        "smoke",
        "--until",
        "1",
        "--home",
        str(tmp_path / "home"),
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert (
        tmp_path / "home" / "exports" / "notebooks" / "theme1_data_analysis.ipynb"
    ).exists()
    assert holding(tmp_path, told.stdout + told.stderr) == []


@pytest.mark.course
def test_onnx_runtime_reports_nothing_and_keeps_no_identifier(tmp_path):
    """From 1.29 on it writes an identifier and a queue of events below the user's
    folder, at import, unless told.
    """
    assert session(tmp_path, "-c", "import utils, onnxruntime").returncode == 0
    left = [
        path
        for name in ("user", "tmp")
        for path in (tmp_path / name).rglob("*")
        if path.is_file()
    ]
    assert left == []
