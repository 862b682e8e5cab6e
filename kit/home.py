"""One home, one story: its settings, datasets and profiles, and where it lies."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import sample_data
from kit import record
from kit.files import KIT, CourseError, damaged, read_json, write_json
from kit.machine import BUSY, OtherPrograms, amp_dtype, hardware

COLAB = Path("/content")


@dataclass(frozen=True)
class Dataset:
    """Where a dataset comes from and how its folders become classes (the last class is
    the positive one).
    """

    folder: str
    kaggle: str
    channels: int
    classes: tuple[str, ...]
    positive: str
    folders: dict[str, str] = field(default_factory=dict)


_XRAY = {"normal": "NORMAL", "pneumonia": "PNEUMONIA"}
_ROOF = {
    name: "PANEL" for name in ("positive", "panel", "panels", "solar", "yes", "1")
} | {
    name: "NO_PANEL"
    for name in ("negative", "no_panel", "no_panels", "no_solar", "no", "0")
}
_KAGGLE_XRAY = "paultimothymooney/chest-xray-pneumonia"
DATASETS = {
    "pneumonia": Dataset(
        "chest_xray", _KAGGLE_XRAY, 1, ("NORMAL", "PNEUMONIA"), "PNEUMONIA", _XRAY
    ),
    "pneumonia3": Dataset(
        "chest_xray",
        _KAGGLE_XRAY,
        1,
        ("NORMAL", "BACTERIA", "VIRUS"),
        "pneumonia",
        _XRAY,
    ),
    "solar": Dataset(
        "solar_panels",
        "tunguz/solar-panel-classification",
        3,
        ("NO_PANEL", "PANEL"),
        "PANEL",
        _ROOF,
    ),
}


@dataclass(frozen=True)
class Profile:
    """How much work a run does: pixels, epochs, trials, resamples."""

    name: str
    image_size: int
    sample_images: int
    baseline_epochs: int
    optimized_epochs: int
    ablation_epochs: int
    trials: int
    trial_epochs: int
    permutations: int
    resamples: int


PROFILES = {
    "smoke": Profile("smoke", 32, 120, 1, 1, 1, 2, 1, 99, 200),
    "quick": Profile("quick", 64, 2400, 6, 16, 5, 5, 2, 200, 1000),
    "full": Profile("full", 224, 2400, 15, 30, 8, 20, 4, 1000, 2000),
}
MAX_IMAGE_SIZE = 1024  # pixels of a side: the real images are hardly larger
# The file that each theme needs, and the notebook that writes it.
PREREQUISITES = {
    2: ("data/{dataset}/index.csv", "theme1_data_analysis"),
    3: ("checkpoints/baseline.pth", "theme2_baseline_model"),
    4: ("checkpoints/best_model.pth", "theme3_optimization"),
    5: ("exports/model.onnx", "theme4_onnx_deployment"),
    6: ("exports/monitoring_baseline.json", "theme5_monitoring"),
    7: ("exports/drift_report.json", "theme6_drift_detection"),
}


@dataclass
class Course:
    """What every theme shares. Results live under `home`; pixels and running files
    under `local`.
    """

    theme: int
    dataset: str
    source: str
    profile: Profile
    image_size: int
    seed: int
    home: Path
    local: Path
    root: Path
    device: torch.device
    sample: bool
    noted: dict = field(default_factory=dict)

    def note(self, **values) -> None:
        """Keep values for the theme's section of the record, which `finish` writes."""
        self.noted |= values

    def finish(self, reads=(), **values):
        """Record what this theme measured, show its criteria: `kit.record.finish`."""
        return record.finish(self, reads, **values)

    def variant(self, seed: int | None = None, image_size: int | None = None) -> Course:
        """The same course with another seed or size, in a home of its own below this
        one: what is here stays as it is, and both can be compared in one notebook.

        Its index and pools are its own: build_index first.
        """
        seed = self.seed if seed is None else seed
        size = self.image_size if image_size is None else image_size
        check_asked(self.dataset, self.profile.name, size, seed)
        place = Path("variants") / f"seed-{seed}-size-{size}"
        home, local = self.home / place, self.local / place
        for folder in {home, local}:
            folder.mkdir(parents=True, exist_ok=True)
        names = self.dataset, self.source, self.profile.name
        write_json(home / "course.json", open_settings(home, *names, size, seed))
        return replace(
            self, seed=seed, image_size=size, home=home, local=local, noted={}
        )

    @property
    def key(self) -> str:
        """What of it a result may depend on; the place of the home is not."""
        return f"{self.dataset}-{self.profile.name}-{self.image_size}-{self.seed}"

    @property
    def provider(self) -> str:
        """Where themes 4 to 8 serve: "cpu" or "cuda", as COURSE_PROVIDER says, else on
        the device.
        """
        return os.environ.get("COURSE_PROVIDER", self.device.type).lower()

    @property
    def spec(self) -> Dataset:
        return DATASETS[self.dataset]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def data(self) -> Path:
        return self.home / "data" / self.dataset

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

    @property
    def exports(self) -> Path:
        return self.home / "exports"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def logs(self) -> Path:
        """On the local disk, as writers append to them all the time; `keep` copies them
        to the home.
        """
        return self.local / "logs"


def on_colab() -> bool:
    # the image of a Kaggle kernel is made from that of Colab
    return "google.colab" in sys.modules and "KAGGLE_KERNEL_RUN_TYPE" not in os.environ


def _mount_drive() -> Path:
    """The student's own folder on Google Drive, MyDrive."""
    try:
        from google.colab import drive as google_drive
    except ImportError as error:
        raise CourseError(
            "DRIVE=True works on Google Colab only: set DRIVE=False and give a HOME."
        ) from error
    folder = COLAB / "drive" / "MyDrive"
    try:
        google_drive.mount(str(COLAB / "drive"))
        os.listdir(folder)  # a mount that has died still has its folder
    except Exception as error:  # Colab's own errors, which exist only there
        raise CourseError(
            f"Google Drive was not opened ({error}): run this cell again and allow the"
            " access that Colab asks for, or set DRIVE=False to keep the results on"
            " this machine, as long as its session lasts."
        ) from error
    return folder


def _drive_if_allowed(home) -> Path | None:
    """DRIVE="auto": on Colab Drive is asked for, unless HOME lies elsewhere; a refusal
    is one sentence, and the course goes on without.
    """
    elsewhere = home and not (COLAB / "drive" / home).is_relative_to(COLAB / "drive")
    if not on_colab() or elsewhere or "COURSE_UNATTENDED" in os.environ:
        return None
    try:
        return _mount_drive()
    except CourseError:
        print(
            "Google Drive was not opened: the results stay on this machine and are lost"
            " with its session. Run this cell again to allow the access."
        )
        return None


def open_folders(home, drive) -> tuple[Path, Path]:
    """Folder of results and folder of pixels and running files; two different ones only
    with Drive.

    drive : True, False or "auto": asked for on Colab, and done without where refused.
    """
    mine = _drive_if_allowed(home) if drive == "auto" else drive and _mount_drive()
    if mine:
        home = mine / (home or "dl-course")
        if not home.is_relative_to(COLAB / "drive"):
            raise CourseError(
                f"HOME={home} is not on Google Drive, but DRIVE=True: give a folder"
                f" below {mine}, or set DRIVE=False."
            )
        local = COLAB / "dl-course-local" / home.relative_to(COLAB / "drive")
    else:
        home = Path(home or KIT).expanduser().resolve()
        # `catch_up` sets it: its notebooks share the disk of the one that asked
        local = Path(os.environ.get("COURSE_LOCAL", home))
    for folder in {home, local}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise CourseError(
                f"HOME={folder} cannot be made ({reason}): choose a folder of your own."
            ) from error
        if not os.access(folder, os.W_OK):
            raise CourseError(
                f"HOME={folder} is not writable: choose another folder with HOME or"
                " --home."
            )
    return home, local


def open_home(
    theme, dataset, source, profile, image_size, seed, drive, home
) -> tuple[Path, Path, dict]:
    """Folder of results, folder of pixels and running files, and settings of the home
    that is asked for; refused where it does not fit.
    """
    check_asked(dataset, profile, image_size, seed)
    if (busy := used_by_others()) >= BUSY:
        print(
            f"Other programs use {busy:.1f} of {our_cores()} cores: times are not to be"
            " trusted, and a training may take several times as long. Close what you"
            " can (another notebook, videos), or wait."
        )
    home, local = open_folders(home or os.environ.get("COURSE_HOME"), drive)
    settings = open_settings(home, dataset, source, profile, image_size, seed)
    check_earlier_theme(theme, home, local, settings)
    return home, local, settings


def check_asked(dataset, profile, image_size, seed) -> None:
    """Refuse names that are unknown and numbers that cannot be."""
    if dataset not in DATASETS:
        names = ", ".join(DATASETS)
        raise CourseError(f"DATASET={dataset!r} is unknown: choose one of {names}.")
    if profile not in (*PROFILES, "auto"):
        names = ", ".join(PROFILES)
        raise CourseError(f"PROFILE={profile!r} is unknown: choose auto, {names}.")
    if image_size is not None and not _is_whole(image_size, 32, MAX_IMAGE_SIZE):
        raise CourseError(
            f"IMAGE_SIZE={image_size!r} cannot be: give a whole number from 32 (the"
            f" networks halve the picture again and again) to {MAX_IMAGE_SIZE}."
        )
    if not _is_whole(seed, 0, 2**32 - 1):
        raise CourseError(
            f"SEED={seed!r} cannot be: give a whole number from 0 to {2**32 - 1}."
        )


def _is_whole(value, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def are_settings(values: dict) -> bool:
    """Whether course.json says everything that it must, in values that `start`
    takes.
    """
    names = [values.get(name) for name in ("dataset", "source", "profile")]
    return (
        all(isinstance(name, str) for name in names)
        and values["dataset"] in DATASETS
        and values["profile"] in PROFILES
        and _is_whole(values.get("image_size"), 32, MAX_IMAGE_SIZE)
        and _is_whole(values.get("seed"), 0, 2**32 - 1)
        and _is_whole(values.get("threads", 1), 1, 1024)
    )


def open_settings(home: Path, dataset, source, profile, image_size, seed) -> dict:
    """What this home holds, checked against what was asked; `auto` takes
    what is there.
    """
    path = home / "course.json"
    known = read_json(path, precious=True)
    if path.exists() and not are_settings(known):
        raise damaged(path)
    if profile == "auto":
        default = "full" if torch.cuda.is_available() else "quick"
        profile = known.get("profile", default)
    if image_size is None:
        image_size = PROFILES[profile].image_size
        if known.get("profile") == profile:
            image_size = known["image_size"]
    source = str(source)
    if source not in ("auto", "kaggle", "sample"):
        source = str(Path(source).expanduser().resolve())
    if source == "auto":
        source = known.get("source", "auto")
    asked = {"dataset": dataset, "source": source, "profile": profile}
    asked |= {"image_size": image_size, "seed": seed}
    different = [
        f"{key} {known[key]!r} (asked: {value!r})"
        for key, value in asked.items()
        if known and known[key] != value
    ]
    if different:
        raise CourseError(
            f"{home} already holds other settings: {', '.join(different)}. One home"
            " holds one run of the course: choose another folder with HOME (or --home),"
            " or ask for what it holds."
        )
    threads = known.get("threads") or max(1, round(our_cores() - used_by_others()))
    return {"threads": threads} | known | asked


def asked_threads(settings: dict) -> int:
    """Threads of a home; COURSE_THREADS overrides them."""
    asked = os.environ.get("COURSE_THREADS") or str(settings["threads"])
    if not asked.strip().isdecimal() or not _is_whole(int(asked), 1, 1024):
        raise CourseError(
            f"COURSE_THREADS={asked!r} cannot be: give a whole number from 1 to 1024."
        )
    return int(asked)


def our_cores() -> int:
    """Cores that this process may use, at most 8: more bring our networks nothing."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), 8)
    return min(os.cpu_count() or 1, 8)


_others = OtherPrograms()  # from the first `import utils` on


def used_by_others() -> float:
    """Cores that other programs have used since the course was imported.

    Two threads that share their work wait for one another after every layer: where one
    of them has to wait for its core, both do, and one thread alone is faster.
    """
    return _others.cores()


_asked: dict = {}  # of the last `start`, for `catch_up`


def check_earlier_theme(theme: int, home: Path, local: Path, settings: dict) -> None:
    """Refuse a theme that needs what an earlier one has not written yet."""
    _asked.update(theme=theme, home=home, local=local, settings=settings)
    if missing := _missing_themes():
        path, notebook = PREREQUISITES[theme]
        raise CourseError(
            f"{home / path.format(**settings)} is missing: run notebooks/{notebook}"
            ".ipynb with the same HOME, or run utils.catch_up() in a new cell, which"
            f" runs theme {' and '.join(map(str, missing))} here."
        )


def _missing_themes() -> list[int]:
    """From the earliest theme whose file is gone to the one before the theme that was
    asked for; none where that finds its own file.
    """
    theme, home, settings = (_asked[key] for key in ("theme", "home", "settings"))
    paths = {
        t: home / path.format(**settings) for t, (path, _) in PREREQUISITES.items()
    }
    gone = [t for t, path in paths.items() if t <= theme and not path.exists()]
    return list(range(gone[0] - 1, theme)) if theme in gone else []


def catch_up() -> None:
    """Run the earlier notebooks that the last `utils.start` missed: here, with its
    settings, in new kernels; finished work loads.

    Raises
    ------
    CourseError
        Nothing was started, or a notebook stopped; what was finished is kept.
    """
    if not _asked:
        raise CourseError(
            "Run the cell with utils.start first: it says what is missing."
        )
    missing = _missing_themes()
    if not missing:
        print("Nothing is missing: run the cell with utils.start again.")
        return
    settings, home = _asked["settings"], _asked["home"]
    command = [sys.executable, KIT / "course.py", "run", "--home", home]
    command += ["--from", missing[0], "--until", missing[-1]]
    for name in ("dataset", "source", "profile", "image_size", "seed"):
        command += ["--" + name.replace("_", "-"), settings[name]]
    environment = os.environ | {"COURSE_LOCAL": str(_asked["local"])}
    # as pipes: what a subprocess prints itself does not reach a cell
    process = subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        cwd=KIT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    said = ""
    for character in iter(lambda: process.stderr.read(1), ""):
        said = (said + character)[-2000:]
        sys.stdout.write(character)
    if process.wait() != 0:
        raise CourseError(
            f"The earlier themes stopped (see above): {said.strip().splitlines()[-1]}"
        )
    print("Done: run the cell with utils.start again.")


def greet(course: Course, why_sample: str) -> None:
    """The first screen: what runs where, and a banner when the images are drawn, with
    the reason.
    """
    precision = str(amp_dtype(course.device) or torch.float32).removeprefix("torch.")
    print(
        f"Theme {course.theme} · {course.dataset} from {course.source} · profile"
        f" {course.profile.name} at {course.image_size} px · seed {course.seed} ·"
        f" {hardware()} · {precision}"
    )
    alone = ": run one notebook at a time" if course.home != course.local else ""
    print(f"Results in {course.home}{alone}")
    print(_gpu_advice(course))
    if course.sample:
        lines = [f"SAMPLE DATA · {sample_data.DISCLAIMER}"]
        if why_sample:
            way = "For the real images choose another HOME with SOURCE='kaggle' in"
            lines += [f"Why: {why_sample}.", f"{way} theme 1."]
        bar, text = "=" * 80, "\n".join(textwrap.fill(line, 78) for line in lines)
        print(bar, textwrap.indent(text, "  "), bar, sep="\n")


def _gpu_advice(course: Course) -> str:
    """Whether there is a GPU, and how to switch it on on Colab."""
    profile = course.profile.name
    if course.device.type == "cuda":
        return f"GPU: {torch.cuda.get_device_name()}."
    hours = ", which takes hours" if profile == "full" else ""
    switch = (
        " Switch one on: Runtime > Change runtime type > T4 GPU (Exécution > Modifier"
        " le type d'exécution > GPU T4), then run from the first cell."
        if on_colab()
        else ""
    )
    return f"No GPU: profile {profile} on the CPU{hours}.{switch}"


# of what is not test
POOLS = {"train": 0.70, "val": 0.12, "production": 0.06, "adapt": 0.04, "gate": 0.08}
