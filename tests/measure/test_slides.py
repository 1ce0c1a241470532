import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.measure.activity import SHORTEST, Slides


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 25))
def test_slides_are_the_runs_of_steps_inside_the_kink(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    inside = torch.rand(steps, 3, 2, generator=generator) < 0.7
    slides = Slides.none(inside[0])
    for step, now in enumerate(inside, 1):
        slides = slides.after(now, step)
    expected = set()
    for example in range(3):
        for neuron in range(2):
            first = None
            for step in range(1, steps + 2):
                on = step <= steps and bool(inside[step - 1, example, neuron])
                first = step if on and first is None else first
                if not on and first is not None:
                    expected |= {(example, neuron, first, step - 1)} if step - first >= SHORTEST else set()
                    first = None
    assert {tuple(row) for row in slides.spans(steps).tolist()} == expected
    assert {tuple(row) for row in slides.over.tolist()} == {row for row in expected if row[3] < steps}
