"""Random models and random settings of LNB, as text."""

from __future__ import annotations

import random

PADDING_MODES = ("zeros", "zeros", "reflect", "replicate", "circular")
ACTIVATIONS = ("nn.Tanh()", "nn.ReLU()", "nn.GELU()", "nn.Sigmoid()")


class Model:
    """A model under construction: its layers, and what is done to them afterwards.

    Attributes:
        family: ``"vectors"``, ``"images"``, ``"signals"``, ``"sequences"`` or ``"tokens"``.
        layers: their text, in order.
        after: statements on ``model``.
    """

    def __init__(self, rng: random.Random) -> None:
        self.random = rng
        self.family = rng.choice(("vectors", "images", "images", "signals", "sequences", "tokens"))
        self.dtype = rng.choice(("torch.float32",) * 5 + ("torch.float64", "torch.bfloat16"))
        self.batch = rng.choice((1, 2, 3, 5, 9, 16))
        self.positions = rng.choice((1, 2, 5, 8))
        self.layers: list[str] = []
        self.after: list[str] = []
        self.linear: list[int] = []  # places of linear layers
        self.claimable: list[int] = []
        getattr(self, f"_{self.family}")()
        self._after()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    @property
    def exact(self) -> bool:
        """Whether LAPACK and recurrent layers take the dtype."""
        return self.dtype != "torch.bfloat16"

    def _put(self, text: str, claimable: bool = False) -> None:
        if claimable and self.chance(0.15):
            text = f"Checkpointed({text})"
        elif claimable:
            self.claimable.append(len(self.layers))
            if text.startswith("nn.Linear"):
                self.linear.append(len(self.layers))
        self.layers.append(text)

    def _linear(self, width: int, out: int) -> int:
        bias = "" if self.chance(0.75) else ", bias=False"
        self._put(f"nn.Linear({width}, {out}{bias})", claimable=True)
        return out

    def _dense(self, width: int, norms: tuple[str, ...]) -> int:
        """A few layers on the last dimension; returns its size."""
        for _ in range(self.random.choice((1, 2, 3))):
            kind = self.random.choice(("linear", "linear", "activation", "norm", "residual", "complex", "unused"))
            if kind == "linear":
                width = self._linear(width, self.random.choice((1, 3, 4, 8, 12, 17)))
            elif kind == "activation":
                self._put(self.random.choice(ACTIVATIONS))
            elif kind == "norm":
                self._put(self.random.choice(norms).format(width))
            elif kind == "residual":
                self._put(f"Residual(nn.Sequential(nn.Linear({width}, {width}), nn.Tanh()))", claimable=True)
            elif kind == "complex" and self.dtype == "torch.float32" and self.chance(0.3):
                self.layers.append(f"ComplexLayer({width})")
            elif kind == "unused" and self.chance(0.5):
                self._put(f"Unused(nn.Linear({width}, 3))")
        return width

    def _vectors(self) -> None:
        width = self.random.choice((1, 3, 6, 12, 20))
        self.input = f"normal({{}}, ({self.batch}, {width}), {self.dtype})"
        norms = ("nn.LayerNorm({})", "nn.RMSNorm({})") + (("nn.BatchNorm1d({})",) if self.batch > 1 else ())
        width = self._linear(width, self.random.choice((4, 8, 12)))
        self._linear(self._dense(width, norms), 3)

    def _images(self) -> None:
        channels = self._convolutions(2)
        self._put("nn.AdaptiveAvgPool2d(2)" if self.chance(0.5) else "nn.AdaptiveMaxPool2d(2)")
        self._put("nn.Flatten()")
        self._linear(self._dense(channels * 4, ("nn.LayerNorm({})",)), 3)

    def _signals(self) -> None:
        channels = self._convolutions(1)
        self._put("nn.AdaptiveAvgPool1d(3)" if self.chance(0.5) else "nn.AdaptiveMaxPool1d(3)")
        self._put("nn.Flatten()")
        self._linear(self._dense(channels * 3, ("nn.LayerNorm({})",)), 3)

    def _convolutions(self, axes: int) -> int:
        """One or two of them; returns their channels."""
        rng = self.random
        channels, size = rng.choice((1, 2, 3, 4)), rng.choice((5, 6, 8, 9))
        self.input = f"normal({{}}, ({self.batch}, {channels}{f', {size}' * axes}), {self.dtype})"
        for _ in range(rng.choice((1, 1, 2))):
            groups = rng.choice([n for n in (1, 1, 1, 2, 3, 4) if channels % n == 0])
            out = groups * rng.choice((1, 2, 4))
            kernel, stride, dilation = rng.choice((1, 2, 3)), rng.choice((1, 1, 2)), rng.choice((1, 1, 2))
            padding = rng.choice((0, 1, 1, 2))
            text = f"{kernel}, stride={stride}, dilation={dilation}, groups={groups}, padding="
            if stride == 1 and self.chance(0.2):
                text, padding = text + '"same"', dilation * (kernel - 1) // 2
            else:
                text += str(padding)
            after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            if after < 2:
                continue
            mode = rng.choice(PADDING_MODES)
            bias = ", bias=False" if self.chance(0.25) else ""
            self._put(f"nn.Conv{axes}d({channels}, {out}, {text}, padding_mode={mode!r}{bias})", claimable=True)
            channels, size = out, after
            if self.chance(0.4):
                norms = f"nn.GroupNorm(1, {channels})", f"nn.BatchNorm{axes}d({channels})"
                self._put(rng.choice((*norms, *ACTIVATIONS)))
        return channels

    def _sequences(self, width: int | None = None) -> None:
        rng = self.random
        if width is None:
            width = rng.choice((4, 8, 12))
            self.input = f"normal({{}}, ({self.batch}, {self.positions}, {width}), {self.dtype})"
        for _ in range(rng.choice((1, 1, 2))):
            kind = rng.choice(("attention", "attention", "recurrent", "dense"))
            if kind == "attention":
                options = "" if self.chance(0.7) else ", bias=False"
                options += ", add_bias_kv=True" if self.chance(0.1) else ""
                options += f", kdim={width}, vdim={width}" if self.chance(0.1) else ""
                text = f"SelfAttention({width}, {rng.choice((1, 2, 4))}, {self.chance(0.4)}{options})"
                self._put(f"Residual({text})" if self.chance(0.5) else text)
                self.claimable.append(len(self.layers) - 1)
            elif kind == "recurrent" and self.exact:
                out = rng.choice((4, 8))
                self._put(f"Recurrent(nn.{rng.choice(('GRU', 'LSTM'))}({width}, {out}, batch_first=True))")
                width = out
            else:
                width = self._dense(width, ("nn.LayerNorm({})", "nn.RMSNorm({})"))
                width = self._linear(width, 4 * rng.choice((1, 2, 3)))
        self.width = width
        if self.family == "sequences":
            self._linear(width, 3)

    def _tokens(self) -> None:
        words, width = self.random.choice((5, 11, 30)), self.random.choice((4, 8, 12))
        self.input = f"tokens({{}}, {words}, ({self.batch}, {self.positions}))"
        self._put(f"nn.Embedding({words}, {width}{', padding_idx=1' if self.chance(0.2) else ''})")
        self._sequences(width)
        tied = self.chance(0.5)
        if self.width != width and tied:
            self._linear(self.width, width)
        if tied:
            self.layers.append(f"nn.Linear({width}, {words}, bias=False)")
            self.after.append(f"model[{len(self.layers) - 1}].weight = model[0].weight")
        else:
            self._linear(self.width, words)

    def _after(self) -> None:
        rng = self.random
        last = len(self.layers) - 1
        changeable = [i for i in self.linear if i != last]
        if changeable and self.chance(0.25):
            place = rng.choice(changeable)
            how = ["parametrizations.weight_norm({})", 'prune.l1_unstructured({}, "weight", 0.3)']
            how += ["parametrizations.spectral_norm({})"]
            how += ["parametrizations.orthogonal({})"] if self.exact else []
            self.after.append(rng.choice(how).format(f"model[{place}]"))
        elif self.family != "tokens" and self.chance(0.15):
            shared = "nn.Sequential(nn.Linear(3, 6), shared := nn.Linear(6, 6), nn.Tanh(), shared)"
            self.after.append(f"model.append({shared}.to({self.dtype}))")
        if self.claimable and self.chance(0.3):
            place = rng.choice(self.claimable)
            what = rng.choice(("[0:1]", "[1:]", "[:]"))
            self.after.append(f"[p.requires_grad_(False) for p in list(model[{place}].parameters()){what}]")
        if self.chance(0.1):
            self.after.append("model[0].requires_grad_(False)")

    def program(self, seed: int) -> str:
        """The function ``make``."""
        layers = ",\n        ".join(self.layers)
        lines = [f"torch.manual_seed({seed})", f"model = nn.Sequential(\n        {layers},\n    )"]
        lines += [f"model.to({self.dtype})"] if self.dtype != "torch.float32" else []
        lines += self.after
        return "def make():\n    " + "\n    ".join([*lines, "return model"]) + "\n"


def settings(rng: random.Random) -> dict[str, object]:
    """Random settings: a preset and a few of its values changed. Some combinations are refused."""
    found: dict[str, object] = {"preset": rng.choice(("fast", "paper")), "lr": rng.choice((0.01, 0.05, 0.1))}
    values: dict[str, tuple[object, ...]] = {
        "momentum": (0.0, 0.5, 0.9),
        "b_mu": (0.0, 0.9),
        "b_nu": (0.0, 0.999),
        "shrinkage": (0.0, 0.1),
        "ridge": (0.1, 0.5, 1.0),
        "cg_iterations": (1, 2, 4),
        "min_norm": (1e-2, 1.0),
        "weight_decay": (0.0, 0.01),
        "solver": ("pcg", "cholesky", "arrow", "matrix_free", "dual", "auto"),
        "cg_scope": ("layer", "neuron"),
        "trust_region": ("global", "layer", "neuron", "two_sided", "spectral", "rms"),
        "refresh_every": (1, 2, 3, 10),
        "b_s": (0.0, 0.5, 0.9),
        "ridge_mode": ("absolute", "relative"),
        "output_ridge": (0.0, 0.01, 1.0),
        "others": ("identity", "adamw"),
        "nesterov": (True, False),
        "block_size": (None, 1, 4, 7, 144),
        "others_lr": (0.1, 1.0),
        "sample_every": (1, 2, 3),
        "moment_dtype": (None, "torch.bfloat16", "torch.float32"),
        "master_weights": (True, False),
        "max_state_bytes": (None, 20_000, 1_000_000),
    }
    for name in rng.sample(sorted(values), rng.choice((0, 1, 2, 3, 5))):
        found[name] = rng.choice(values[name])
    return found
