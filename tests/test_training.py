"""Training: the loop against plain PyTorch, stops, resumes, checkpoints, search."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from support.networks import RECIPE, Interrupted, network, same_weights
from torch import nn

import utils
from kit import machine
from utils import Recipe


def train(course, data, recipe=RECIPE, model=None, **options):
    options = {"tracker": "none", "progress": False} | options
    return utils.fit(course, "probe", model or network(), data, recipe, **options)


@pytest.fixture
def float32(monkeypatch):
    """Plain precision, to compare with plain PyTorch to the last digits."""
    monkeypatch.setattr(utils, "amp_dtype", lambda device: None)


# --- the loop


def test_train_epoch_is_plain_sgd(float32):
    torch.manual_seed(0)
    batches = [(torch.randn(8, 1, 32, 32), torch.randint(0, 2, (8,))) for _ in range(3)]
    ours, plain = utils.BaselineCNN(), utils.BaselineCNN()
    plain.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, plain)]
    loss, accuracy = utils.train_epoch(
        ours, batches, nn.CrossEntropyLoss(), optimizers[0], "cpu"
    )
    losses, right = [], 0
    for x, y in batches:
        logits = plain(x)
        value = F.cross_entropy(logits, y)
        optimizers[1].zero_grad()
        value.backward()
        optimizers[1].step()
        losses.append(value.item())
        right += (logits.argmax(1) == y).sum().item()
    assert loss == pytest.approx(np.mean(losses)) and accuracy == right / 24
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_validate_learns_nothing_and_averages_over_images(float32):
    torch.manual_seed(0)
    model = utils.OptimizedCNN(1, 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = torch.randn(10, 1, 32, 32), torch.randint(0, 2, (10,))
    loss, accuracy = utils.validate(
        model, [(x[:7], y[:7]), (x[7:], y[7:])], nn.CrossEntropyLoss(), "cpu"
    )
    with torch.no_grad():
        logits = model.eval()(x)
    assert loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == y).sum().item() / 10
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_class_weights_closed_form():
    weights = utils.class_weights(np.array([0] * 25 + [1] * 75), 2)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])
    with pytest.raises(utils.CourseError, match="Class 1 has no training image"):
        utils.class_weights(np.zeros(5, int), 2)


def test_loss_is_that_of_pytorch_averaged_over_the_images():
    logits, labels = torch.randn(50, 3), torch.randint(0, 3, (50,))
    weights = torch.tensor([0.5, 1.0, 2.0])
    plain = utils.WeightedCrossEntropy(label_smoothing=0.1)(logits, labels)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(plain, expected)
    criterion = utils.WeightedCrossEntropy(weights)
    halves = [
        criterion(logits[part], labels[part]) for part in (slice(25), slice(25, 50))
    ]
    whole = F.cross_entropy(logits, labels, weights) * weights[labels].mean()
    torch.testing.assert_close(criterion(logits, labels), whole)
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_label_smoothing_pulls_no_class_towards_a_rare_one():
    """Each image's smoothed loss, by hand, times the weight of its own class."""
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([3.0, 0.5, 0.2])
    told = utils.WeightedCrossEntropy(weights, 0.1)(logits, labels)
    target = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    by_hand = -(target * logits.log_softmax(dim=1)).sum(dim=1) * weights[labels]
    torch.testing.assert_close(told, by_hand.mean())


def test_running_average_closed_form():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average, expected = utils.RunningAverage(model, 0.9), 0.0
    for step in range(1, 200):
        nn.init.constant_(model.weight, step)
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-4)


def test_running_average_counts_the_batches_of_batch_norm():
    model = network()
    average = utils.RunningAverage(model, 0.9)
    for _ in range(3):
        model.train()(torch.rand(4, 1, 32, 32))
        average.update(model)
    counts = [b for n, b in average.module.named_buffers() if "num_batches" in n]
    assert counts and all(count == 3 for count in counts)


@pytest.mark.parametrize(
    "schedule, last", [("onecycle", 3e-3 / 1000), ("cosine", 0.0), ("constant", 3e-3)]
)
def test_schedules_end_where_they_should(schedule, last):
    model = utils.BaselineCNN()
    optimizer, scheduler = utils.make_optimizer(model, Recipe(schedule=schedule), 40)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(3e-3, rel=0.01)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(last, abs=2e-6)
    with pytest.raises(utils.CourseError, match="choose one of onecycle, cosine"):
        utils.make_optimizer(model, Recipe(schedule="zigzag"), 40)


def test_biases_are_not_decayed():
    optimizer, _ = utils.make_optimizer(
        utils.OptimizedCNN(), Recipe(weight_decay=0.1), 10
    )
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(
        p.ndim == 1 for p in plain["params"]
    )


# --- what goes wrong


class Broken(nn.Module):
    """Cross-entropy that one step in training makes worthless."""

    def __init__(self, at: int, how):
        super().__init__()
        self.at, self.how, self.steps = at, how, 0

    def forward(self, logits, labels):
        loss = F.cross_entropy(logits, labels)
        self.steps += torch.is_grad_enabled()
        return self.how(loss) if self.steps == self.at else loss


@pytest.mark.parametrize(
    "how",
    [
        lambda loss: loss * torch.nan,
        lambda loss: loss * torch.inf,
        lambda loss: loss + (loss * 0).sqrt(),  # a number, but not its gradient
    ],
)
def test_broken_training_stops_with_epoch_rate_and_advice(data, monkeypatch, how):
    monkeypatch.setattr(utils, "make_criterion", lambda *_: Broken(8, how))
    epoch = 1 + 7 // len(data.loader("train", 16))
    message = f"Epoch {epoch}: the loss became nan|inf .* rate near .* lower lr"
    with pytest.raises(utils.TrainingStopped, match=message) as stop:
        train(data.course, data, save_every=0.0)
    kept = Path(str(stop.value).split("kept in ")[1].rstrip("."))
    state = torch.load(kept, weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert state["progress"][0] == epoch - 1


def test_full_gpu_memory_is_one_sentence(data, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(utils.OptimizedCNN, "forward", full)
    with pytest.raises(utils.CourseError, match="batches of 16 images: lower batch_"):
        train(data.course, data)


def test_nothing_outside_notices_that_a_training_draws(data):
    states = []
    for _ in range(2):  # trains, then loads
        torch.manual_seed(7)
        train(data.course, data)
        states.append(torch.rand(3).tolist())
    assert states[0] == states[1]


def test_a_look_at_one_batch_is_no_epoch(data):
    loader = data.loader("train", 16, augment=utils.AUGMENT["pneumonia"], shuffle=True)
    first, again = next(iter(loader))[0], next(iter(loader))[0]
    assert torch.equal(first, again)
    whole = [labels for _, labels in loader]
    assert len(torch.cat(whole)) == len(loader.dataset) and loader.epoch == 1
    assert not torch.equal(next(iter(loader))[0], first)


def test_gradients_are_clipped():
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 32, 32), torch.randint(0, 2, (8,))
    moves = {}
    for clip in (None, 1e-3):
        model = utils.BaselineCNN(width=4)
        before = nn.utils.parameters_to_vector(model.parameters()).clone()
        optimizer, scaler = (
            torch.optim.SGD(model.parameters(), 1.0),
            utils.make_scaler(torch.device("cpu")),
        )
        utils.train_step(
            model, images, labels, nn.CrossEntropyLoss(), optimizer, scaler, clip
        )
        moves[clip] = (
            (nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()
        )
    assert moves[1e-3] == pytest.approx(1e-3, rel=1e-2) and moves[None] > 1e-2


# --- precision


@pytest.mark.parametrize(
    "capability, dtype",
    [
        ((9, 0), torch.bfloat16),
        ((8, 0), torch.bfloat16),
        ((7, 5), torch.float16),
        ((7, 0), torch.float16),
        ((6, 1), None),
    ],
)
def test_precision_follows_the_compute_capability(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert utils.amp_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize(
    "flags, dtype",
    [
        ("fpu avx512_bf16 sse", torch.bfloat16),
        ("amx_bf16", torch.bfloat16),
        ("avx2 avx512f", None),
    ],
)
def test_precision_follows_the_flags_of_the_processor(monkeypatch, flags, dtype):
    monkeypatch.setattr(machine, "cpu_flags", machine.cpu_flags.__wrapped__)
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags : {flags}")
    assert utils.amp_dtype(torch.device("cpu")) == dtype


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_every_precision_learns(data, monkeypatch, dtype):
    monkeypatch.setattr(utils, "amp_dtype", lambda device: dtype)
    assert utils.make_scaler(torch.device("cpu")).is_enabled() == (
        dtype == torch.float16
    )
    run = train(data.course, data, replace(RECIPE, epochs=10, augment=False, lr=5e-3))
    losses = run.history["train_loss"]
    assert np.isfinite(losses).all() and losses.iloc[-1] < losses.iloc[0]


def test_overflow_in_half_precision_skips_one_step(monkeypatch):
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.float16)
    torch.manual_seed(0)
    model = utils.BaselineCNN(width=4)
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), 0.1),
        utils.make_scaler(torch.device("cpu")),
    )
    images, labels = torch.rand(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64)
    before = [p.clone() for p in model.parameters()]
    next(model.parameters()).register_hook(
        lambda grad: grad * torch.inf if scaler.get_scale() > 40_000 else grad
    )
    loss, _ = utils.train_step(
        model, images, labels, nn.CrossEntropyLoss(), optimizer, scaler
    )
    assert np.isfinite(loss) and all(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    )
    utils.train_step(model, images, labels, nn.CrossEntropyLoss(), optimizer, scaler)
    assert scaler.get_scale() < 40_000
    assert not all(
        torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    )


def test_schedule_counts_a_skipped_step_and_nobody_is_warned(monkeypatch):
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.float16)
    model, recipe = utils.BaselineCNN(width=4), Recipe(schedule="cosine")
    before = [p.clone() for p in model.parameters()]
    next(model.parameters()).register_hook(lambda grad: grad * torch.inf)
    optimizer, scheduler = utils.make_optimizer(model, recipe, 10)
    batch = torch.rand(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        utils.train_epoch(
            *(model, [batch], nn.CrossEntropyLoss(), optimizer, "cpu"),
            scheduler=scheduler,
        )
    for weight, same in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, same)
    assert scheduler.get_last_lr()[0] < recipe.lr


def test_float16_whose_gradients_stay_infinite_stops(monkeypatch):
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.float16)
    model = utils.BaselineCNN(width=4)
    next(model.parameters()).register_hook(lambda grad: grad * torch.inf)
    optimizer, _ = utils.make_optimizer(model, Recipe(), 10)
    batch = torch.rand(4, 1, 32, 32), torch.zeros(4, dtype=torch.int64)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-9)
    with pytest.raises(utils.TrainingStopped, match=r"infinite in float16.*lower lr"):
        utils.train_epoch(
            *(model, [batch], nn.CrossEntropyLoss(), optimizer, "cpu", scaler)
        )


@pytest.mark.parametrize("size, pool, batch", [(64, "val", 256), (448, "val", 64)])
def test_large_images_are_judged_fewer_at_a_time(data, size, pool, batch):
    large = replace(data, pixels=np.zeros((len(data.labels), 1, size, size), np.uint8))
    rows = np.repeat(large.where("train")[:1], 300)
    large.where = lambda pool: rows
    assert large.loader(pool, 256).batch_size == batch


# --- one call, three things


def test_training_that_is_made_anew_says_why(data, capsys):
    train(data.course, data, progress=True)
    assert "trains anew" not in capsys.readouterr().out
    train(data.course, data, replace(RECIPE, lr=RECIPE.lr / 2), progress=True)
    assert (
        "probe: trains anew, as code, data, recipe or seed differ from 1 finished"
        in capsys.readouterr().out
    )


def test_finished_training_loads_and_says_so(data, capsys):
    first = train(data.course, data)
    capsys.readouterr()
    again = train(data.course, data, progress=True)
    assert again.loaded and not first.loaded and same_weights(first.model, again.model)
    assert "probe: loaded, trained" in capsys.readouterr().out
    assert again.history.equals(first.history) and len(first.history) == 3


def test_another_recipe_or_other_first_weights_are_another_training(data):
    first, other = (
        train(data.course, data),
        train(data.course, data, replace(RECIPE, lr=1e-3)),
    )
    assert first.path != other.path and not other.loaded
    fine_tuned = train(data.course, data, model=first.model)
    assert fine_tuned.path != first.path and not fine_tuned.loaded


def test_damaged_finished_file_is_set_aside_and_trained_again(data, capsys):
    first = train(data.course, data)
    finished = first.path / "finished.pt"
    finished.write_bytes(finished.read_bytes()[:1000])
    again = train(data.course, data)
    assert "finished.pt was damaged and is set aside" in capsys.readouterr().out
    assert not again.loaded and same_weights(first.model, again.model)


@pytest.mark.parametrize(
    "damage",
    [
        {"weights": {}},
        {"history": [None]},
        {"date": None},
        {"hardware": 2},
        {"recipe": {"epochs": 1}},
    ],
)
def test_finished_file_of_something_else_is_set_aside(data, damage, capsys):
    first = train(data.course, data)
    finished = first.path / "finished.pt"
    state = torch.load(finished, weights_only=True)
    torch.save(state | damage, finished)
    again = train(data.course, data)
    assert "finished.pt was damaged and is set aside" in capsys.readouterr().out
    assert not again.loaded and same_weights(first.model, again.model)


def test_training_goes_on_under_another_precision(data, monkeypatch, capsys):
    """Begun without loss scaling, resumed where it is needed: a student who switches
    the GPU on.
    """

    def stop(epoch, row):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(utils, "amp_dtype", lambda device: None)
        with pytest.raises(Interrupted):
            train(data.course, data, on_epoch=stop)
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.float16)
    assert len(train(data.course, data).history) == 3
    assert "resumed in epoch 2" in capsys.readouterr().out


def test_same_training_twice_gives_the_same_weights(data, open_course, tmp_path):
    first = train(data.course, data)
    course = open_course(home=tmp_path / "other")
    utils.build_index(course)
    assert same_weights(first.model, train(course, utils.load_data(course)).model)


@pytest.mark.course
@pytest.mark.parametrize("stop_at", [1, 4, 5, 11, 14])
def test_interrupted_training_ends_with_the_same_weights(
    data, open_course, tmp_path, monkeypatch, stop_at, capsys
):
    whole = train(data.course, data)
    course = open_course(home=tmp_path / "other")
    utils.build_index(course)
    other = utils.load_data(course)
    average, steps = utils.RunningAverage, []
    update = average.update

    def interrupt(self, model):
        steps.append(1)
        if len(steps) == stop_at + 1:
            raise Interrupted
        update(self, model)

    with monkeypatch.context() as patch:
        patch.setattr(average, "update", interrupt)
        with pytest.raises(Interrupted):
            train(course, other, save_every=0.0)
        patch.setattr(average, "update", update)
        torch.rand(3)  # whatever else the notebook drew in between
        resumed = train(course, other, save_every=0.0)
    assert "resumed " in capsys.readouterr().out
    assert same_weights(whole.model, resumed.model)
    columns = [name for name in whole.history if name != "seconds"]
    assert resumed.history[columns].equals(whole.history[columns])


def test_damaged_running_file_is_set_aside(data, monkeypatch, capsys):
    def stop(epoch, row):
        raise Interrupted

    with pytest.raises(Interrupted):
        train(data.course, data, on_epoch=stop)
    running = next(data.course.runs.glob("probe-*/running.pt"))
    running.write_bytes(running.read_bytes()[:1000])
    train(data.course, data)
    assert (
        "was damaged and is set aside: what it held is trained again"
        in capsys.readouterr().out
    )
    assert running.with_suffix(".damaged").exists()


def test_best_weights_are_those_of_the_lowest_validation_loss(data):
    run = train(
        data.course,
        data,
        replace(RECIPE, epochs=6, lr=0.05, average=0.0, schedule="constant"),
    )
    criterion = utils.make_criterion(data.loader("train", 16), 2, RECIPE)
    loss, _ = utils.validate(run.model, data.loader("val", 256), criterion, "cpu")
    assert loss == pytest.approx(run.history["val_loss"].min(), rel=1e-4)


def test_early_stopping(data):
    frozen = replace(
        RECIPE,
        epochs=12,
        lr=1e-12,
        average=0.0,
        patience=2,
        schedule="constant",
        weight_decay=0.0,
    )
    run = train(data.course, data, frozen, model=utils.BaselineCNN())
    assert len(run.history) < 12
    losses = run.history["val_loss"]
    assert len(losses) - 1 - losses.idxmin() == 2


def test_tensorboard_holds_scalars_images_and_hyperparameters(data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(data.course, data, tracker="tensorboard")
    folder = next((data.course.runs / "tensorboard").glob("probe-*"))
    events = EventAccumulator(str(folder)).Reload()
    stored = [scalar.value for scalar in events.Scalars("val_loss")]
    assert stored == pytest.approx(run.history["val_loss"].tolist(), rel=1e-5)
    assert "training batch" in events.Tags()["images"]
    assert any("hparams" in tag for tag in events.summary_metadata)


# --- checkpoints


def test_checkpoint_brings_back_model_optimizer_and_state(tmp_path):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 1, 32, 32)).sum().backward()
    optimizer.step()
    path = utils.save_checkpoint(
        tmp_path / "m.pth", model, optimizer, classes=["A", "B"], threshold=0.3
    )
    again, state = utils.load_model(path, ["A", "B"])
    assert same_weights(model, again) and not again.training
    assert state["threshold"] == 0.3 and state["classes"] == ["A", "B"]
    fresh = torch.optim.AdamW(network().parameters())
    utils.load_checkpoint(path, network(), fresh)
    assert fresh.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize(
    "value, kind",
    [
        (np.float64(0.3), "numpy"),
        (np.arange(3), "numpy"),
        (Path("x"), "pathlib"),
        (object(), "one of these values|object"),
    ],
)
def test_checkpoint_refuses_what_it_could_not_read(tmp_path, value, kind):
    path = utils.save_checkpoint(tmp_path / "m.pth", network(), threshold=0.3)
    with pytest.raises(utils.CourseError, match=f"cannot hold .*({kind}).*tolist"):
        utils.save_checkpoint(path, network(), threshold=value)
    assert utils.load_checkpoint(path)["threshold"] == 0.3


def test_missing_checkpoint_names_the_notebook(tmp_path):
    with pytest.raises(
        utils.CourseError,
        match=r"best_model\.pth is missing: run notebooks/theme3_optimization",
    ):
        utils.load_checkpoint(tmp_path / "best_model.pth")


@pytest.mark.parametrize("content", ["half", "text", "other"])
def test_damaged_checkpoint(tmp_path, content):
    path = utils.save_checkpoint(tmp_path / "m.pth", network())
    if content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content == "text":
        path.write_text("no checkpoint")
    else:
        torch.save({"weights": {}}, path)
    with pytest.raises(
        utils.CourseError, match="is damaged or no checkpoint of this course"
    ):
        utils.load_model(path)


def test_checkpoint_of_another_network_or_class_list(tmp_path):
    path = utils.save_checkpoint(
        tmp_path / "m.pth", network(), classes=["NORMAL", "PNEUMONIA"]
    )
    untouched = utils.BaselineCNN()
    before = {k: v.clone() for k, v in untouched.state_dict().items()}
    with pytest.raises(
        utils.CourseError,
        match="holds OptimizedCNN.*not BaselineCNN.*build that network",
    ):
        utils.load_checkpoint(path, untouched)
    with pytest.raises(utils.CourseError, match="holds OptimizedCNN"):
        # the same class, other widths
        utils.load_checkpoint(path, utils.OptimizedCNN(1, 2))
    with pytest.raises(utils.CourseError, match="knows the classes.*asked for"):
        utils.load_model(path, ["NO_PANEL", "PANEL"])
    assert all(torch.equal(before[k], v) for k, v in untouched.state_dict().items())


def test_checkpoint_of_a_students_own_network(tmp_path):
    class MyNet(utils.BaselineCNN):
        pass

    path = utils.save_checkpoint(tmp_path / "m.pth", MyNet(1, 2))
    with pytest.raises(
        utils.CourseError,
        match="a network MyNet of your own, which this kernel does not know: "
        "run utils.register_model",
    ):
        utils.load_model(path)
    changed = utils.BaselineCNN(1, 2)
    changed.classifier = nn.Linear(64, 5)
    utils.save_checkpoint(path, utils.BaselineCNN(1, 2))
    with pytest.raises(
        utils.CourseError, match="other shapes or names than this BaselineCNN"
    ):
        utils.load_checkpoint(path, changed)


# --- search


def test_search_prunes_what_lags_behind_and_survives_an_explosion(data, monkeypatch):
    def fake(course, name, model, data, recipe, on_epoch=None, **options):
        number = len(seen)
        seen.append(number)
        if number == 2:
            raise utils.TrainingStopped("the loss became nan")
        losses = [0.5 + number, 0.4 + number]
        for epoch, loss in enumerate(losses, 1):
            on_epoch(epoch, {"val_loss": loss})
        return SimpleNamespace(history=pd.DataFrame({"val_loss": losses}), loaded=False)

    seen = []
    monkeypatch.setattr(utils, "fit", fake)
    study = utils.search(data.course, data, "search", replace(RECIPE, epochs=2), 4)
    assert [t.state.name for t in study.trials] == [
        "COMPLETE",
        "COMPLETE",
        "PRUNED",
        "PRUNED",
    ]
    assert (
        len(study.trials[3].intermediate_values) == 1 and study.best_trial.number == 0
    )


def test_search_starts_with_our_recipe_prunes_and_goes_on(data):
    recipe = replace(RECIPE, epochs=2, augment=False)
    first = [
        trial.params
        for trial in utils.search(data.course, data, "search", recipe, 3).trials
    ]
    assert (first[0]["lr"], first[0]["width"], first[0]["depth"]) == (
        pytest.approx(recipe.lr),
        32,
        2,
    )
    more = utils.search(data.course, data, "search", recipe, 5)
    params = [trial.params for trial in more.trials]
    assert params[:3] == first and len({str(p) for p in params}) == 5
    assert more.best_value == min(
        t.value for t in more.trials if t.state.name == "COMPLETE"
    )
    finished = [t for t in more.trials if t.state.name == "COMPLETE"]
    model, chosen = utils.build_trial(data.course, finished[0].params, recipe)
    run = utils.fit(
        data.course, "search-trial", model, data, chosen, tracker="none", progress=False
    )
    assert run.loaded and run.history["val_loss"].min() == pytest.approx(
        finished[0].value
    )


def test_search_in_which_nothing_finishes(data, monkeypatch):
    def explode(*arguments, **options):
        raise utils.TrainingStopped("the loss became nan")

    monkeypatch.setattr(utils, "fit", explode)
    with pytest.raises(
        utils.CourseError, match="No trial of the search finished.*lower lr"
    ):
        utils.search(data.course, data, "search", RECIPE, 2)


@pytest.mark.parametrize(
    "dataset, size, last",
    [
        ("pneumonia", 1024, 4),
        ("pneumonia", 32, 4),
        ("pneumonia", 64, 4),
        ("pneumonia", 96, 6),
        ("pneumonia3", 224, 7),
        ("solar", 64, 4),
        ("solar", 96, 6),
        ("solar", 224, 7),
    ],
)
def test_network_has_the_stages_that_its_images_need(open_course, dataset, size, last):
    course = open_course(dataset, image_size=size)
    model = utils.optimized_network(course)
    maps = model.eval().features(torch.zeros(2, course.channels, size, size))
    assert maps.shape[-1] == last
    assert same_weights(model, utils.optimized_network(course))
    assert utils.optimized_network(course, width=16).config["widths"][0] == 16


@pytest.mark.course
def test_network_learns_what_can_be_learned(data):
    """The training images themselves, without noise: the loop must reach them all, and
    evaluation agree with it.
    """
    recipe, model, loader = (
        Recipe(lr=3e-3, schedule="cosine"),
        network(),
        data.loader("train", 16, shuffle=True),
    )
    criterion = utils.make_criterion(loader, 2, recipe)
    optimizer, scheduler = utils.make_optimizer(model, recipe, 60 * len(loader))
    for _ in range(60):
        _, accuracy = utils.train_epoch(
            model, loader, criterion, optimizer, "cpu", scheduler=scheduler
        )
    logits, labels = utils.predict(model, data.loader("train", 64))
    assert accuracy > 0.97 and (logits.argmax(1) == labels).mean() > 0.97
