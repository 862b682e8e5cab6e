"""Execute the notebooks in order, and end with a summary."""

import argparse
import json
import os
import re
import shutil
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

from tools.notebooks import timing
from tools.shared import options as shared
from tools.shared import text
from tools.shared.sections import timing_of

KIT = Path(__file__).resolve().parents[2]
DAY = 86_400  # seconds: no cell takes one
NOTHING = {"name": "no criteria recorded", "value": "", "target": "", "passed": False}
SAMPLE = (
    "SAMPLE DATA: drawn images; these figures show that the kit works and nothing else."
)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = shared.parser("run", __doc__)
    shared.add_story(parser)
    shared.add_home(parser)
    theme = {"type": int, "choices": range(1, 9), "metavar": "THEME"}
    parser.add_argument("--from", dest="first", default=1, **theme, help="default: 1")
    parser.add_argument("--until", dest="last", default=8, **theme, help="default: 8")
    options = parser.parse_args(arguments)
    if options.first > options.last:
        parser.error(f"--from {options.first} comes after --until {options.last}")
    return options


def notebooks(first: int, last: int) -> dict[int, Path]:
    """The notebooks of the themes first..last that exist, by theme."""
    found = {
        int(re.match(r"theme(\d)", path.name)[1]): path
        for path in (KIT / "notebooks").glob("theme*.ipynb")
    }
    return {theme: found[theme] for theme in sorted(found) if first <= theme <= last}


def execute(path: Path, parameters: dict, folder: Path, kit: Path = KIT) -> float:
    """Run one notebook in a fresh kernel, keep the executed copy, return the seconds it
    took.

    Raises
    ------
    papermill.PapermillExecutionError, nbclient.exceptions.DeadKernelError
        A cell failed, or its kernel was killed. Everything up to it stands in
        <theme>.failed.ipynb; the copy of an earlier run that went well is untouched.
    """
    import papermill

    running = folder / f".{path.stem}.{os.getpid()}.running.ipynb"
    failed = failed_copy(folder, path)
    began = time.perf_counter()
    for left in folder.glob(f".{path.stem}.*.running.ipynb"):
        if time.time() - left.stat().st_mtime > DAY:  # of a runner that was killed
            left.unlink(missing_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                path,
                running,
                parameters=parameters,
                cwd=str(kit),
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
                # else each kernel warns about TCP
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
    except BaseException:
        # a full disk leaves half of it, which says nothing
        with suppress(OSError, ValueError):
            tidy(running)
            os.replace(running, failed)
        running.unlink(missing_ok=True)
        raise
    tidy(running)
    os.replace(running, folder / path.name)
    failed.unlink(missing_ok=True)
    return time.perf_counter() - began


def failed_copy(folder: Path, path: Path) -> Path:
    return folder / f"{path.stem}.failed.ipynb"


def tidy(executed: Path) -> None:
    """Show progress bars as a terminal does: of the lines that overwrite each other,
    keep the last.
    """
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        joined = []
        for output in cell.get("outputs", []):
            stream = output.get("name") if output.output_type == "stream" else None
            if stream and joined and joined[-1].get("name") == stream:
                joined[-1].text += output.text  # the kernel sends a text in pieces
            else:
                joined.append(output)
        for output in joined:
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
        if joined:
            cell.outputs = joined
    nbformat.write(notebook, executed)


def explain(theme: int, path: Path, folder: Path, error: Exception) -> str:
    """One readable paragraph on what stopped a theme; any other error is raised again.

    A kernel that never came up is a RuntimeError of jupyter_client.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError

    failed = failed_copy(folder, path)
    if isinstance(error, PapermillExecutionError):
        lines = error.source.strip().splitlines()[:8]
        source = "\n".join(f"    {line}" for line in lines)
        return (
            f"\nTheme {theme} stopped in cell {error.cell_index} of"
            f" notebooks/{path.name}:\n{source}\n\n"
            f"{error.ename}: {error.evalue.strip() or error.ename}\n\n"
            f"Everything before it is kept. The notebook so far: {failed}"
        )
    if isinstance(error, DeadKernelError) or str(error).startswith("Kernel died"):
        return (
            f"\nTheme {theme}: the kernel was killed, most often because memory ran"
            " out. Close other programs, then run again: finished work loads. So far:"
            f" {failed}"
        )
    if isinstance(error, OSError):
        free = shutil.disk_usage(folder).free / 1e6
        return (
            f"\nTheme {theme}: its executed notebook could not be written to {folder}"
            f" ({error.strerror}; {free:,.1f} MB are free there). Free some space, then"
            " run again: finished work loads."
        )
    raise error


def summary(home: Path, seconds: dict[int, float]) -> str:
    """The closing table: criteria of each theme, headline figures, paths."""
    results = json.loads((home / "exports" / "results.json").read_text())
    lines = ["", f"{'theme':<7}{'seconds':>8}  criterion"]
    for theme, took in seconds.items():
        head = f"{theme:<7}{took:>8.0f}"
        for row in results.get("criteria", {}).get(f"theme{theme}") or [NOTHING]:
            value, target = text.shown(row["value"]), text.target(row["target"])
            mark = "✓" if row["passed"] else "✗"
            lines.append(f"{head:<15}  {mark} {row['name']}: {value} (target {target})")
            head = ""
    lines += [f"all {text.duration(sum(seconds.values()))}", ""]
    lines += [f"headline figures ({results['meta']['hardware']}):"]
    for key, value in results.get("headline", {}).items():
        lines.append(f"  {key:<36}{text.shown(value)}{_spread(results, key)}")
    if results["meta"]["source"] == "sample":
        lines += ["", SAMPLE]
    parts = ("notebooks", "figures", "tables", "results.json", "MODEL_CARD.md")
    written = [home / "exports" / part for part in parts]
    written += [home / "report" / "report.pdf", *home.glob("hand-in-*.zip")]
    lines += [""]
    lines += [f"{path.name + ':':<24}{path}" for path in written if path.exists()]
    return "\n".join(lines)


def _spread(results: dict, key: str) -> str:
    row = timing_of(results, key)
    ends = [text.shown(row[end]) for end in ("speedup_low", "speedup_high") if row]
    busy = " on a busy machine" if row.get("busy") else ""
    return f" [{', '.join(ends)}]{busy}" if row else ""


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    home = shared.home(options.home)
    folder, seconds = home / "exports" / "notebooks", {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{home} cannot be written ({error.strerror}): choose another --home."
        print(why, file=sys.stderr)
        return 2
    parameters = {
        "DATASET": options.dataset,
        "SOURCE": options.source,
        "PROFILE": options.profile,
        "DRIVE": False,
        "IMAGE_SIZE": options.image_size,
        "SEED": options.seed,
        "HOME": str(home),
    }
    # on Colab nobody would see a prompt of these kernels
    os.environ["COURSE_UNATTENDED"] = "1"
    from tqdm import tqdm

    with tqdm(notebooks(options.first, options.last).items(), unit="theme") as bar:
        for theme, path in bar:
            bar.set_description(path.stem)
            try:
                seconds[theme] = execute(path, parameters, folder)
            except Exception as error:
                bar.close()
                print(explain(theme, path, folder, error), file=sys.stderr)
                return 1
    print(summary(home, seconds))
    print(*timing.report(folder, seconds), sep="\n")
    return 0
