"""Calls written for the course's first handout: they run, or a sentence names ours."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import utils

torch.manual_seed(0)
IMAGES, LABELS = torch.rand(24, 1, 32, 32), torch.arange(24) % 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.maps, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.maps(x).mean(dim=(2, 3)))


@pytest.fixture
def given(tmp_path):
    """What a notebook of the handout has at hand."""
    model = Net()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)
    return {
        "utils": utils,
        "model": model,
        "loader": loader,
        "other": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8),
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.AdamW(model.parameters()),
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "file": tmp_path / "best.pth",
        "log": tmp_path / "log.csv",
        "X": np.random.default_rng(0).normal(size=(30, 4)),
        "Y": np.random.default_rng(1).normal(size=(20, 4)),
        "np": np,
        "pd": pd,
        "torch": torch,
        "cpu": "cpu",
        "nn": nn,
    }


def pairs(text: str) -> dict[str, str]:
    """Lines of code, and below each what must then hold, or what is said."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return dict(zip(lines[::2], lines[1::2], strict=True))


RUNS = pairs(
    """
    utils.set_seed(42)
        True
    loss, accuracy = utils.train_epoch(model, loader, criterion, optimizer, 'cpu')
        0 <= accuracy <= 1 and loss > 0
    loss, accuracy = utils.train_epoch(model, loader, criterion, optimizer, cpu, scaler)
        0 <= accuracy <= 1
    loss, accuracy = utils.validate(model, loader, criterion, 'cpu')
        0 <= accuracy <= 1
    n = utils.count_parameters(model)
        n == 50
    torch.save(model.state_dict(), file); s = utils.load_checkpoint(file, model)
        'weights' in s
    utils.save_checkpoint(file, model, optimizer, epoch=3, val_acc=0.9)
        file.exists()
    s = utils.load_checkpoint(utils.save_checkpoint(file, model, epoch=3, val_acc=0.9))
        (s['epoch'], s['val_acc']) == (3, 0.9)
    r = utils.benchmark_model(model, (2, 1, 32, 32), 'cpu', 5, 2)
        r['latency_p50'] > 0 and r['throughput'] > 0
    l = utils.InferenceLogger(str(log)); l.log(1, 0.9, 2.5)
        pd.read_csv(log)['confidence'].tolist() == [0.9]
    utils.InferenceLogger(log).log_batch(torch.tensor([0, 1]), [0.5, 0.75], np.ones(2))
        len(pd.read_csv(log)) == 2
    drift, p = utils.detect_pixel_drift(loader, other)
        drift is False and p > 0.05
    found = bool(utils.detect_pixel_drift(loader, other))
        found is False
    m = utils.compute_mmd(X, Y); g = utils.compute_mmd(X, Y, 'rbf', 1.0)
        abs(m) < 1 and abs(g) < 1
    m = utils.compute_mmd(X, Y, kernel='linear')
        abs(m) < 5
    e, l = utils.extract_embeddings(model, loader, 'cpu')
        e.shape == (24, 4) and l.tolist() == [0, 1] * 12
    drift, p = utils.detect_embedding_drift(model, loader, other, 'cpu')
        drift is False and 0 < p <= 1
    n = len(loader.dataset)
        n == 24
    """
)
REFUSED = pairs(
    """
    utils.train_epoch_amp(model, loader, criterion, optimizer, scaler, 'cpu')
        here it is utils.train_epoch
    utils.train_epoch(model, loader, criterion, optimizer, scaler, 'cpu')
        The device comes before the scaler
    utils.save_checkpoint(model, optimizer, 3, 0.9, filename='x.pth')
        takes no filename=.*the path comes first
    utils.save_checkpoint(model, optimizer, 3, 0.9)
        save_checkpoint begins with a path
    utils.load_checkpoint(model, optimizer, filename='x.pth')
        the path comes first
    utils.print_training_summary([])
        the handout's; here it is utils.fit
    utils.detect_drift(loader, other)
        here it is utils.detect_pixel_drift
    utils.detect_pixel_drift(loader, other, num_samples=10_000)
        one image is one observation
    utils.detect_pixel_drift(loader, other, 10_000)
        alpha=10000 is an alarm in
    utils.extract_embeddings(model, loader, 'cpu', layer_name='last')
        takes no layer_name=.*what the last nn.Linear reads
    utils.detect_embedding_drift(model, loader, other, 'cpu', threshold=0.3)
        takes no threshold=.*give alpha
    utils.detect_embedding_drift(model, loader, other, 'cpu', 0.3)
        alpha=0.3 is an alarm in 30%
    utils.validate_retrained_model(model, model, loader, other, criterion, 'cpu')
        A criterion stands where the device does
    utils.nothing_of_that_name
        has no attribute 'nothing_of_that_name'
    """
)


@pytest.mark.parametrize("code", RUNS)
def test_a_call_of_the_handout_runs(given, code):
    exec(code, given)
    assert eval(RUNS[code], given)


@pytest.mark.parametrize("code", REFUSED)
def test_a_call_of_the_handout_is_refused_in_a_sentence(given, code):
    with pytest.raises((utils.CourseError, AttributeError), match=REFUSED[code]):
        exec(code, given)
    assert not given["file"].exists()
