"""`course.py run`: execute the notebooks in order and end with a summary."""

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

KIT = Path(__file__).resolve().parents[2]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="course.py run", description=__doc__)
    parser.add_argument(
        "--dataset", default="pneumonia", help="pneumonia, pneumonia3 or solar"
    )
    parser.add_argument(
        "--source",
        default="auto",
        help="auto, kaggle, sample, or the folder above the dataset's own",
    )
    parser.add_argument("--profile", default="auto", help="auto, smoke, quick or full")
    parser.add_argument(
        "--image-size",
        type=int,
        help="side in pixels, at least 32 (default: the profile's)",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--home",
        type=Path,
        default=KIT,
        help="folder of all artefacts (default: the kit)",
    )
    parser.add_argument("--from", dest="first", type=int, default=1, help="first theme")
    parser.add_argument("--until", dest="last", type=int, default=8, help="last theme")
    return parser.parse_args(arguments)


def notebooks(first: int, last: int) -> dict[int, Path]:
    """The notebooks of the themes first..last that exist, by theme."""
    found = {
        int(re.match(r"theme(\d)", path.name)[1]): path
        for path in (KIT / "notebooks").glob("theme*.ipynb")
    }
    return {theme: found[theme] for theme in sorted(found) if first <= theme <= last}


def execute(theme: int, path: Path, parameters: dict, folder: Path) -> float:
    """Run one notebook in a fresh kernel, keep the executed copy, return the seconds it
    took.

    Raises
    ------
    papermill.PapermillExecutionError, nbclient.exceptions.DeadKernelError
        A cell failed, or its kernel was killed. Everything up to it stands in
        <theme>.failed.ipynb; the copy of an earlier run that went well is untouched.
    """
    import papermill

    running, failed = (
        folder / f".{path.stem}.{os.getpid()}.running.ipynb",
        failed_copy(folder, path),
    )
    began = time.perf_counter()
    for left in folder.glob(f".{path.stem}.*.running.ipynb"):
        # of a runner that was killed: no cell takes a day
        if time.time() - left.stat().st_mtime > 86_400:
            left.unlink(missing_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                path,
                running,
                parameters=parameters,
                cwd=str(KIT),
                kernel_name="python3",
                progress_bar=False,
                log_output=False,
                # else each kernel warns about TCP
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
    except BaseException:
        if running.exists():
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
            if (
                joined
                and output.output_type == "stream"
                and output.name == joined[-1].get("name")
            ):
                joined[-1].text += output.text  # the kernel sends a text in pieces
            else:
                joined.append(output)
        for output in (output for output in joined if output.output_type == "stream"):
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
        if joined:
            cell.outputs = joined
    nbformat.write(notebook, executed)


def explain(theme: int, path: Path, executed: Path, error) -> str:
    """One readable paragraph: theme, cell, error, where to look."""
    last = error.evalue.strip() or error.ename
    source = "\n".join("    " + line for line in error.source.strip().splitlines()[:8])
    return (
        f"\nTheme {theme} stopped in cell {error.cell_index} of"
        f" notebooks/{path.name}:\n{source}\n\n{error.ename}: {last}\n\nEverything"
        f" before it is kept. The notebook so far: {executed}"
    )


def summary(home: Path, seconds: dict[int, float]) -> str:
    """The closing table: criteria of each theme, headline figures, paths."""
    results = json.loads((home / "exports" / "results.json").read_text())
    lines = ["", f"{'theme':<7}{'seconds':>8}  criterion"]
    for theme, took in seconds.items():
        rows = results.get("criteria", {}).get(f"theme{theme}", [])
        nothing = [
            {"name": "no criteria recorded", "value": "", "target": "", "passed": False}
        ]
        for number, row in enumerate(rows or nothing):
            value = row["value"]
            if isinstance(value, float):
                value = (
                    f"{value:.3f}"
                    if value == 0 or abs(value) >= 0.001
                    else f"{value:.1e}"
                )
            head = f"{theme:<7}{took:>8.0f}" if number == 0 else " " * 15
            lines.append(
                f"{head}  {'✓' if row['passed'] else '✗'} {row['name']}: {value}"
                f" (target {row['target']})"
            )
    lines += ["", "headline figures (" + results["meta"]["hardware"] + "):"]
    for key, value in results.get("headline", {}).items():
        lines.append(
            f"  {key:<36}{value if isinstance(value, str) else f'{value:.4g}'}"
        )
    if results["meta"]["source"] == "sample":
        lines += [
            "",
            (
                "SAMPLE DATA: drawn images; these figures show that the kit works and"
                " nothing else."
            ),
        ]
    exports, report = home / "exports", home / "report" / "report.pdf"
    written = [
        exports / what
        for what in ("notebooks", "figures", "tables", "results.json", "MODEL_CARD.md")
    ]
    lines += [
        "",
        *(
            f"{path.name + ':':<24}{path}"
            for path in (*written, report, *home.glob("hand-in-*.zip"))
            if path.exists()
        ),
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError
    from tqdm import tqdm

    options = parse(arguments)
    chosen = notebooks(options.first, options.last)
    if not chosen:
        print(f"There is no notebook for themes {options.first} to {options.last}.")
        return 2
    home = options.home.expanduser().resolve()
    parameters = {
        "DATASET": options.dataset,
        "SOURCE": options.source,
        "PROFILE": options.profile,
        "DRIVE": False,
        "IMAGE_SIZE": options.image_size,
        "SEED": options.seed,
        "HOME": str(home),
    }
    folder, seconds = home / "exports" / "notebooks", {}
    # on Colab nobody would see a prompt of these kernels
    os.environ["COURSE_UNATTENDED"] = "1"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"--home {home} cannot be written ({error.strerror}): choose another"
            " folder."
        )
        return 2
    with tqdm(chosen.items(), unit="theme", file=sys.stdout) as bar:
        for theme, path in bar:
            bar.set_description(path.stem)
            try:
                seconds[theme] = execute(theme, path, parameters, folder)
            except PapermillExecutionError as error:
                bar.close()
                print(explain(theme, path, failed_copy(folder, path), error))
                return 1
            except RuntimeError as error:
                # of nbclient, or of jupyter_client when the kernel never came up
                if not isinstance(error, DeadKernelError) and not str(error).startswith(
                    "Kernel died"
                ):
                    raise
                bar.close()
                print(
                    f"\nTheme {theme}: the kernel was killed, most often because memory"
                    " ran out. Close other programs, then run again: finished work"
                    f" loads. So far: {failed_copy(folder, path)}"
                )
                return 1
            except OSError as error:
                bar.close()
                free = shutil.disk_usage(folder).free / 1e6
                print(
                    f"\nTheme {theme}: its executed notebook could not be written to"
                    f" {folder} ({error.strerror}; {free:,.1f} MB are free there). Free"
                    " some space, then run again: finished work loads."
                )
                return 1
    print(summary(home, seconds))
    print(*timing.report(folder, seconds), sep="\n")
    return 0
