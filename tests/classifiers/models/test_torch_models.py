"""The torch models: they learn, depend on nothing but their rows and seed, and keep what was best."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from classifiers.models.torch import fitting as fitting_module
from classifiers.models.torch.inputs import batches, split_validation
from classifiers.models.torch.models import MODELS, Mlp, from_state
from classifiers.models.torch.networks import lstm_runs_in_bf16
from classifiers.models.torch.parameters import CHECKS
from extractor.errors import InputError, SettingsError

# Probabilities in fp32: a few hundred products summed in another order, each within 6e-8 of itself.
PROBABILITY = 2e-6

NUM_ROWS, DIM, NUM_LAYERS, INFORMATIVE = 120, 8, 5, 3
CLASSES = np.array(["angry", "calm", "sad"])

# Small and quick; every one of them can learn the toy problem to the last row.
QUICK: dict[str, dict[str, Any]] = {
    "mlp": {"max_epochs": 60},
    "layer-weights": {"max_epochs": 80, "learning_rate": 1e-2, "layer_learning_rate": 3e-2},
    "superb": {"max_steps": 400, "learning_rate": 1e-2},
    "bilstm": {"hidden": 12, "dense": 8, "max_epochs": 15, "learning_rate": 1e-2},
    "attentive-stats": {"hidden": 24, "attention": 8, "max_epochs": 25, "learning_rate": 1e-2},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy(name: str, seed: int = 0, num_rows: int = NUM_ROWS) -> tuple[Any, np.ndarray, np.ndarray]:
    """Rows as the model reads them, labels and speakers. Class c has a mean of 4 in feature c.

    The noise has a deviation of 1, 3 where it is frame by frame: classes are 5.7 deviations apart.
    """
    random = np.random.default_rng(seed)
    codes = random.integers(0, len(CLASSES), num_rows)
    mean = np.zeros((num_rows, DIM), np.float32)
    mean[np.arange(num_rows), codes] = 4
    speakers = np.array([f"s{i}" for i in random.integers(0, 10, num_rows)])
    rows: Any = mean + random.normal(size=mean.shape).astype(np.float32)
    lengths = random.integers(1, 25, num_rows)
    if name in ("layer-weights", "superb"):
        layers = random.normal(size=(num_rows, NUM_LAYERS, DIM)).astype(np.float32)
        layers[:, INFORMATIVE], rows = rows, layers
    if name not in ("mlp", "layer-weights"):
        deviation = 1 if name == "superb" else 3
        noise = [deviation * random.normal(size=(n, *rows.shape[1:])).astype(np.float32) for n in lengths]
        rows = [row + each - each.mean(axis=0) for row, each in zip(rows, noise, strict=True)]
    return rows, CLASSES[codes], speakers


def quick(name: str, **changes: Any) -> Any:
    return MODELS[name](**{"device": "cpu", **QUICK[name], **changes})


def remade(model: Any, **params: Any) -> Any:
    """The fitted model from its state, with other parameters."""
    plain, tensors = model.state()
    return from_state(plain | {"params": plain["params"] | params}, tensors)


def like(x: Any, rows: list[np.ndarray]) -> Any:
    """Rows as ``x`` has them: a list of frames, or an array."""
    return rows if isinstance(x, list) else np.stack(rows)


def nothing_to_learn() -> tuple[np.ndarray, np.ndarray]:
    return toy("mlp")[0], CLASSES[np.random.default_rng(3).integers(0, 3, NUM_ROWS)]


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_learns_what_can_be_told_apart(name: str) -> None:
    x, y, speakers = toy(name, num_rows=2 * NUM_ROWS)
    new_x, new_y, _ = toy(name, seed=1)
    model = quick(name).fit(x, y, groups=speakers)
    # Chance is 0.33, the most that is possible 0.995: one row in 200 lies nearer to another class's
    # mean (5.7 / 2 deviations). 216 rows and a dozen epochs leave some of that way.
    assert (model.predict(new_x) == new_y).mean() > 0.9
    probabilities = model.predict_proba(new_x)
    assert probabilities.dtype == np.float32 and probabilities.shape == (NUM_ROWS, 3)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)  # three roundings to float32
    assert model.classes_.tolist() == CLASSES.tolist()


@pytest.mark.parametrize(
    ("name", "changes"), [("superb", {}), ("layer-weights", {}), ("layer-weights", {"head": "mlp"})]
)
def test_layer_weights_find_the_layer_that_tells(name: str, changes: dict[str, Any]) -> None:
    x, y, speakers = toy(name)
    weights = quick(name, **changes).fit(x, y, groups=speakers).layer_weights_
    assert weights.shape == (NUM_LAYERS,) and weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights.argmax() == INFORMATIVE
    assert weights[INFORMATIVE] > 2 / NUM_LAYERS  # twice its share at the start


@every_model
def test_a_prediction_does_not_depend_on_its_batch_mates(name: str) -> None:
    x, y, _ = toy(name)
    model = quick(name, max_epochs=2).fit(x, y)
    together = model.predict_proba(x)
    alone = np.concatenate([model.predict_proba(x[i : i + 1]) for i in range(20)])
    backwards = model.predict_proba(x[::-1])[::-1]
    assert abs(together[:20] - alone).max() < PROBABILITY
    assert abs(together - backwards).max() < PROBABILITY


@every_model
def test_nan_beyond_the_end_of_a_recording_changes_nothing(name: str, poisoned: None) -> None:
    x, y, speakers = toy(name)
    model = quick(name, max_epochs=2).fit(x, y, groups=speakers)

    def cut_from_nan(each: np.ndarray) -> np.ndarray:
        """A view, behind which NaN follows in memory."""
        return np.concatenate([each, np.full_like(each, np.nan)])[: len(each)]

    cut = [cut_from_nan(each) for each in x] if isinstance(x, list) else cut_from_nan(x)
    again = quick(name, max_epochs=2).fit(cut, y, groups=speakers)
    assert again.history_ == model.history_
    assert np.array_equal(again.predict_proba(cut), model.predict_proba(x))


@every_model
def test_refitting_a_clone_gives_the_same_bits(name: str) -> None:
    x, y, speakers = toy(name)
    model = quick(name, max_epochs=3, random_state=7).fit(x, y, groups=speakers)
    torch.manual_seed(99)  # what the caller does with torch's random state is nothing to it,
    before = torch.get_rng_state()
    again = clone(model).fit(x, y, groups=speakers)
    assert torch.equal(torch.get_rng_state(), before)  # nor does it touch it
    assert again.get_params() == model.get_params()
    assert again.history_ == model.history_
    assert np.array_equal(again.predict_proba(x), model.predict_proba(x))
    other = clone(model).set_params(random_state=8).fit(x, y, groups=speakers)
    assert not np.array_equal(other.predict_proba(x), model.predict_proba(x))


@every_model
def test_state_round_trip_is_exact(name: str) -> None:
    x, y, _ = toy(name)
    model = quick(name, max_epochs=2, learning_rate=np.float64(1e-3)).fit(x, y)
    plain, tensors = model.state()
    plain = json.loads(json.dumps(plain))
    again = from_state(plain, tensors)
    assert type(again) is type(model) and again.get_params() == model.get_params()
    assert np.array_equal(again.predict_proba(x), model.predict_proba(x))
    assert again.history_ == model.history_ and again.validation_ == model.validation_
    assert again.predict(x).dtype == model.predict(x).dtype
    with pytest.raises(InputError, match=name):
        from_state(plain, dict(list(tensors.items())[1:]))
    with pytest.raises(InputError, match="unknown model"):
        from_state(plain | {"model": "mlpp"}, tensors)


@pytest.mark.parametrize("monitor", ["val_loss", "val_ua"])
def test_early_stopping_restores_the_best_epoch(monitor: str) -> None:
    x, y = nothing_to_learn()  # it gets worse
    model = Mlp(patience=4, max_epochs=200, learning_rate=0.02, monitor=monitor, validation=0.3).fit(x, y)
    assert model.stopped_ == "patience"
    # By recall, and where that is the same, by loss.
    values = [(-row["val_ua"] if monitor == "val_ua" else 0, row["val_loss"]) for row in model.history_]
    best = model.history_[model.best_epoch_ - 1]
    assert values.index(min(values)) == model.best_epoch_ - 1
    assert len(values) == model.best_epoch_ + 4
    codes = np.searchsorted(CLASSES, y)
    held_out = split_validation(codes, None, 0.3, 0).validation
    probabilities = model.predict_proba(x[held_out])
    loss = -np.log(probabilities[np.arange(len(held_out)), codes[held_out]]).mean()
    assert loss == pytest.approx(best["val_loss"], rel=1e-5)  # float32 sums in another order
    right = probabilities.argmax(axis=1) == codes[held_out]
    recalls = [right[codes[held_out] == code].mean() for code in range(3)]
    assert np.mean(recalls) == pytest.approx(best["val_ua"], rel=1e-9)


def test_history_tells_the_loss_and_the_learning_rate_falls_on_a_plateau() -> None:
    x, y = nothing_to_learn()
    told: list[dict[str, float]] = []
    model = Mlp(max_epochs=12, patience=None, plateau_patience=1, plateau_factor=0.5, learning_rate=0.02)
    model.fit(x, y, progress=told.append)
    assert [row["epoch"] for row in model.history_] == list(range(1, 13))
    assert set(model.history_[0]) == {"epoch", "train_loss", "val_loss", "val_ua", "lr"}
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in told] == model.history_
    rates = [row["lr"] for row in model.history_]
    assert rates[0] == 0.02 and rates[-1] < 0.02
    assert all(b in (a, a / 2) for a, b in pairwise(rates))


def test_dropout_is_at_work_in_every_epoch() -> None:
    x, y, _ = toy("mlp")
    model = Mlp(learning_rate=1e-12, dropout=0.8, max_epochs=6, batch_size=NUM_ROWS).fit(x, y)
    losses = [row["train_loss"] for row in model.history_]
    # The weights stand still: without dropout all were the same to rounding, 1e-7.
    assert min(abs(a - b) for a, b in pairwise(losses)) > 1e-5


def test_the_order_of_rows_is_another_with_each_epoch_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = toy("mlp")
    seen: list[list[int]] = []

    def spy(*arguments: Any) -> Iterator[np.ndarray]:
        drawn = list(batches(*arguments))
        seen.append(np.concatenate(drawn).tolist())
        return iter(drawn)

    monkeypatch.setattr(fitting_module, "batches", spy)
    for seed in (0, 1):
        Mlp(max_epochs=2, random_state=seed, validation=0.0).fit(x, y)
    assert all(sorted(order) == list(range(NUM_ROWS)) for order in seen)
    assert len({tuple(order) for order in seen}) == 4


def test_training_ends_where_it_was_told_to() -> None:
    x, y, _ = toy("mlp")
    steps = Mlp(max_steps=7, max_epochs=None, batch_size=20, validation=0.0).fit(x, y)
    assert (steps.num_steps_, steps.stopped_, len(steps.history_)) == (7, "max_steps", 2)
    assert set(steps.history_[0]) == {"epoch", "train_loss", "lr"}  # nothing is made up for validation
    seconds = Mlp(max_seconds=0.2, max_epochs=None, patience=None).fit(x, y)
    assert seconds.stopped_ == "max_seconds"
    assert Mlp(max_epochs=3, patience=None).fit(x, y).stopped_ == "max_epochs"


def test_a_batch_in_several_passes_is_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, speakers = toy("bilstm")
    model = quick("bilstm", max_epochs=1, dropout=0.0, class_weight="balanced", clip=None)
    whole = clone(model).fit(x, y, groups=speakers)
    monkeypatch.setattr(fitting_module, "MAX_FRAMES", 40)
    parts = clone(model).fit(x, y, groups=speakers)
    # Adam divides by the gradient's size: a rounding of a gradient near zero moves a weight visibly.
    # Probabilities after the four updates of an epoch agree to 1e-3 of what one update moves them.
    start = clone(model).set_params(learning_rate=1e-12).fit(x, y, groups=speakers)
    moved = abs(whole.predict_proba(x) - start.predict_proba(x)).max()
    assert abs(whole.predict_proba(x) - parts.predict_proba(x)).max() < 1e-3 * moved


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_bilstm_is_torchs_on_each_recording_alone(pooling: str) -> None:
    x, y, _ = toy("bilstm")
    model = quick("bilstm", max_epochs=1, pooling=pooling).fit(x, y)
    body = model.network_.body.eval()
    theirs = torch.nn.LSTM(DIM, 12, 2, bidirectional=True)
    for number, layer in enumerate(body.layers):
        for suffix, direction in (("", layer.forwards), ("_reverse", layer.backwards)):
            for name, weight in direction.named_parameters():  # weight_ih_l0 to weight_ih_l1_reverse
                getattr(theirs, name.replace("l0", f"l{number}") + suffix).data.copy_(weight.data)
    got = model.predict_proba(x[:10])
    for frames, of_batch in zip(x[:10], got, strict=True):
        with torch.no_grad():
            one = (torch.from_numpy(frames) - model.network_.mean) * model.network_.scale
            states, (last, _) = theirs(one[:, None])  # [T, 1, 2 H]
            vector = states[:, 0].mean(dim=0) if pooling == "mean" else last[-2:, 0].flatten()
            alone = body.head(vector).softmax(dim=0)
        assert abs(of_batch - alone.numpy()).max() < PROBABILITY


def test_attentive_statistics_are_the_papers() -> None:
    """Okabe et al. 2018, equations 4 to 8, written out in float64."""
    x, y, _ = toy("attentive-stats")
    model = quick("attentive-stats", max_epochs=3).fit(x, y)
    body = model.network_.body.double().eval()
    frames = torch.from_numpy(x[0]).double()
    with torch.no_grad():
        hidden = body.frame((frames - model.network_.mean) * model.network_.scale)
        scores = torch.stack([body.score(h) for h in hidden])[:, 0]
        weights = scores.exp() / scores.exp().sum()
        mean = sum(w * h for w, h in zip(weights, hidden, strict=True))
        square = sum(w * h * h for w, h in zip(weights, hidden, strict=True))
        deviation = (square - mean * mean).clamp(min=1e-8).sqrt()
        expected = body.output(torch.cat([mean, deviation])).softmax(dim=0)
    body.float()
    assert abs(model.predict_proba(x[:1])[0] - expected.numpy()).max() < PROBABILITY
    assert weights.std() > 0  # else it were plain statistics


def test_superb_on_means_is_superb_on_frames() -> None:
    """The head is affine before its mean over time, so the mean may be taken first."""
    x, y, speakers = toy("superb")
    on_frames = quick("superb").fit(x, y, groups=speakers)
    means = np.stack([each.mean(axis=0, dtype=np.float64) for each in x]).astype(np.float32)
    on_means = quick("superb").fit(means, y, groups=speakers)
    assert np.array_equal(on_frames.predict_proba(x), on_means.predict_proba(means))
    body = on_frames.network_.body
    with torch.no_grad():
        for each, got in zip(x[:10], on_frames.predict_proba(x[:10]), strict=True):
            summed = torch.einsum("tld,l->td", torch.from_numpy(each), body.layer_sum.weights())
            expected = body.output(body.projector(summed).mean(dim=0)).softmax(dim=0)
            assert abs(got - expected.numpy()).max() < PROBABILITY


def test_bf16_gives_nearly_what_fp32_gives() -> None:
    if not lstm_runs_in_bf16("cpu"):
        pytest.skip("torch has no LSTM in bf16 on this CPU; the next test is about that")
    x, y, _ = toy("bilstm")
    full = quick("bilstm").fit(x, y)
    difference = abs(remade(full, dtype="bf16").predict_proba(x) - full.predict_proba(x)).max()
    # bf16 keeps 8 bits: logits of up to 10 are off by a few hundredths, probabilities by less.
    assert 0 < difference < 0.05
    assert (quick("bilstm", dtype="bf16").fit(x, y).predict(x) == y).mean() > 0.9


def test_where_the_lstm_cannot_run_in_bf16_it_is_said_and_fp32_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifiers.models.torch.models.lstm_runs_in_bf16", lambda device: False)
    x, y, _ = toy("bilstm")
    with pytest.raises(SettingsError, match="bilstm: dtype=bf16 cannot run on this cpu"):
        quick("bilstm", dtype="bf16", max_epochs=1).fit(x, y)
    model = quick("bilstm", dtype="auto", max_epochs=1).fit(x, y)  # auto: fp32 here
    with pytest.warns(UserWarning, match="was trained in bf16, which cannot run here; it predicts in fp32"):
        elsewhere = remade(model, dtype="bf16")
    assert np.array_equal(elsewhere.predict_proba(x), remade(model, dtype="fp32").predict_proba(x))


def test_whether_an_lstm_runs_in_bf16_is_asked_of_torch() -> None:
    """A CPU without AVX-512, as oneDNN can be told to see it, in a process of its own."""
    ask = "from classifiers.models.torch.networks import lstm_runs_in_bf16 as f; print(f('cpu'))"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_standardisation_is_of_the_rows_learned_from() -> None:
    x, y, speakers = toy("mlp")
    split = split_validation(np.searchsorted(CLASSES, y), speakers, 0.1, 0)
    model = quick("mlp", max_epochs=1).fit(x, y, groups=speakers)
    learned = x[split.train].astype(np.float64)
    assert np.allclose(model.network_.mean, learned.mean(axis=0), rtol=1e-6, atol=1e-6)
    assert np.allclose(1 / model.network_.scale, learned.std(axis=0), rtol=1e-6)
    scale = np.float32(2.0) ** np.arange(-12, 12, 3, dtype=np.float32)  # powers of two: no rounding
    scaled = quick("mlp", max_epochs=1).fit(x * scale, y, groups=speakers)
    assert np.array_equal(model.predict(x), scaled.predict(x * scale))  # whatever the units
    as_it_is = quick("mlp", max_epochs=1, standardise=False).fit(x, y)
    assert (as_it_is.network_.scale == 1).all() and (as_it_is.network_.mean == 0).all()


def test_a_class_that_no_validation_row_has_does_no_harm() -> None:
    x, y, _ = toy("mlp")
    speakers = np.where(y == "sad", "a", np.where(np.arange(NUM_ROWS) % 2, "b", "c"))
    model = quick("mlp", max_epochs=4).fit(x, y, groups=speakers)
    assert model.validation_.startswith("1 of 3 groups: ") and model.validation_[-1] in "bc"
    assert all(0 <= row["val_ua"] <= 1 and np.isfinite(row["val_loss"]) for row in model.history_)


def test_balanced_weights_make_classes_count_alike() -> None:
    x, y, _ = toy("mlp", num_rows=400)
    rare = np.flatnonzero(y == "sad")[:8]
    keep = np.concatenate([np.flatnonzero(y != "sad"), rare])
    noise = np.random.default_rng(5).normal(size=(len(keep), DIM)).astype(np.float32)
    x, y = (x * 0.3)[keep] + noise, y[keep]
    recall = {}
    for class_weight in (None, "balanced"):
        # One pass of 8 epochs each: both see the same batches.
        model = Mlp(class_weight=class_weight, max_epochs=8, validation=0.0).fit(x, y)
        recall[class_weight] = (model.predict(x[y == "sad"]) == "sad").mean()
    assert recall["balanced"] > recall[None]


def test_losses_are_weighted_means() -> None:
    """The loss that is told is torch's own weighted cross-entropy, whatever the passes."""
    x, y, _ = toy("mlp")
    y = np.where(np.arange(NUM_ROWS) < 90, CLASSES[0], y)
    codes = np.searchsorted(CLASSES, y)
    still = {"learning_rate": 1e-12, "max_epochs": 1, "batch_size": NUM_ROWS, "validation": 0}
    model = Mlp(class_weight="balanced", dropout=0.0, **still).fit(x, y)  # type: ignore[arg-type]
    weights = torch.tensor([NUM_ROWS / (3 * (codes == code).sum()) for code in range(3)], dtype=torch.float32)
    logits = torch.from_numpy(np.log(model.predict_proba(x)))
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(codes), weights).item()
    assert model.history_[0]["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_scikit_learn_can_cross_validate_it() -> None:
    x, y, _ = toy("mlp")
    assert cross_val_score(quick("mlp"), x, y, cv=3).min() > 0.85


@every_model
def test_bad_parameters_are_refused_by_name(name: str) -> None:
    x, y, _ = toy(name)
    endless = {"max_epochs": None, "max_steps": None}
    for changes, message in (
        *(
            ({each: -1 if each in CHECKS else "nonsense"}, "nonsense" if each == "device" else each)
            for each in MODELS[name]().get_params()
        ),
        (endless | {"patience": None}, "max_epochs"),
        (endless | {"patience": 3, "validation": 0.0}, "no validation rows"),
    ):
        with pytest.raises(SettingsError, match=message):
            quick(name, **changes).fit(x, y)
    with pytest.raises(ValueError, match="nonsense"):
        quick(name).set_params(nonsense=1)


def test_a_learning_rate_that_diverges_is_named() -> None:
    x, y, _ = toy("mlp")
    with pytest.raises(SettingsError, match=r"diverged in epoch \d+.*learning_rate=1e\+30"):
        Mlp(learning_rate=1e30, clip=None, max_epochs=20, patience=None).fit(x, y)


@every_model
def test_rows_that_cannot_be_used_are_named(name: str) -> None:
    x, y, speakers = toy(name)
    model = quick(name, max_epochs=1)
    for labels, groups, message in (
        (np.full(NUM_ROWS, "sad"), None, "two classes"),
        (y[1:], None, "labels"),
        (y, speakers[1:], "groups"),
    ):
        with pytest.raises(InputError, match=message):
            model.fit(x, labels, groups=groups)
    copied = [each.copy() for each in x]
    copied[17].flat[3] = np.nan
    bad, narrow = like(x, copied), like(x, [each[..., 1:] for each in x])
    with pytest.raises(InputError, match="17"):
        model.fit(bad, y)
    model.fit(x, y)
    for rows, message in ((x[:0], None), (bad, "17"), (narrow, rf"{DIM}\].*{DIM - 1}\]")):
        with pytest.raises(InputError, match=message):
            model.predict(rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_model
def test_a_gpu_trains_and_predicts_as_the_cpu_does(name: str) -> None:
    x, y, speakers = toy(name)
    model = quick(name, device="cuda").fit(x, y, groups=speakers)
    on_cpu = remade(model, device="cpu")
    assert (model.predict(x) == y).mean() > 0.9
    # TF32 keeps 10 bits in cuDNN's LSTM and convolutions, where it is allowed.
    assert abs(model.predict_proba(x) - on_cpu.predict_proba(x)).max() < 1e-2
