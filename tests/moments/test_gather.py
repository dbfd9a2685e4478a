"""Moments gathered from data: those of the rows by definition, for every kind of layer, and the model stays as it was."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from moments_support import images, rows_of, small_model, train
from support import assert_close_to_reference
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lnb
from lnb.moments import MissingMoment, Moments


def check(moment: lnb.moments.LayerMoment, rows: Tensor) -> None:
    """Against float64, beside plain PyTorch in float32; ``rows`` ``[groups, N, d]``."""
    info, narrow = moment.info, rows.float()
    assert moment.count.tolist() == [rows.shape[1]] * info.groups
    square, plain = rows.mT @ rows / rows.shape[1], narrow.mT @ narrow / rows.shape[1]
    for block in range(info.blocks):
        cut = slice(block * info.size, (block + 1) * info.size)
        assert_close_to_reference(moment.second_moment[:, block], square[:, cut, cut], plain[:, cut, cut])
    assert_close_to_reference(moment.mean, rows.mean(1), narrow.mean(1))


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 3, 6)),
    "strided groups": (lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), (3, 4, 7, 6)),
    "circular": (lambda: nn.Conv2d(4, 3, 2, padding=1, padding_mode="circular"), (3, 4, 5, 5)),
}


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(kind: str, block_size: int | None) -> None:
    build, shape = LAYERS[kind]
    torch.manual_seed(1)
    model = nn.Sequential(build())
    batches = [torch.randn(shape) + 0.3 for _ in range(3)]
    moments = lnb.gather_moments(model, batches, block_size=block_size)
    rows = torch.cat([rows_of(model[0], x) for x in batches], dim=1)
    check(moments["0"], rows)
    wanted = {None: 1, 4: {"linear": 2, "strided groups": 6, "circular": 4}[kind]}[block_size]
    assert moments["0"].info.blocks == wanted


def test_one_dimensional_convolutions_and_single_layers() -> None:
    model = nn.Conv1d(3, 2, 3, padding=1)
    x = torch.randn(4, 3, 9)
    moments = lnb.gather_moments(model, [x])
    as_image = nn.Conv2d(3, 2, (1, 3), padding=(0, 1))
    check(moments["Conv1d"], rows_of(as_image, x.unsqueeze(2)))


@pytest.mark.parametrize("inputs", ["self", "cross", "split"])
@pytest.mark.parametrize("attached", [False, True])
def test_attention(inputs: str, attached: bool) -> None:
    """Both projections of ``nn.MultiheadAttention``, with one, two or three inputs; outputs are those without hooks."""
    torch.manual_seed(2)
    sizes = {"kdim": 6, "vdim": 5} if inputs == "split" else {}
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
    query = torch.randn(2, 3, 8)
    key = {"self": query, "cross": torch.randn(2, 4, 8), "split": torch.randn(2, 4, 6)}[inputs]
    value = torch.randn(2, 4, 5) if inputs == "split" else key
    before, outputs = attention(query, key, value)[0].detach(), []
    if attached:
        lnb.attach(attention)
    moments = lnb.gather_moments(
        attention, [(query, key, value)], forward=lambda model, batch: outputs.append(model(*batch)[0])
    )
    torch.testing.assert_close(outputs[0], before, rtol=1e-6, atol=1e-6)
    assert "forward" not in attention.__dict__
    if inputs == "split":
        for name, x in (("q", query), ("k", key), ("v", value)):
            check(moments[f"{name}_proj_weight"], rows_of(nn.Identity(), x))
    else:
        for group, x in enumerate((query, key, value)):
            part = rows_of(nn.Identity(), x)
            moment = moments["in_proj_weight"]
            assert moment.count[group] == part.shape[1]
            torch.testing.assert_close(moment.second_moment[group, 0].double(), (part.mT @ part / part.shape[1])[0])
    # the out-projection is affine: from the mean of its outputs follows that of its inputs
    mean = moments["out_proj"].mean[0] @ attention.out_proj.weight.T + attention.out_proj.bias
    torch.testing.assert_close(mean.detach(), before.mean((0, 1)), rtol=1e-5, atol=1e-5)


def test_attention_gets_its_own_forward_back_after_an_exception() -> None:
    attention = nn.MultiheadAttention(4, 1)
    x = torch.randn(3, 2, 4)
    calls: list[int] = []
    original = attention.forward
    attention.forward = lambda *args, **named: (calls.append(1), original(*args, **named))[1]  # as trainers replace it
    own = attention.forward
    with pytest.raises(AssertionError, match="does not match"):  # PyTorch's own message
        lnb.gather_moments(attention, [x], forward=lambda model, x: model(x, x[..., :2], x))
    assert attention.forward is own
    assert calls == [1]
    assert torch.backends.mha.get_fastpath_enabled()
    nested = torch.nested.nested_tensor([torch.randn(2, 4)], layout=torch.jagged)
    with pytest.raises(ValueError, match="nested tensor; pass padded ones"):
        lnb.gather_moments(attention, [nested], forward=lambda model, x: model(x, x, x))


def test_encoders_do_not_skip_their_layers() -> None:
    """PyTorch's fast path of evaluation calls none of them; it is off while moments are gathered, and on again."""
    torch.manual_seed(3)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2).eval()
    x = torch.randn(3, 5, 8)
    moments = lnb.gather_moments(model, [x])
    assert len(moments) == 8
    assert all(moment.count.tolist() == [15.0] * moment.info.groups for moment in moments.values())
    assert torch.backends.mha.get_fastpath_enabled()


def test_compiled_models_are_seen() -> None:
    model = small_model()
    compiled = torch.compile(model, backend="eager")
    compiled(images(4, 0))
    assert same_moments(lnb.gather_moments(compiled, [images(4, 0)]), lnb.gather_moments(model, [images(4, 0)]))


def same_moments(a: Moments, b: Moments) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].second_moment, b[n].second_moment) for n in a)


def test_batches_of_all_forms() -> None:
    model, x = small_model(), images(8, 0)
    expected = lnb.gather_moments(model, [x[:4], x[4:]])
    loader = DataLoader(TensorDataset(x, torch.zeros(8)), batch_size=4)
    assert same_moments(lnb.gather_moments(model, loader), expected)
    named = [{"input": x[:4]}, {"input": x[4:]}]
    assert same_moments(lnb.gather_moments(model, named), expected)
    some = lnb.gather_moments(model, [x[:4], x[4:]], layers=["5"])
    assert set(some) == {"5"}
    wide = lnb.gather_moments(model, [x], dtype=torch.float64)
    rows = rows_of(model[0], x)
    torch.testing.assert_close(wide["0"].second_moment[:, 0], rows.mT @ rows / rows.shape[1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(fails: bool) -> None:
    """Modes of every module, hooks, gradients, buffers, classes, and what an optimizer gathered; also after an exception."""
    model = nn.Sequential(small_model(), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = lnb.LNB(model[0])
    model[1].eval()
    model(images(16, 0)).square().mean().backward()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    kinds = [type(module) for module in model.modules()]
    probe = model[0][5]._lnb_captures["weight"].moments.clone()
    batches = [images(8, 1), torch.zeros(8, 2, 4, 4, 1)] if fails else [images(8, 1)]
    if fails:
        with pytest.raises(ValueError, match=r"dim|shape"):
            lnb.gather_moments(model, batches)
    else:
        lnb.gather_moments(model, batches)
    assert [module.training for module in model.modules()] == modes
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())
    assert torch.equal(model[0][5]._lnb_captures["weight"].moments, probe)
    optimizer.step()


def test_merged_parts_are_the_whole(tmp_path: Path) -> None:
    """Of files and of ranks; counts exactly, also past what float32 counts."""
    model, x = small_model(), images(24, 0)
    parts = [lnb.gather_moments(model, [part]) for part in x.tensor_split([5, 11])]
    parts[1].save(tmp_path / "b")
    merged = parts[0].merge(lnb.load_moments(tmp_path / "b"), parts[2])
    for name, module in (("0", model[0]),):
        check(merged[name], rows_of(module, x))
    merged.save(tmp_path / "all")
    assert same_moments(lnb.load_moments(tmp_path / "all"), merged)
    assert merged["5"].info == parts[0]["5"].info
    huge = parts[0]["5"]
    huge.count[:] = 2.0**40
    assert Moments([huge]).merge(Moments([parts[1]["5"]]))["5"].count.tolist() == [2.0**40 + 6]


def test_a_shared_layer_counts_all_its_uses() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(5, 4)
    moments = lnb.gather_moments(nn.Sequential(layer, layer), [x])
    check(moments["0"], torch.cat([x, layer(x).detach()]).double().unsqueeze(0))


def test_bad_arguments_are_named() -> None:
    model, x = small_model(), images(4, 0)
    with pytest.raises(ValueError, match=r"layers: \['nope'\] are none"):
        lnb.gather_moments(model, [x], layers=["nope"])
    with pytest.raises(TypeError, match="layers='5' must be a list"):
        lnb.gather_moments(model, [x], layers="5")
    with pytest.raises(TypeError, match=r"loader=.*must give batches"):
        lnb.gather_moments(model, x)
    with pytest.raises(ValueError, match="saw a sample; it gave no batches"):
        lnb.gather_moments(model, [])
    with pytest.raises(ValueError, match="has no linear"):
        lnb.gather_moments(nn.LayerNorm(3), [x])
    with pytest.raises(ValueError, match=r"dtype=torch.float16"):
        lnb.gather_moments(model, [x], dtype=torch.float16)
    with pytest.raises(ValueError, match="block_size=0"):
        lnb.gather_moments(model, [x], block_size=0)
    x[0] = float("nan")
    with pytest.raises(ValueError, match="layer '0': second_moment holds NaN or inf; look at the batches"):
        lnb.gather_moments(model, [x])


def test_layers_that_saw_nothing_have_no_moments() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "spare": nn.Linear(3, 2)})
    with pytest.warns(UserWarning, match=r"\['spare'\] saw no samples"):
        moments = lnb.gather_moments(model, [torch.randn(4, 3)], forward=lambda m, x: m["used"](x))
    assert set(moments) == {"used"}
    assert "spare" not in moments
    with pytest.raises(MissingMoment, match="'spare' has no moment: it saw no samples"):
        _ = moments["spare"]
    with pytest.raises(KeyError, match="no layer 'other'"):
        _ = moments["other"]


def test_merging_what_does_not_fit_is_named(tmp_path: Path) -> None:
    model, x = small_model(), images(4, 0)
    full, cut = lnb.gather_moments(model, [x]), lnb.gather_moments(model, [x], block_size=9)
    with pytest.raises(
        ValueError, match=r"layer '0': moments to merge are of .* 1 x 1 blocks of 18 .* 1 x 2 blocks of 9"
    ):
        full.merge(cut)
    with pytest.raises(ValueError, match="one side only"):
        full.merge(lnb.gather_moments(model, [x], layers=["5"]))
    with pytest.raises(TypeError, match=r"others\[0\]"):
        full.merge(model)  # type: ignore[arg-type]
    optimizer = lnb.LNB(model, block_size=None)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    del state["lnb_plan"], state["param_groups"][0]["lnb"]
    unknown = lnb.export_moments((model, state))
    unknown.save(tmp_path / "m")
    assert lnb.load_moments(tmp_path / "m")["5"].count.isnan().all()
    with pytest.raises(ValueError, match="not known how many samples"):
        _ = unknown.merge(full)["5"]


def test_quiet() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lnb.gather_moments(small_model(), [images(4, 0)])
