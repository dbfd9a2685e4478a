"""Why layers of other kinds are not claimed: a reason for each of PyTorch's types that hold parameters.

``nn.Embedding`` is one that could be: its inputs are one-hot vectors, so that its second moment is diagonal and holds the share
of each token among all tokens. It was measured as an ``nn.Linear`` of one-hot vectors, which has exactly that metric, in a
character and a word model of Shakespeare (2 blocks of width 64, 66 and 2000 tokens, 200 steps of the default preset with a
cosine schedule).
Validation losses with the token embedding by its metric, against Adam's rule, means of three seeds:

| ``lr`` | characters: metric | Adam's rule | words: metric | Adam's rule |
| --- | --- | --- | --- | --- |
| 0.1 | 2.213 | 2.224 | 4.119 | 4.038 |
| 0.2 | 2.216 | 2.158 | 4.088 | 4.010 |

Adam's rule was better at the best rate of both, so embeddings follow the rule for other parameters.
"""

from __future__ import annotations

from torch import nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

_REASONS: dict[tuple[type[nn.Module], ...], str] = {
    (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, *_BATCH_NORMS, *_INSTANCE_NORMS): (
        "it scales every feature by itself and has no linear map between features"
    ),
    (nn.PReLU,): "its slopes are no linear map between features",
    (nn.Conv3d,): "no kernel forms the second moment of three-dimensional patches",
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d): (
        "its outputs are sums of overlapping patches, so that the second moment of its inputs is not the metric of its outputs"
    ),
    (nn.RNN, nn.LSTM, nn.GRU): (
        "it computes all its steps in one call, which does not show the inputs of the recurrent weights; a loop over nn.Linear "
        "layers would be claimed"
    ),
    (nn.RNNCell, nn.LSTMCell, nn.GRUCell): (
        "it reads both weights in one call, which does not show the inputs of its gates; a cell of nn.Linear layers would be "
        "claimed"
    ),
    (nn.Bilinear,): (
        "its inputs are the products of all features of two inputs, too many for a second moment; nn.Linear of their outer "
        "product would be claimed"
    ),
    (nn.Embedding,): (
        "its inputs are token numbers, whose second moment is diagonal: language models trained better by Adam's rule "
        "than by that metric"
    ),
    (nn.EmbeddingBag,): (
        "its inputs are bags of token numbers, whose second moment has the square of the vocabulary's number of entries"
    ),
}


def reason_for(cls: type[nn.Module]) -> str:
    """Why a layer of the type ``cls``, which is of no kind that is claimed, is not."""
    for types, reason in _REASONS.items():
        if issubclass(cls, types):
            return f"{cls.__name__} is not claimed: {reason}"
    if cls.__module__.partition(".")[0] == "torch":
        return f"{cls.__name__} is not claimed: LNB knows no second moment for this type"
    return f"{cls.__name__} is not claimed: its parameters are its own, not those of a layer that LNB knows"
