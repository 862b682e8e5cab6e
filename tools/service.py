"""One way to serve, in a process of its own, for `utils.benchmark_services`: `python tools/service.py SPEC`.

SPEC is the JSON of `utils.Backend.spec`. First line out: what /proc says of this process after it served 32 images.
Then for each line `[clients, seconds]` in, one line out: images_s and ms, the latencies of all calls.
"""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

STATUS = Path("/proc/self/status")


def build(spec: dict):
    """A function from pixels to probabilities, and one that sets how many threads it uses in the thread that calls."""
    if spec.get("provider") == "CPUExecutionProvider":  # without torch, as a real service would
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = spec["threads"]
        session = ort.InferenceSession(spec["path"], settings, providers=[spec["provider"]])
        return lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0], lambda threads: None
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch

    import utils

    torch.set_num_threads(spec["threads"])
    if "provider" in spec:
        model = utils.BoundModel(spec["path"], provider=spec["device"], **spec["options"])
        return model.predict, lambda threads: None
    model, state = utils.load_model(spec["path"])
    options = spec["options"] | {"dtype": getattr(torch, spec["precision"])}
    network = utils.ServedNetwork(model.cpu(), {"temperature": 1.0} | state).eval()
    return utils.torch_runner(network, spec["device"], **options), torch.set_num_threads


def turn(run, set_threads, image: np.ndarray, clients: int, seconds: float, threads: int) -> dict:
    """Let `clients` call at once, each as soon as it has its answer; PyTorch's threads are shared out among them."""
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
    return {"images_s": sum(1000 * len(times) / sum(times) for times in calls), "ms": ms}


def main(spec: dict) -> None:
    run, set_threads = build(spec)
    images = np.zeros((32, spec["channels"], spec["size"], spec["size"]), np.uint8)
    run(images)
    print(json.dumps(STATUS.read_text() if STATUS.exists() else ""), flush=True)
    for line in sys.stdin:
        clients, seconds = json.loads(line)
        print(json.dumps(turn(run, set_threads, images[:1], clients, seconds, spec["threads"])), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
