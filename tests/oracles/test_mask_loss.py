"""The loss of mask queries against that of transformers' EoMT."""

from __future__ import annotations

import pytest
import torch

from dense.losses.masks import MaskLoss


@pytest.mark.parametrize("queries", [6, 3])  # of an image with four objects
def test_transformers(queries: int) -> None:
    """With many points both estimate one value; matches are the same."""
    eomt = pytest.importorskip("transformers.models.eomt.modeling_eomt")
    configuration = pytest.importorskip("transformers").EomtConfig
    torch.manual_seed(0)
    config = configuration(num_labels=3, train_num_points=20000)
    masks, logits = 3 * torch.randn(2, 6, 12, 10), torch.randn(2, queries, 4)
    objects = [torch.nn.functional.interpolate(masks[i : i + 1], (48, 40))[0, :n] > 0.5 for i, n in enumerate((4, 2))]
    masks = masks[:, :queries]
    labels = [torch.tensor([0, 2, 1, 1]), torch.tensor([2, 0])]
    theirs = eomt.EomtLoss(config, {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0})
    parts = theirs(masks, logits, [o.float() for o in objects], labels)
    ours = MaskLoss(points=20000)
    _, found = ours([(masks, logits)], objects, labels)
    for name, other in (("class", "cross_entropy"), ("mask", "mask"), ("dice", "dice")):
        assert float(found[name]) == pytest.approx(float(parts[f"loss_{other}"]), rel=0.02), name
    matches = theirs.matcher(masks, logits, [o.float() for o in objects], labels)
    (mine,), _ = ours.match([(masks, logits)], objects, labels, None)
    for (queries, chosen), (theirs_q, theirs_c) in zip(mine, matches, strict=True):
        assert queries.tolist() == theirs_q.tolist()
        assert chosen.tolist() == theirs_c.tolist()
