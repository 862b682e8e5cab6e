"""The page: three tabs in Gradio."""

import io
import os
import threading
from pathlib import Path

import gradio as gr
import numpy as np
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

import utils
from demo import drift, logs, pages, pictures
from demo.service import Service, answer
from kit import figures
from kit.drifts import DRIFTS

CSS = Path(__file__).with_name("look.css")
EXAMPLES = 12
# One piece of work at a time: two cores, and Matplotlib's figures belong to the whole
# process.
ALONE = {
    "concurrency_id": "work",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "minimal",
}
# pictures to look at or to choose, not to open or to take along
LOOK = {
    "show_label": False,
    "allow_preview": False,
    "interactive": False,
    "buttons": [],
}
# the old picture stays until the new one is there: no flicker
STEADY = ALONE | {"show_progress": "hidden", "trigger_mode": "always_last"}


def told(work, parts: int = 4):
    """A handler whose CourseError becomes a sentence in the first of its parts, the
    others left empty, and one line in the server's window.
    """

    def handler(*values):
        try:
            return work(*values)
        except utils.CourseError as error:
            print(f"refused: {error}", flush=True)
            return f"**{error}**", *[None] * (parts - 1)

    return handler


class Uploads:
    """Pictures that were sent, decoded for a model; whatever was sent is removed from
    the disk.

    Gradio keeps a file in a folder named by its content: the same picture of several
    visitors is one file, which goes with the first answer. What it held stays, reduced
    to the model's size and without a name, for the others.
    """

    MOST = 500  # pictures in memory

    def __init__(self, size: int, channels: int):
        self.shape, self.seen = (size, channels), {}

    def open(self, paths: list[str] | None) -> tuple[np.ndarray, float, list[str]]:
        """As `pictures.read_picture`, of the one file that was sent."""
        files = [Path(path) for path in paths or []]
        try:
            if len(files) != 1:
                raise pictures.Refused(
                    f"{len(files)} files were sent, and one gets one answer: send a"
                    " single picture."
                )
            key = files[0].parent.name
            if key not in self.seen:
                self.seen[key] = self._read(files[0])
            found = self.seen[key]
            if len(self.seen) > self.MOST:
                del self.seen[next(iter(self.seen))]
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        if isinstance(found, str):
            raise pictures.Refused(found)
        return found

    def _read(self, file: Path) -> tuple[np.ndarray, float, list[str]] | str:
        """What a file gives, or why it gives nothing."""
        try:
            with file.open("rb") as stored:
                content = stored.read(pictures.MAX_BYTES + 1)
            return pictures.read_picture(content, *self.shape)
        except FileNotFoundError as error:  # it was sent long ago
            told = "The file is no longer there: send it again."
            raise pictures.Refused(told) from error
        except pictures.Refused as refused:
            return str(refused)


def chosen_rows(service: Service) -> np.ndarray:
    """Pictures of pool production to try, classes in turn, the same ones every time."""
    if service.data is None:
        return np.array([], dtype=int)
    data, rng = service.data, np.random.default_rng(service.course.seed)
    rows = rng.permutation(data.where("production"))
    each = EXAMPLES // len(data.classes)
    by_class = [rows[data.labels[rows] == k][:each] for k in range(len(data.classes))]
    return rng.permutation(np.concatenate(by_class))


def content_of(service: Service, row: int) -> bytes:
    """The file of an example, as a client would send it; where the images are gone, its
    cached pixels.
    """
    path = service.course.root / service.data.index["path"].iloc[row]
    if path.exists():
        return path.read_bytes()
    buffer = io.BytesIO()
    pages.image_of(np.array(service.data.pixels[row])).save(buffer, "PNG")
    return buffer.getvalue()


def answered(service: Service, picture: tuple, label: str | None = None) -> tuple:
    """Values for the parts of the answer, in the order of `answer_parts`, to what
    `pictures.read_picture` gave.
    """
    found, classes = answer(service, *picture), service.model.classes
    probabilities = dict(zip(classes, map(float, found.probabilities), strict=True))
    return (
        pages.verdict(service, found, label),
        probabilities,
        pages.heat(service, found),
        pages.comparison(service, found),
    )


def answer_parts() -> list:
    """Where the answer to one picture is shown. A figure travels inside the page:
    nothing of an upload is stored to be shown.
    """
    return [
        gr.Markdown("Choose a picture: the answer comes here.", elem_id="answer"),
        gr.Label(label="Calibrated probabilities", elem_id="probabilities"),
        gr.Plot(show_label=False, elem_id="heat"),
        gr.Markdown(elem_id="unlike"),
    ]


def picture_tab(service: Service) -> None:
    """One picture: upload or example, and everything about it."""
    rows, shape = chosen_rows(service), (service.model.size, service.model.channels)
    with gr.Row():
        with gr.Column(min_width=280, scale=2):
            upload = gr.File(
                label=f"Your picture, up to {pictures.MAX_BYTES >> 20} MB",
                file_count="multiple",
                height=150,
                elem_id="upload",
            )
            gr.Markdown("or one of pool *production*, which no training has seen:")
            gallery = gr.Gallery(
                [pages.image_of(service.data.pixels[row]) for row in rows],
                elem_id="examples",
                columns=3,
                **LOOK,
            )
            if "images" in service.missing:
                gr.Markdown(f"*No examples: {service.missing['images']}*")
        with gr.Column(min_width=320, scale=3):
            parts = answer_parts()

    def pick(event: gr.SelectData):
        row = rows[event.index]
        label = service.model.classes[service.data.labels[row]]
        content = content_of(service, row)
        read = lambda: pictures.read_picture(content, *shape)  # noqa: E731
        return told(lambda: answered(service, read(), label))()

    uploads = Uploads(*shape)
    read = told(lambda paths: answered(service, uploads.open(paths)))
    # the field is ready for the next picture, whatever comes of this one
    upload.upload(lambda paths: (None, *read(paths)), upload, [upload, *parts], **ALONE)
    gallery.select(pick, None, parts, **ALONE)


def drift_tab(service: Service) -> None:
    """The same pictures under a growing drift."""
    kinds, classes = utils.drifts_of(service.course.dataset), service.model.classes
    try:
        look = drift.looker(service)
        begin = drifted(look, classes, kinds[0], 0)
    except utils.CourseError as error:
        gr.Markdown(f"*No drift to show: {error}*")
        return
    with gr.Row():
        kind = gr.Dropdown(kinds, value=kinds[0], label="Kind", elem_id="kind")
        levels = min(drift.SEVERITIES), max(drift.SEVERITIES)
        severity = gr.Slider(
            *levels, value=0, step=1, label="Severity", elem_id="severity"
        )
    shape = {"columns": 4, "object_fit": "contain"}
    parts = [
        gr.Markdown(begin[0], elem_id="window"),
        gr.Gallery(begin[1], elem_id="pictures", **shape, **LOOK),
    ]
    show = told(lambda *asked: drifted(look, classes, *asked), 2)
    for change in (kind.change, severity.change):
        change(show, [kind, severity], parts, **STEADY)


def drifted(look, classes, name: str, level: int) -> tuple:
    """Values for the parts of the tab of drift."""
    seen, kind = look(name, int(level)), DRIFTS[name]
    size = f" Here: {kind.label(level)}." if level else ""
    says = f"{kind.says}{size}\n\n{pages.window(seen, level)}"
    return says, pages.window_pictures(seen, classes)


def log_tab(service: Service) -> None:
    """What production said: rolling statistics, alerts, last lines."""
    choices, chosen, note, figure, alerts, lines = logged(service, None)
    with gr.Row():
        run = gr.Dropdown(choices, value=chosen, label="Run", elem_id="run", scale=4)
        again = gr.Button("Read again", scale=1, min_width=120)
    parts = [
        gr.Markdown(note),
        gr.Plot(figure, show_label=False, elem_id="dashboard"),
        gr.Dataframe(alerts, label="Alerts", wrap=True, elem_id="alerts"),
        gr.Dataframe(lines, label="Last lines of the log", elem_id="lines"),
    ]

    def update(chosen):
        choices, chosen, *values = logged(service, chosen)
        return gr.update(choices=choices, value=chosen), *values

    run.input(update, run, [run, *parts], **ALONE)
    again.click(update, run, [run, *parts], **ALONE)


def logged(service: Service, chosen: str | None) -> tuple:
    """Choices and choice of the run, and values for the parts of the tab of the log."""
    home = service.course.home
    try:
        log, alerts = logs.read_both(home)
    except utils.CourseError as error:
        return (
            [],
            None,
            f"**{str(error).replace(f'{home}{os.sep}', '')}**",
            None,
            None,
            None,
        )
    labels = logs.list_runs(log, alerts)
    chosen = chosen if chosen in labels else next(iter(labels))
    own = alerts[alerts["run_id"] == chosen]
    title = f"{labels[chosen].split(' · ')[0]}; triangles: alerts that fire"
    figure = figures.dashboard(logs.windows_of(log, chosen, home), own, title=title)
    return (
        [(label, name) for name, label in labels.items()],
        chosen,
        "",
        pages.closed(figure),
        pages.alerts_table(own),
        pages.log_tail(log[log["run_id"] == chosen], service.model.classes),
    )


def build(service: Service) -> gr.Blocks:
    """The whole page."""
    title = pages.TITLES[service.course.dataset]
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(60, 300)
    ) as page:
        gr.Markdown(pages.banner(service), elem_classes="sticky")
        for name, fill in {
            "One picture": picture_tab,
            "Drift": drift_tab,
            "Production log": log_tab,
        }.items():
            with gr.Tab(name):
                fill(service)
    return page


def hosts_of(host: str, share: bool) -> list[str]:
    """The names under which a browser may ask: a page of another name that leads here
    (DNS rebinding) reads nothing. Who opens the demo to a network, opens it to all of
    its names.
    """
    wide = share or host in ("0.0.0.0", "::")
    return ["*"] if wide else ["localhost", "127.0.0.1", "[::1]", host]


def serve(service: Service, host: str, port: int, share: bool = False) -> None:
    """Listen until Ctrl+C."""
    page = build(service)
    page.queue(max_size=200)
    only = {"allowed_hosts": hosts_of(host, share), "www_redirect": False}
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=5 * pictures.MAX_BYTES,
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, **only)]},
        theme=gr.themes.Default(font=sans, font_mono=mono),  # none from the network
        css_paths=CSS,
    )
    print(
        f"Demo on http://{host}:{port} (model {service.model.hash}); Ctrl+C ends it.",
        flush=True,
    )
    if share:
        print(
            f"Anybody who knows it may use {page.share_url}: it leads through a server"
            " of Gradio's makers."
        )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Ended.")
    finally:
        page.close(verbose=False)
