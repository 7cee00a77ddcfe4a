"""Rows of a tensor, without a copy where its strides allow."""

import torch

from dsv2.kernels.triton.layout import rows


def test_rows_are_copied_only_if_their_elements_do_not_lie_together() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    for part in (x, x[..., 1:3], x[:, :1], x[0, 0], x.new_zeros(4).expand(2, 3, 4)):
        assert rows(part).untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
        assert torch.equal(rows(part), part.reshape(-1, part.shape[-1]))
    for part in (x.transpose(1, 2), x.new_zeros(()).expand(2, 4), x[..., ::2]):
        assert rows(part).stride(1) == 1
        assert torch.equal(rows(part), part.reshape(-1, part.shape[-1]))
