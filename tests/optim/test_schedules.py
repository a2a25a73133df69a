"""Schedules at points worked out by hand, and the units they are stated in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from mixjax.errors import UsageError
from mixjax.optim import schedules
from mixjax.optim.schedules import Clock

TEN = Clock(100, 10)  # ten epochs of ten steps
RISE = {
    "warmup_epochs": 2.0,
    "warmup_start": 0.0,
    "warmup_rule": "from_start",
    "per": "step",
    "first_epoch": 0,
}


def cosine(clock=TEN, **changes):
    fields = {"peak": 1.0, "floor": 0.0, "restart": True} | RISE | changes
    return schedules.warmup_cosine(clock, **fields)


def stairs(clock=TEN, **changes):
    fields = {"peak": 1.0, "factor": 0.1, "milestones": (4, -2)} | RISE | changes
    return schedules.warmup_steps(clock, **fields)


def line(clock=TEN, **changes):
    fields = {"peak": 1.0, "floor": 0.0, "power": 1.0} | RISE | changes
    return schedules.warmup_polynomial(clock, **fields)


def check(schedule, points):
    rates = jax.jit(schedule)(jnp.array(list(points)))
    np.testing.assert_allclose(rates, list(points.values()), rtol=2e-6, atol=2e-7)


def test_clock():
    assert TEN.epochs == 10
    assert Clock(1000, 312.5).epochs == 3.2
    assert [Clock(1000, 312.5).steps(e) for e in (0, 0.001, 1, 1.6)] == [0, 1, 312, 500]


@pytest.mark.parametrize(
    "rule, points",
    [
        ("from_start", {0: 0, 5: 0.25, 19: 0.95, 20: 1}),
        ("one_ahead", {0: 0.05, 5: 0.3, 18: 0.95, 19: 1, 20: 1}),
        ("both_ends", {0: 0, 5: 5 / 19, 18: 18 / 19, 19: 1, 20: 1}),
    ],
)
@pytest.mark.parametrize("shape", [cosine, stairs])
def test_warmup_in_steps(shape, rule, points):
    check(shape(warmup_rule=rule), points)
    lifted = {step: 0.2 + 0.8 * rate for step, rate in points.items()}
    check(shape(warmup_rule=rule, warmup_start=0.2), lifted)


@pytest.mark.parametrize(
    "rule, first, rates",
    [
        ("from_start", 0, (0, 0.5, 1)),
        ("from_start", 1, (0.5, 1)),
        ("one_ahead", 0, (0.5, 1, 1)),
        ("both_ends", 0, (0, 1, 1)),
    ],
)
def test_warmup_in_epochs(rule, first, rates):
    schedule = stairs(warmup_rule=rule, per="epoch", first_epoch=first)
    check(schedule, {10 * e + s: r for e, r in enumerate(rates) for s in (0, 4, 9)})


def test_cosine_begins_again_after_the_warmup():
    check(cosine(), {20: 1, 60: 0.5, 80: 0.5 - 0.5 * 0.5**0.5, 100: 0})
    check(cosine(peak=3.0, floor=1.0), {10: 1.5, 20: 3, 60: 2, 100: 1})


def test_cosine_at_absolute_time():
    rates = {19: 0.95, 20: 0.9045085, 50: 0.5, 80: 0.0954915, 100: 0}
    check(cosine(restart=False), rates)


def test_cosine_in_epochs():
    rates = {0: 0, 19: 0.5, 20: 1, 59: 0.6913417, 60: 0.5, 69: 0.5}
    check(cosine(per="epoch"), rates)
    check(cosine(per="epoch", first_epoch=1), {9: 0.5, 10: 1, 49: 0.6913417, 50: 0.5})


def test_polynomial():
    """From the first step on, and no more than 0 once the run is over."""
    check(line(warmup_epochs=0.0), {0: 1, 1: 0.99, 50: 0.5, 99: 0.01, 100: 0, 120: 0})
    check(line(), {20: 0.8, 50: 0.5, 99: 0.01})
    check(line(power=0.9), {50: 0.5**0.9, 90: 0.1**0.9})
    check(line(peak=3.0, floor=1.0), {20: 2.6, 50: 2, 100: 1})


def test_the_warmup_multiplies_the_polynomial():
    """Half way through it the rate is half of 0.9, not half of the peak."""
    check(line(), {0: 0, 1: 0.05 * 0.99, 10: 0.5 * 0.9, 19: 0.95 * 0.81, 20: 0.8})
    check(line(peak=2.0, warmup_start=0.2), {0: 0.2, 10: 0.9 * 1.1, 20: 1.6})


def test_mmsegmentation_in_steps():
    """160 000 steps, 1500 of them warm up from a millionth (an epoch is a step)."""
    config = common.warmup_polynomial(1e-4, "none", 1500.0).to_dict()
    config |= {"base": 1.0, "warmup_start": 1e-6}
    schedule = schedules.make(config, batch=16, clock=Clock(160_000, 1.0))
    factor = lambda it: 1e-6 * (1 - it / 1500) + it / 1500
    points = {it: factor(it) * (1 - it / 160_000) for it in (0, 1, 750, 1499)}
    check(schedule, points | {1500: 1 - 1500 / 160_000, 80_000: 0.5, 160_000: 0})


def test_detectron2_in_steps():
    """24 000 steps, the rate a tenth at 18 000 and 22 000, 100 warm up from 0.001."""
    config = common.warmup_steps(0.02, "none", 100.0, (18_000, 22_000), 0.1).to_dict()
    config |= {"base": 1.0, "warmup_start": 0.001}
    schedule = schedules.make(config, batch=16, clock=Clock(24_000, 1.0))
    points = {it: 0.001 * (1 - it / 100) + it / 100 for it in (0, 1, 50, 99)}
    points |= {100: 1, 17_999: 1, 18_000: 0.1, 21_999: 0.1, 22_000: 0.01}
    check(schedule, points)


def test_without_warmup_the_first_step_has_the_peak():
    for shape in (cosine, stairs, line):
        check(shape(warmup_epochs=0.0, warmup_start=0.3), {0: 1.0})


def test_a_run_may_be_warmup_alone():
    check(cosine(warmup_epochs=10.0), {0: 0, 50: 0.5, 99: 0.99, 100: 1})
    assert np.isfinite(cosine(warmup_epochs=10.0)(100))


def test_milestones():
    """Epoch 4, and the eighth, two before the end."""
    check(stairs(), {39: 1, 40: 0.1, 79: 0.1, 80: 0.01, 99: 0.01})
    check(stairs(peak=2.0, milestones=()), {99: 2.0})
    later = stairs(per="epoch", first_epoch=1)
    check(later, {29: 1, 30: 0.1, 69: 0.1, 70: 0.01})


@pytest.mark.parametrize("epochs, total", [(300, 1000), (47, 500_000), (10, 3)])
def test_epochs_of_a_fractional_length(epochs, total):
    """Step k of `total` lies in epoch k * epochs // total."""
    clock = Clock(total, total / epochs)
    rise = {"per": "epoch", "warmup_epochs": float(epochs), "first_epoch": 1}
    begin = np.arange(epochs) * total // epochs
    step = np.unique(np.clip([begin - 1, begin, begin + 1], 0, total - 1))
    found = jax.jit(cosine(clock, peak=float(epochs), **rise))(step)
    np.testing.assert_allclose(found, step * epochs // total + 1, rtol=1e-6)


def test_milestones_between_two_steps():
    drops = stairs(Clock(1000, 1000 / 300), milestones=(100, -100))
    check(drops, {332: 1, 333: 0.1, 666: 0.1, 667: 0.01})


@pytest.mark.parametrize("per", ["step", "epoch"])
@pytest.mark.parametrize("shape", [cosine, stairs, line])
@pytest.mark.parametrize("length", [7, 12.75])
def test_a_traced_step_gives_the_same_as_a_number(shape, per, length):
    schedule = shape(Clock(round(10 * length), length), per=per)
    steps = range(0, round(10 * length), 3)
    one_by_one = [schedule(step) for step in steps]
    traced = jax.jit(schedule)(jnp.array(steps, jnp.int32))
    np.testing.assert_allclose(traced, one_by_one, rtol=2e-6, atol=1e-7)
    assert jax.jit(schedule)(jnp.int32(3)).dtype == jnp.float32


CONFIG = {"name": "cosine", "rule": "batch/256", "base": 0.3, "floor": 0.03}
CONFIG |= {"restart": True} | RISE | {"warmup_start": 0.06}


@pytest.mark.parametrize(
    "rule, scale", [("batch/256", 4), ("batch/512", 2), ("none", 1)]
)
def test_make_scales_all_rates(said, rule, scale):
    schedule = schedules.make(CONFIG | {"rule": rule}, batch=1024, clock=TEN)
    check(schedule, {0: 0.06 * scale, 20: 0.3 * scale, 100: 0.03 * scale})
    (line,) = said
    shown = "1" if rule == "none" else rule
    assert f"base 0.3 x {shown} (effective batch 1024) = {0.3 * scale:g};" in line
    assert line.endswith("cosine over 100 steps, of which 20 warm up")


def test_make_leaves_the_factor_of_stairs_alone():
    fields = {"name": "steps", "factor": 0.1, "milestones": (4,)} | RISE
    fields |= {"rule": "batch/512", "base": 1.0}
    schedule = schedules.make(fields, batch=256, clock=TEN)
    check(schedule, {10: 0.25, 20: 0.5, 40: 0.05})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": "cosin"}, r"schedule\.name 'cosin' .*'cosine'"),
        ({"rule": "batch/25"}, r"schedule\.rule 'batch/25' .*'batch/256'"),
        ({"per": "steps"}, r"schedule\.per 'steps' .*'step'"),
        ({"warmup_rule": "one_aheed"}, r"schedule\.warmup_rule .*'one_ahead'"),
        (
            {"warmup_epoch": 1},
            r"schedule\.warmup_epoch is not a field.*'warmup_epochs'",
        ),
        ({"milestones": ()}, r"schedule\.milestones is not a field"),
        ({"name": "steps"}, r"schedule\.(floor|restart) is not a field"),
    ],
)
def test_make_names_what_is_wrong(change, message):
    with pytest.raises(UsageError, match=message):
        schedules.make(CONFIG | change, batch=1024, clock=TEN)


@pytest.mark.parametrize("field", CONFIG)
def test_make_names_what_is_missing(field):
    fields = {k: v for k, v in CONFIG.items() if k != field}
    with pytest.raises(UsageError, match=rf"schedule\.{field} is missing"):
        schedules.make(fields, batch=1024, clock=TEN)
