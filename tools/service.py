"""One way to serve, in a process of its own, for `utils.benchmark_services`: `python
tools/service.py SPEC IMAGES`.

SPEC is the JSON of `utils.Backend.spec`, IMAGES an .npy file of 32 images. First line
out: what /proc says of this process after it served them. Then for each line `[clients,
seconds]` in, one line out: images_s and ms, the latencies of all calls.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

STATUS = Path("/proc/self/status")


def build(spec: dict):
    """A function from pixels to probabilities, and one that sets how many threads it
    uses in the thread that calls.
    """
    # without torch, as a real service would
    if spec.get("provider") == "CPUExecutionProvider":
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = spec["threads"]
        session = ort.InferenceSession(
            spec["path"], settings, providers=[spec["provider"]]
        )
        return (
            lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0],
            lambda threads: None,
        )
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch

    import utils

    torch.set_num_threads(spec["threads"])
    if "provider" in spec:
        options = {"provider": spec["device"], **spec["options"]}
        model = utils.OnnxModel(spec["path"], **options)
        return model.predict, lambda threads: None
    model, state = utils.load_model(spec["path"])
    options = spec["options"] | {"dtype": getattr(torch, spec["precision"])}
    network = utils.ServedNetwork(model.cpu(), {"temperature": 1.0} | state).eval()
    return utils.torch_runner(network, spec["device"], **options), torch.set_num_threads


def turn(
    run, set_threads, image: np.ndarray, clients: int, seconds: float, threads: int
) -> dict:
    """Let `clients` call at once, each as soon as it has its answer; PyTorch's threads
    are shared out among them.
    """
    gate, calls = threading.Barrier(clients), [[] for _ in range(clients)]

    def client(times: list) -> None:
        set_threads(max(threads // clients, 1))
        for _ in range(5):
            run(image)  # not counted
        gate.wait()
        began = last = time.perf_counter()
        while last - began < seconds or not times:
            run(image)
            now = time.perf_counter()
            times.append(1000 * (now - last))
            last = now

    if clients == 1:  # no thread of its own: the best that a single client can get
        client(calls[0])
    else:
        each = [threading.Thread(target=client, args=(times,)) for times in calls]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()
    ms = [round(value, 4) for times in calls for value in times]
    return {
        "images_s": sum(1000 * len(times) / sum(times) for times in calls),
        "ms": ms,
    }


def main(spec: dict, images: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print what they like; it must not mix with the answers
    run, set_threads = build(spec)
    pixels = np.load(images)
    run(pixels)
    print(
        json.dumps(STATUS.read_text() if STATUS.exists() else ""),
        file=answers,
        flush=True,
    )
    for line in sys.stdin:
        clients, seconds = json.loads(line)
        told = turn(run, set_threads, pixels[:1], clients, seconds, spec["threads"])
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
