"""Labels are compared at one index of the axes along which only fibres are renumbered: never with another result."""

import numpy as np
import pytest
import torch

from equipoise.graph.labels.algebra import Algebra
from equipoise.graph.labels.ragged import joined
from equipoise.graph.labels.signal import Role, patterns, tight

ROWS = torch.arange(3)[:, None]
COLUMNS = torch.arange(4)
LAYOUTS = {
    "a fibre a row": ROWS,
    "a fibre a row, another for each half": 2 * ROWS + COLUMNS // 2,
    "fibres that rows share": (ROWS + COLUMNS) // 2,
    "rows that part in different ways": torch.tensor([[0, 0, 0, 0], [1, 1, 2, 2], [3, 3, 3, 3]]),
    "one row parted as others are, with a number of theirs": torch.tensor([[0, 1, 0, 1], [1, 2, 1, 2], [4, 5, 4, 5]]),
}
KEYS = {"none": torch.zeros(1, 1, dtype=torch.long), "by row": ROWS, "by column": COLUMNS[None] % 2}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("fibres", LAYOUTS.values(), ids=LAYOUTS)
def test_cells_split_as_if_every_element_were_read(fibres, key):
    algebra, slow = Algebra(), Algebra()
    labels = [torch.from_numpy(each.symmetry.fresh(4)).expand(3, 4) for each in (algebra, slow)]
    fibres, dense = fibres.expand(3, 4), key.expand(3, 4)
    algebra.separate(Role(labels[0], fibres.contiguous()), key)
    elements = [each.reshape(-1).numpy() for each in (labels[1], fibres, dense)]
    if key.numel() > 1:
        slow.symmetry.close(elements[0], joined(*elements[1:]))
    cells = [each.symmetry.cells(np.arange(1, 5)) for each in (algebra, slow)]
    assert np.array_equal(np.equal.outer(cells[0], cells[0]), np.equal.outer(cells[1], cells[1]))


@pytest.mark.parametrize(("layout", "rows"), [*zip(LAYOUTS, (1, 1, 3, 3, 3), strict=True)])
def test_only_rows_that_repeat_are_left_out(layout, rows):
    coordinates = torch.arange(1, 5).expand(3, 4)
    (role,), _ = patterns([Role(coordinates, LAYOUTS[layout].expand(3, 4).contiguous())])
    assert role.coordinates.shape[0] == rows


def test_tight_labels_are_the_same_labels():
    labels = torch.tensor([[[1, 2], [1, 2]], [[3, 4], [3, 4]]])
    assert torch.equal(tight(labels), labels)
    assert tight(labels).stride() == (2, 0, 1)
    assert tight(torch.zeros(0, 3)).shape == (0, 3)
