"""``nn.MultiheadAttention`` under LNB: results bit for bit the original's, and the second moments of all its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from optimizer.small_models import MODES, copied, same, snapshot
from support import with_ones
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lnb

L, S, N, E, H = 5, 7, 3, 8, 2


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(1)
    module = nn.MultiheadAttention(E, H, **options)
    for name, p in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(p)  # zeros would hide them
    return module


def inputs(kind: str, module: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value of ``kind``; the same tensor where they are the same."""

    def make(length: int, width: int) -> Tensor:
        shape = (N, length, width) if module.batch_first else (length, N, width)
        return torch.randn(*shape[:-1], width) if "unbatched" not in kind else torch.randn(length, width)

    if kind.startswith("self"):
        x = make(L, E)
        return x, x, x
    query, key = make(L, E), make(S, module.kdim)
    return query, key, make(S, module.vdim) if "three" in kind else key


def masks(kind: str, length: int, sources: int, batched: bool) -> dict[str, Any]:
    causal = torch.ones(length, sources, dtype=torch.bool).triu(1)
    padding = torch.zeros((N, sources) if batched else (sources,), dtype=torch.bool)
    padding[..., -2:] = True
    floating = torch.randn(length, sources)
    per_head = torch.randn(N * H if batched else H, length, sources)
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "causal-hint": {"attn_mask": causal, "is_causal": True},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "both-causal-hint": {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True},
        "float": {"attn_mask": floating},
        "per-head": {"attn_mask": per_head},
        "per-head-and-padding": {
            "attn_mask": per_head,
            "key_padding_mask": torch.zeros(padding.shape).masked_fill(padding, -1e3),
        },
    }[kind]


def run(module: nn.Module, tensors: tuple[Tensor, ...], arguments: dict[str, Any]) -> list[Tensor]:
    """Output, weights, and all gradients."""
    leaves = {id(x): x.clone().requires_grad_() for x in tensors}
    torch.manual_seed(3)
    out, weights = module(*(leaves[id(x)] for x in tensors), **arguments)
    total = out.square().sum() if weights is None else out.square().sum() + weights.square().sum()
    total.backward()
    gradients = [p.grad for p in module.parameters()] + [leaf.grad for leaf in leaves.values()]
    return [x for x in (out.detach(), weights, *gradients) if x is not None]


def assert_same(module: nn.MultiheadAttention, tensors: tuple[Tensor, ...], arguments: dict[str, Any]) -> lnb.LNB:
    plain = copy.deepcopy(module)
    optimizer = lnb.LNB(module, preset="paper")
    expected, actual = (run(m, tensors, arguments) for m in (plain, module))
    assert len(expected) == len(actual)
    for a, b in zip(expected, actual, strict=True):
        assert a.stride() == b.stride()
        assert torch.equal(a, b)
    return optimizer


MODULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False},
    "batch-first": {"batch_first": True},
    "bias-kv": {"add_bias_kv": True},
    "zero-attention": {"add_zero_attn": True, "batch_first": True},
    "dropout": {"dropout": 0.3, "batch_first": True},
    "separate": {"kdim": 6, "vdim": 4},
    "separate-no-bias": {"kdim": 6, "bias": False, "batch_first": True},
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "three", "self-unbatched", "cross-unbatched"])
@pytest.mark.parametrize("name", MODULES)
def test_bit_for_bit(name: str, kind: str, need_weights: bool) -> None:
    module = attention(**MODULES[name])
    if "separate" in name:
        kind = kind.replace("self", "three").replace("cross", "three")
    tensors = inputs(kind, module)
    assert_same(module, tensors, {"need_weights": need_weights})


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "self-unbatched"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
@pytest.mark.parametrize(
    "mask",
    ["causal", "causal-hint", "padding", "both", "both-causal-hint", "float", "per-head", "per-head-and-padding"],
)
def test_masks_bit_for_bit(mask: str, options: dict[str, Any], kind: str, need_weights: bool) -> None:
    module = attention(**options)
    tensors = inputs(kind, module)
    given = masks(mask, L, L if "self" in kind else S, "unbatched" not in kind)
    assert_same(module, tensors, {"need_weights": need_weights, "average_attn_weights": False, **given})


@pytest.mark.parametrize("options", [{}, {"batch_first": True}])
def test_query_that_is_the_key_or_the_value(options: dict[str, Any]) -> None:
    for pattern in ((0, 0, 1), (0, 1, 0)):
        module = attention(**options)
        pair = torch.randn(L, N, E), torch.randn(L, N, E)
        assert_same(module, tuple(pair[i] for i in pattern), {})


def test_autocast_bit_for_bit() -> None:
    for need_weights in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(
                attention(batch_first=True), inputs("self", attention(batch_first=True)), {"need_weights": need_weights}
            )


def test_looks_as_before() -> None:
    plain, module = attention(), attention()
    lnb.attach(module)
    assert isinstance(module, nn.MultiheadAttention)
    assert repr(module) == repr(plain)
    assert list(module.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in module.named_parameters()] == [n for n, _ in plain.named_parameters()]
    lnb.detach(module)
    assert [type(m) for m in module.modules()] == [type(m) for m in plain.modules()]
    assert module.__dict__.keys() == plain.__dict__.keys()


def fast_path_calls(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    with torch.profiler.profile() as profile:
        out = module(x, x, x)[0]
    return out, sum("_native_multi_head_attention" in event.name for event in profile.events())


def test_inference_takes_the_fast_path() -> None:
    module = attention(batch_first=True).eval()
    plain = copy.deepcopy(module)
    lnb.LNB(module, preset="paper")
    x = torch.randn(N, L, E)
    with torch.no_grad():
        expected, calls = fast_path_calls(plain, x)
        assert calls > 0
        actual, calls = fast_path_calls(module, x)
    assert calls > 0
    assert torch.equal(actual, expected)
    module.requires_grad_(False)  # frozen: also where gradients are on
    assert fast_path_calls(module, x)[1] > 0


def moments(optimizer: lnb.LNB, name: str) -> Tensor:
    block = next(block for block in optimizer._inventory.layers if block.name == name)
    found = block.captures[0].moments
    assert found is not None
    return found.squeeze(1)


def gram(x: Tensor) -> Tensor:
    rows = with_ones(x)
    return rows.t() @ rows


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "three", "self-unbatched"])
def test_second_moments(kind: str, batch_first: bool) -> None:
    """Each of the three matrices gets its own input's; counts are those of the queries."""
    module = attention(batch_first=batch_first).double()
    optimizer = lnb.LNB(module, preset="paper")
    seen: list[Tensor] = []
    out_gram = torch.zeros(E + 1, E + 1, dtype=torch.float64)
    total = [torch.zeros(E + 1, E + 1, dtype=torch.float64) for _ in range(3)]
    weight = copy.deepcopy(module.out_proj.weight.detach())
    bias = module.out_proj.bias.detach().clone()
    for _ in range(2):  # two micro-batches add
        tensors = tuple(x.double() for x in inputs(kind, module))
        if kind.startswith("self"):
            tensors = (tensors[0],) * 3
        elif kind == "cross":
            tensors = tensors[0], tensors[1], tensors[1]
        output, _ = module(*tensors)
        output.sum().backward()
        total = [a + gram(x) for a, x in zip(total, tensors, strict=True)]
        seen.append(torch.linalg.solve(weight, (output.detach() - bias).reshape(-1, E).t()).t())
    out_gram = gram(torch.cat(seen))
    count = total[0][-1, -1]
    expected = torch.stack([s * (count / s[-1, -1]) for s in total])
    torch.testing.assert_close(moments(optimizer, "in_proj_weight"), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(moments(optimizer, "out_proj")[0], out_gram, rtol=1e-7, atol=1e-7)


def test_one_module_used_in_both_ways() -> None:
    module = attention().double()
    optimizer = lnb.LNB(module, preset="paper")
    x, y = torch.randn(L, N, E, dtype=torch.float64), torch.randn(L, N, E, dtype=torch.float64)
    (module(x, x, x)[0].sum() + module(x, y, y)[0].sum()).backward()
    expected = torch.stack([2 * gram(x), gram(x) + gram(y), gram(x) + gram(y)])
    torch.testing.assert_close(moments(optimizer, "in_proj_weight"), expected, rtol=1e-11, atol=1e-11)


class Block(nn.Module):
    """Attention written with linear layers, for what its steps should be."""

    def __init__(self, module: nn.MultiheadAttention) -> None:
        super().__init__()
        bias, dtype = module.in_proj_bias is not None, module.in_proj_weight.dtype
        self.parts = nn.ModuleList([nn.Linear(E, E, bias=bias, dtype=dtype) for _ in range(3)])
        self.out = copy.deepcopy(module.out_proj)
        self.out.__class__ = nn.Linear
        with torch.no_grad():
            for i, part in enumerate(self.parts):
                part.weight.copy_(module.in_proj_weight[i * E : (i + 1) * E])
                if part.bias is not None:
                    part.bias.copy_(module.in_proj_bias[i * E : (i + 1) * E])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        heads = [part(x).unflatten(-1, (H, -1)).transpose(1, 2) for part, x in zip(self.parts, (q, k, v), strict=True)]
        return self.out(torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)), None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "three"])
@pytest.mark.parametrize("options", [{"solver": "arrow"}, {"solver": "cholesky"}, {"cg_iterations": 60}], ids=str)
def test_steps_are_those_of_three_linear_layers(options: dict[str, Any], kind: str, bias: bool) -> None:
    module = attention(batch_first=True, bias=bias).double()
    twin = Block(module)
    optimizers = [lnb.LNB(m, 0.1, "paper", ridge=0.5, shrinkage=0.0, **options) for m in (module, twin)]
    for seed in range(4):
        torch.manual_seed(seed)
        tensors = tuple(x.double() for x in inputs(kind, module))
        tensors = {"self": (tensors[0],) * 3, "cross": (tensors[0], tensors[1], tensors[1])}.get(kind, tensors)
        for m, optimizer in zip((module, twin), optimizers, strict=True):
            optimizer.zero_grad()
            m(*tensors)[0].square().mean().backward()
            optimizer.step()
    rtol = 1e-3 if "cg_iterations" in options else 1e-9  # CG stops at 1e-5
    torch.testing.assert_close(module.in_proj_weight, torch.cat([p.weight for p in twin.parts]), rtol=rtol, atol=rtol)
    torch.testing.assert_close(module.out_proj.weight, twin.out.weight, rtol=rtol, atol=rtol)


class Decoder(nn.Module):
    """torch's own layers: self-attention, cross-attention, separate projections."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.encoder = nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(E, H, 16, dropout=0.0, batch_first=True)
        self.separate = nn.MultiheadAttention(E, H, kdim=6, vdim=6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder(x, self.encoder(x))
        return x + self.separate(x, x[..., :6], x[..., 2:])[0]


def data(count: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield torch.randn(N, L, E, generator=generator)


def fit(model: Callable[[Tensor], Tensor], optimizer: lnb.LNB, batches: Iterator[Tensor]) -> float:
    loss = torch.zeros(())
    for x in batches:
        optimizer.zero_grad()
        loss = (model(x) - x.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("mode", MODES)
def test_transformer_layers_train(mode: str) -> None:
    model = Decoder()
    optimizer = lnb.LNB(model, **MODES[mode])
    coverage = optimizer.coverage()
    for name, _ in model.named_parameters():
        claimed = not name.startswith(("encoder.norm", "decoder.norm")) and name != "separate.in_proj_bias"
        assert (coverage[name].metric == "second moment") == claimed, coverage[name]
    assert coverage["encoder.self_attn.in_proj_weight"].reason == (
        "in-projection 'encoder.self_attn.in_proj_weight': 3 matrices of 8 inputs and the bias"
    )
    assert "nor the bias of a single one" in coverage["separate.in_proj_bias"].reason
    before = copied(dict(model.named_parameters()))
    first = fit(model, optimizer, data(1))
    assert fit(model, optimizer, data(40)) < first
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert optimizer.diagnostics() == {"steps": 41, "skipped_steps": 0}


@pytest.mark.parametrize("mode", MODES)
def test_copies_and_resumption(mode: str) -> None:
    model = Decoder()
    optimizer = lnb.LNB(model, **MODES[mode])
    fit(model, optimizer, data(3))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    resumed = Decoder()
    resumed.load_state_dict(model.state_dict())
    resumed_optimizer = lnb.LNB(resumed, **MODES[mode])
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    for m, o in ((model, optimizer), (twin, twin_optimizer), (resumed, resumed_optimizer)):
        fit(m, o, data(4))
    assert same(snapshot(model, optimizer), snapshot(twin, twin_optimizer))
    assert same(snapshot(model, optimizer), snapshot(resumed, resumed_optimizer))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_checkpointing(mode: str, reentrant: bool) -> None:
    a, b = Decoder(), Decoder()
    optimizers = [lnb.LNB(m, **MODES[mode]) for m in (a, b)]
    fit(lambda x: a(x.clone().requires_grad_()), optimizers[0], data(3))  # with gradients, it is no data
    fit(lambda x: checkpoint(b, x.clone().requires_grad_(), use_reentrant=reentrant), optimizers[1], data(3))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_compile(mode: str) -> None:
    torch._dynamo.reset()
    a, b = Decoder(), Decoder()
    optimizers = [lnb.LNB(m, **MODES[mode]) for m in (a, b)]
    fit(a, optimizers[0], data(4))
    fit(torch.compile(b, backend="aot_eager", fullgraph=True), optimizers[1], data(4))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias", "out_proj.weight"])
def test_frozen_projections(frozen: str) -> None:
    model = Decoder()
    optimizer = lnb.LNB(model, **MODES["paper"])
    parameter = model.encoder.self_attn.get_parameter(frozen)
    parameter.requires_grad_(False)
    start = parameter.detach().clone()
    fit(model, optimizer, data(3))
    assert torch.equal(parameter, start)
    parameter.requires_grad_(True)
    fit(model, optimizer, data(3))
    assert not torch.equal(parameter, start)


def test_changed_attention_is_named() -> None:
    model = Decoder()
    optimizer = lnb.LNB(model, **MODES["paper"])
    model.encoder.self_attn.in_proj_weight = nn.Parameter(torch.randn(3 * E, E))
    with pytest.raises(RuntimeError, match=r"the in_proj_weight of layer 'encoder\.self_attn' was re-assigned"):
        fit(model, optimizer, data(1))


class OwnForward(nn.MultiheadAttention):
    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return super().forward(query, query, query)


def test_attention_with_its_own_forward_is_left_alone() -> None:
    model = nn.ModuleDict({"attention": OwnForward(E, H, batch_first=True), "linear": nn.Linear(E, E)})
    optimizer = lnb.LNB(model, **MODES["paper"])
    coverage = optimizer.coverage()
    assert "OwnForward has its own forward" in coverage["attention.in_proj_weight"].reason
    assert "does not call it" in coverage["attention.out_proj.weight"].reason
    model["linear"](model["attention"](torch.randn(N, L, E))[0]).sum().backward()
    optimizer.step()
    assert optimizer.diagnostics()["steps"] == 1


@pytest.mark.parametrize("excluded", [True, False])
def test_excluded_out_projection(excluded: bool) -> None:
    module = attention()
    optimizer = lnb.LNB(module, preset="paper", exclude=[module.out_proj] if excluded else [])
    assert optimizer.coverage()["out_proj.weight"].metric == ("identity" if excluded else "second moment")
    x = torch.randn(L, N, E)
    module(x, x, x)[0].sum().backward()
    optimizer.step()
    assert optimizer.diagnostics() == {"steps": 1, "skipped_steps": 0}


@pytest.mark.parametrize(
    "arguments",
    [
        {"attn_mask": torch.zeros(1, L)},
        {"attn_mask": torch.zeros(L, L, dtype=torch.int64)},
        {"key_padding_mask": torch.zeros(N, L + 1)},
        {"is_causal": True},
    ],
    ids=["mask-shape", "mask-dtype", "padding-shape", "hint-alone"],
)
def test_bad_arguments_are_the_originals_errors(arguments: dict[str, Any]) -> None:
    plain, module = attention(), attention()
    lnb.LNB(module, preset="paper")
    x = torch.randn(L, N, E)
    errors = []
    for m in (plain, module):
        with pytest.raises((RuntimeError, AssertionError, ValueError)) as raised:
            m(x, x, x, **arguments)
        errors.append((type(raised.value), str(raised.value)))
    assert errors[0] == errors[1]
