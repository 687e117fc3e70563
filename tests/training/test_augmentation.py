"""Crops and flips: exact, a function of seed, epoch and example, of the training steps alone, alike in all passes of a step."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.augmentation_loop import augmented, drawn

from noisesam import decompose, fit, methods
from noisesam.errors import ConfigurationError
from noisesam.training import evaluate, load_config, prepare, seed_for
from noisesam.training.augmentation import CropFlip, Placement, crop_flip, placement
from noisesam.training.checkpoint import restore_model

CROPPED = {"augmentation": "crop-flip"}


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**53 - 1),
    epoch=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_batched_crops_equal_the_loop_over_pixels_to_the_bit(shape, seed, epoch, dtype):
    generator = torch.Generator().manual_seed(seed % 1000)
    images = torch.randn(shape, generator=generator, dtype=dtype)
    index = torch.randperm(10_000_000, generator=generator)[: shape[0]]
    before = images.clone()
    found = crop_flip(images, placement(index, seed=seed, epoch=epoch))
    assert found.dtype == dtype
    assert torch.equal(found, augmented(images, index, seed=seed, epoch=epoch))
    assert torch.equal(images, before)


def test_every_crop_and_flip_is_drawn_equally_often_and_anew_in_every_epoch():
    index = torch.arange(45_000)
    codes = []
    for epoch in range(2):
        top, left, flip = placement(index, seed=0, epoch=epoch)
        codes.append((top * 9 + left) * 2 + flip)
        counts = torch.bincount(codes[-1], minlength=162)
        assert len(counts) == 162
        chi_square = float(((counts - 45_000 / 162) ** 2 / (45_000 / 162)).sum())
        # 161 degrees of freedom: mean 161, standard deviation 18; four of them on either side.
        assert 161 - 4 * 18 <= chi_square <= 161 + 4 * 18
    # Two epochs agree by chance: 45,000 / 162 = 278, standard deviation 17.
    assert 278 - 4 * 17 <= int((codes[0] == codes[1]).sum()) <= 278 + 4 * 17
    # So do neighbours, and their flips in half of the cases (standard deviation 106).
    assert 278 - 4 * 17 <= int((codes[0][1:] == codes[0][:-1]).sum()) <= 278 + 4 * 17
    assert abs(int((codes[0][1:] % 2 == codes[0][:-1] % 2).sum()) - 22_500) <= 4 * 106


def test_a_draw_depends_on_seed_epoch_and_example_alone():
    index = torch.randperm(500)[:40]
    whole = placement(index, seed=7, epoch=3)
    for rows in (torch.arange(40).flip(0), torch.tensor([5]), torch.arange(11, 30)):
        for some, all_values in zip(placement(index[rows], seed=7, epoch=3), whole, strict=True):
            assert torch.equal(some, all_values[rows])
    for other in (placement(index, seed=8, epoch=3), placement(index, seed=7, epoch=4)):
        assert not torch.equal(other.top, whole.top)
    walked = CropFlip(index, 7)  # whose cache is no state
    images, rows = torch.randn(40, 1, 6, 6), torch.arange(40)
    first = walked(images, rows, 3)
    walked(images, rows, 4)
    assert torch.equal(walked(images, rows, 3), first)


def test_padding_is_zero_in_what_the_model_is_shown_the_mean_colour_once_standardised(small_config):
    corner = Placement(torch.tensor([0]), torch.tensor([8]), torch.tensor([False]))
    shown = crop_flip(torch.ones(1, 2, 8, 8), corner)
    # Eight pixels of which four lie in the padding, above and to the right.
    assert torch.equal(shown[0, :, 4:, :4], torch.ones(2, 4, 4))
    assert float(shown.sum()) == 2 * 16
    prepared = prepare(load_config(small_config(data={"standardise": True}, training=CROPPED)))
    train, steps = prepared.splits.train, prepared.order.steps_per_epoch
    # Digits are black at their borders: raw, the padding could not be told from them; standardised, black is below zero.
    black = float(train.inputs.min())
    assert black < -0.1
    batches = torch.cat([prepared.batch(step).inputs for step in range(steps)])
    assert int((batches == 0).sum()) > 0
    assert int((train.inputs == 0).sum()) == 0  # so every zero is padding, none is a pixel


def bare_loop(config, augment):
    """The steps alone, with images that `augment` makes of (images, index, epoch)."""
    prepared = prepare(load_config(config))
    train, method, optimizer = prepared.splits.train, prepared.method, prepared.optimizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config["seed"], "dropout"))
        for step in range(prepared.total_steps):
            epoch = step // prepared.order.steps_per_epoch
            if step % prepared.order.steps_per_epoch == 0:
                method.start_epoch(epoch)
            rows = prepared.order.batch(step)
            for group in optimizer.param_groups:
                group["lr"] = config["optimizer"]["lr"] * (1 + math.cos(math.pi * step / prepared.total_steps)) / 2
            optimizer.zero_grad()
            index = train.index[rows]
            method.backward(augment(train.inputs[rows], index, epoch), train.labels[rows], index=index)
            optimizer.step()
    return prepared


@pytest.mark.parametrize("method", [{"name": "sgd"}, {"name": "1-sam"}, {"name": "saf", "start_epoch": 0, "lag": 1}])
def test_a_run_equals_the_loop_that_augments_image_by_image(method, tmp_path, small_config):
    config = {**small_config(training={"epochs": 3, **CROPPED}), "method": method}
    seed = seed_for(config["seed"], "augmentation")
    run = fit(config, tmp_path / "run")
    bare = bare_loop(config, lambda images, index, epoch: augmented(images, index, seed=seed, epoch=epoch))
    plain = bare_loop(config, lambda images, index, epoch: images)
    saved = run.checkpoint().tensors
    for key, weight in bare.model.state_dict().items():
        assert torch.equal(saved[f"model.{key}"], weight)
    assert any(not torch.equal(saved[f"model.{key}"], weight) for key, weight in plain.model.state_dict().items())
    assert run.manifest["seeds"]["augmentation"] == seed
    assert run.config["training"]["augmentation"] == "crop-flip"


@pytest.mark.parametrize("method", [{"name": "1-sam"}, {"name": "saf", "start_epoch": 0, "lag": 1}])
def test_an_augmented_run_resumed_at_any_step_equals_the_uninterrupted_one(method, tmp_path, small_config, assert_same_run):
    config = small_config(training={"epochs": 2, **CROPPED}, checkpoint={"every_steps": 1, "keep": 0})
    config["method"] = method
    whole = fit(config, tmp_path / "whole")
    for step in (1, 3, 5):  # inside an epoch, and at the end of one
        copy = tmp_path / f"from-{step}"
        shutil.copytree(whole.path, copy)
        for path in (copy / "checkpoints").iterdir():
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["status"] = "running"
        (copy / "manifest.json").write_text(json.dumps(manifest))
        taken = []
        fit(config, copy, progress=lambda done, total, text, taken=taken: taken.append(done))
        assert taken == list(range(step, 7))
        assert_same_run(copy, whole.path)


PROVEN = ("1-sam", "l-sam", "j-sam", "ssam-f")
"""Methods whose per-example passes are proven on the batch."""


@pytest.mark.parametrize("name", methods.names())
def test_all_passes_of_a_step_see_the_same_augmented_images(name, tmp_path, small_config):
    config = small_config(training={"epochs": 1, **CROPPED}, tracking={"probe_size": 0})
    config["method"] = {"name": name}
    prepared = prepare(load_config(config))
    shown = prepared.batch(0)
    expected = augmented(
        prepared.splits.train.inputs[prepared.order.batch(0)],
        shown.index, seed=seed_for(config["seed"], "augmentation"), epoch=0,
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    prepared.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    prepared.method.start_epoch(0)
    with prepared.arithmetic():
        prepared.method.backward(shown.inputs, shown.labels, index=shown.index)
    assert seen
    planes = {plane.tobytes() for plane in expected.flatten(0, 1).abs().numpy()}
    for inputs in seen:  # the whole batch, or single examples of it where the example axis is proven or an example drawn
        if inputs.shape == expected.shape:
            # A proof asks of other data: channels exchanged among the images, with other signs.
            others = name in PROVEN and {plane.tobytes() for plane in inputs.flatten(0, 1).abs().numpy()} <= planes
            assert torch.equal(inputs, expected) or others
        elif name in PROVEN and len(inputs) > len(expected):
            assert torch.equal(inputs, expected.repeat(2, 1, 1, 1))
        else:
            rows = inputs.reshape(-1, *expected.shape[1:])
            assert all(any(torch.equal(row, one) for one in expected) for row in rows)


def test_evaluation_and_tracking_see_the_plain_images(tmp_path, small_config):
    config = small_config(training=CROPPED)
    run = fit(config, tmp_path / "run")
    model, splits = restore_model(run), prepare(load_config(config)).splits
    last = run.metrics[run.metrics["step"] == 12]
    for split, dataset in splits.evaluated().items():
        for row in evaluate(model, dataset, split=split):
            found = last.query("split == @row['split'] and group == @row['group'] and metric == @row['metric']")["value"]
            np.testing.assert_array_equal(found, row["value"])
    with torch.no_grad():
        logits = model.eval()(splits.probe.inputs)
    losses = torch.nn.functional.cross_entropy(logits, splits.probe.labels, reduction="none")
    tracked = run.examples[run.examples["step"] == 12]["loss"].to_numpy()
    np.testing.assert_allclose(tracked, losses.numpy(), rtol=1e-5)  # float32 in another order; a crop changes it by tenths


def test_norms_that_come_with_the_steps_are_those_of_the_augmented_images(tmp_path, small_config):
    config = small_config(
        training={"epochs": 1, "dtype": "float64", **CROPPED}, optimizer={"lr": 1e-18}, model={"options": {"hidden": [8]}}
    )
    run, prepared = fit(config, tmp_path / "run"), prepare(load_config(config))
    total = sum(
        float(decompose(prepared.model, batch.inputs, batch.labels).gradient_norm.sum())
        for batch in map(prepared.batch, range(prepared.order.steps_per_epoch))
    )
    found = run.metrics.query("metric == 'visited_gradient_norm' and group == 'all'")["value"].iloc[0]
    assert found == pytest.approx(total / len(prepared.splits.train), rel=1e-10)


def test_without_augmentation_a_batch_is_rows_of_the_training_set_and_the_manifest_names_no_seed_for_it(tmp_path, small_config):
    config = small_config(training={"epochs": 1})
    prepared = prepare(load_config(config))
    rows = prepared.order.batch(1)
    assert torch.equal(prepared.batch(1).inputs, prepared.splits.train.inputs[rows])
    assert torch.equal(prepared.batch(1).noisy, prepared.splits.train.is_noisy[rows])
    assert "augmentation" not in fit(config, tmp_path / "run").manifest["seeds"]
    said = small_config(training={"epochs": 1, "augmentation": "none"})
    assert fit(said, tmp_path / "run").status == "finished"  # the same run


def test_two_methods_of_one_seed_are_shown_the_same_images(small_config):
    first, second = (
        prepare(load_config({**small_config(training=CROPPED), "method": {"name": name}})) for name in ("sgd", "1-sam")
    )
    other = prepare(load_config({**small_config(training=CROPPED), "seed": 2}))
    for step in (0, 4):
        assert torch.equal(first.batch(step).inputs, second.batch(step).inputs)
        assert not torch.equal(first.batch(step).inputs, other.batch(step).inputs)


def test_what_is_no_image_is_refused_before_there_is_a_directory(tmp_path, small_config):
    path = tmp_path / "own.npz"
    table = np.random.default_rng(0).normal(size=(60, 5)).astype("float32")
    np.savez(path, train_inputs=table, train_labels=np.arange(60) % 2, test_inputs=table, test_labels=np.arange(60) % 2)
    config = small_config(
        data={"name": str(path), "test_size": None}, noise={"kind": "none", "rate": 0.0}, training={"epochs": 1, **CROPPED}
    )
    with pytest.raises(
        ConfigurationError,
        match=r'crop-flip" with inputs of shape \(5,\)\. Expected images of shape .*Use training.augmentation = "none"',
    ):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_cuda_the_images_stay_on_the_device_and_are_those_of_the_cpu(small_config):
    config = small_config(training=CROPPED)
    here, there = (prepare(load_config(config, [f"training.device={device}"])) for device in ("cpu", "cuda"))
    for step in (0, 4):
        assert there.batch(step).inputs.is_cuda
        assert torch.equal(there.batch(step).inputs.cpu(), here.batch(step).inputs)


def test_the_twin_draws_what_is_drawn():
    index = torch.tensor([0, 1, 2**40, 7])
    found = placement(index, seed=5, epoch=2)
    assert [drawn(5, 2, int(i)) for i in index] == [
        (int(top), int(left), bool(flip)) for top, left, flip in zip(*found, strict=True)
    ]
