"""Contenders that train a whole tokenizer for a step, and such that turn pictures into indices.

A step is encoder, quantizer, decoder, squared error, gradients and AdamW, with the same autoencoder around every
quantizer, on the same crops of the bundled photographs, 16 batches in turn. Ours and those of vector-quantize-pytorch
(VQP) run with their packages' defaults, none of them with a start from data.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from benchmarks.speed.cases import Call, Contender, Row
from benchmarks.speed.step import moving_average
from torch import Tensor, nn

from gritvq.export import load_program
from gritvq.images import ImageData, ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.quantizers import presets
from gritvq.quantizers.base import Quantizer

FACTOR, SIDE, BATCHES = 4, 32, 16
TOKENS = (SIDE // FACTOR) ** 2  # of a picture
WARMUP = 30  # steps before encoding: codes are among the vectors then, as they are for users
PEERS = {"VQP EMA": ("VectorQuantize", False), "VQP SimVQ": ("SimVQ", False), "VQP SimVQ flat": ("SimVQ", True)}
OURS: dict[str, Callable[[int, int], Quantizer]] = {
    "grit_vq": presets.grit_vq,
    "vq_vae_ema": moving_average,
    "simvq": presets.simvq,
}


class MoveAxis(nn.Module):
    """One axis to another place."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        """A view."""
        return x.movedim(self.source, self.target)


def small_network(dim: int, width: int = 64) -> tuple[nn.Module, nn.Module]:
    """Three plain convolutions on each side, with PyTorch's initialization; grids in between are (B, h, w, D)."""
    encoder = nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(width, dim, 3, 1, 1),
        MoveAxis(1, -1),
    )
    decoder = nn.Sequential(
        MoveAxis(-1, 1),
        nn.Conv2d(dim, width, 3, 1, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 3, 4, 2, 1),
    )
    return encoder, decoder


def residual_network(dim: int) -> tuple[nn.Module, nn.Module]:
    """The library's own, as wide as in the tables of image reconstruction."""
    sizes = {"dim": dim, "factor": FACTOR, "width": 64, "num_blocks": 2}
    return ImageEncoder(**sizes), ImageDecoder(**sizes)


class Autoencoder(nn.Module):
    """Networks around a quantizer, ours or another's; forward gives the loss of pictures (B, 3, H, W) in [0, 1].

    ``flat`` joins the tokens of all pictures, which some quantizers are faster with.
    """

    def __init__(self, networks: tuple[nn.Module, nn.Module], quantizer: nn.Module, flat: bool = False) -> None:
        super().__init__()
        (self.encoder, self.decoder), self.quantizer, self.flat = networks, quantizer, flat

    def forward(self, images: Tensor) -> Tensor:
        """A number."""
        latents = self.encoder(images)
        tokens = latents.flatten(0, 2)[None] if self.flat else latents.flatten(1, 2)
        if isinstance(self.quantizer, Quantizer):
            output = self.quantizer(tokens)
            quantized, loss = output.quantized, output.loss
        else:
            quantized, _, loss = self.quantizer(tokens)
        return F.mse_loss(self.decoder(quantized.reshape(latents.shape)), images) + loss.sum()


@functools.cache
def photographs(num: int) -> tuple[Tensor, ...]:
    """Batches of crops of the bundled photographs."""
    data = ImageData("photographs", size=SIDE, batch_size=num, seed=0)
    data.setup("fit")
    return tuple(itertools.islice(data.train_dataloader(), BATCHES))


def step_of(
    networks: Callable[[int], tuple[nn.Module, nn.Module]],
    quantizer: Callable[[int, int], nn.Module],
    row: Row,
    device: torch.device,
    threads: int | None = None,
    compiled: bool = False,
    flat: bool = False,
) -> Call:
    """What trains for one step and returns the loss."""
    torch.manual_seed(1)
    model = Autoencoder(networks(row.dim), quantizer(row.dim, row.codebook_size), flat).to(device).train()
    if isinstance(model.quantizer, Quantizer):
        groups = model.quantizer.parameter_groups(1e-3)
        own = {id(p) for p in model.quantizer.parameters()}
        optimizer = torch.optim.AdamW(
            [{"params": [p for p in model.parameters() if id(p) not in own]}, *groups], lr=1e-3
        )
        model.quantizer.attach(optimizer)
    else:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss_of = torch.compile(model) if compiled else model
    turn: Iterator[Tensor] = itertools.cycle([part.to(device) for part in photographs(max(1, row.n // TOKENS))])

    def run() -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(next(turn))
            loss.backward()
            optimizer.step()
        finally:
            torch.set_num_threads(before)
        return loss.detach()

    return run


def _peer(name: str, dim: int, codebook_size: int) -> nn.Module:
    import vector_quantize_pytorch

    return getattr(vector_quantize_pytorch, name)(dim=dim, codebook_size=codebook_size)


def contenders(device: torch.device) -> list[Contender]:
    """Every quantizer in the small autoencoder, with all threads and with one, and in the library's own."""
    found = []
    for suffix, networks, threads in (
        ("", small_network, None),
        (", one thread", small_network, 1),
        (", residual network", residual_network, None),
    ):
        if threads == 1 and device.type != "cpu":
            continue
        for name, make in OURS.items():
            found.append(Contender(name + suffix, functools.partial(step_of, networks, make, threads=threads)))
        for name, (peer, flat) in PEERS.items():
            make_peer = functools.partial(_peer, peer)
            found.append(
                Contender(
                    name + suffix,
                    functools.partial(step_of, networks, make_peer, threads=threads, flat=flat),
                    memory=lambda row: 6 * row.scores,
                    package="vector_quantize_pytorch",
                )
            )
    compiled = functools.partial(step_of, small_network, presets.grit_vq, compiled=True)
    return [*found, Contender("grit_vq, compiled", compiled)]


def encoding_contenders(device: torch.device) -> list[Contender]:
    """A tokenizer of a few steps in the library's own networks: as it is, compiled, and its exported programs."""
    exported = "gritvq[export]"
    return [
        Contender("encode", functools.partial(_encode, "plain")),
        Contender("encode, compiled", functools.partial(_encode, "compiled")),
        Contender("torch.export", functools.partial(_encode, "torch")),
        Contender("onnxruntime", functools.partial(_encode, "onnx"), package="onnxruntime", install=exported),
    ]


def _encode(way: Literal["plain", "compiled", "torch", "onnx"], row: Row, device: torch.device) -> Call:
    torch.manual_seed(1)
    networks, quantizer = residual_network(row.dim), presets.grit_vq(row.dim, row.codebook_size)
    step = step_of(lambda _: networks, lambda *_: quantizer, row, device)
    for _ in range(WARMUP):
        step()
    tokenizer = ImageTokenizer(networks[0], quantizer, networks[1]).eval()
    images = photographs(max(1, row.n // TOKENS))[0].to(device)
    if way in ("onnx", "torch"):
        with tempfile.TemporaryDirectory() as folder:
            run = load_program(tokenizer.export(folder, way)[0])
    else:
        run = torch.compile(tokenizer.encode) if way == "compiled" else tokenizer.encode
    return torch.no_grad()(functools.partial(run, images))
