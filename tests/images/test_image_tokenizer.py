"""The tokenizer: any size in and out, saving and loading bitwise, damaged and foreign folders."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gritvq import (
    BSQ,
    LFQ,
    Component,
    FreeCodebook,
    HierarchicalQuantizer,
    MultiScaleQuantizer,
    NearestAssignment,
    ProductQuantizer,
    ProjectedQuantizer,
    Quantizer,
    RotationTrick,
    Tokenizer,
    VectorQuantizer,
    from_config,
    grit_vq,
    to_config,
    vq_vae,
)
from gritvq.images import ImageDecoder, ImageEncoder, ImageTokenizer
from gritvq.images.evaluation import constant_tokens
from gritvq.tokens import TokenRow, read_tokens, write_tokens
from zoo import PRESETS

each_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())


def small(preset: Callable[..., Quantizer] = grit_vq, channels: int = 3, factor: int = 4) -> Tokenizer:
    shape: dict[str, Any] = dict(channels=channels, factor=factor, width=8, num_blocks=1)
    return ImageTokenizer(ImageEncoder(6, **shape), preset(6, 32), ImageDecoder(6, **shape))


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (9, 14), (31, 5)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_pictures_of_any_size(size: tuple[int, int], factor: int) -> None:
    tokenizer, images = small(factor=factor), torch.rand(2, 3, *size)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, -(-size[0] // factor), -(-size[1] // factor), 1) and tokens.dtype == torch.int64
    decoded = tokenizer.decode(tokens, size)
    assert decoded.shape == images.shape and float(decoded.min()) >= 0 and float(decoded.max()) <= 1
    assert tokenizer(images).reconstruction.shape == images.shape
    single = tokenizer.encode(images[0])
    assert torch.equal(single, tokens[0])
    torch.testing.assert_close(tokenizer.decode(single, size), decoded[0], rtol=1e-4, atol=1e-5)
    assert tokenizer.decode(tokens).shape[-2:] == (tokens.shape[1] * factor, tokens.shape[2] * factor)


def test_what_decode_shows_is_what_forward_saw() -> None:
    tokenizer, images = small().eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = tokenizer(images)
    assert torch.equal(tokenizer.encode(images), expected.quantization.indices)
    assert torch.equal(tokenizer.decode(tokenizer.encode(images)), expected.reconstruction.clamp(0, 1))


def test_encode_does_not_train() -> None:
    tokenizer = small(PRESETS["vq_vae_ema"])
    tokenizer.encode(torch.rand(1, 3, 8, 8))
    quantizer = tokenizer.quantizer
    assert isinstance(quantizer, VectorQuantizer) and quantizer.statistics is not None
    assert tokenizer.training and not quantizer.statistics.counts.any()


def test_bytes_and_floats_agree() -> None:
    tokenizer, pixels = small(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(pixels.float() / 255))
    assert torch.equal(tokenizer.encode(pixels), tokenizer.encode(pixels.double() / 255))


class TestPicturesOfOtherKinds:
    """Pillow pictures, arrays and lists give the tokens of the tensors they stand for."""

    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)

    def test_one_picture(self) -> None:
        tokenizer = small()
        expected = tokenizer.encode(torch.from_numpy(self.pixels).permute(2, 0, 1))
        assert expected.shape == (3, 4, 1)
        assert torch.equal(tokenizer.encode(self.pixels), expected)
        assert torch.equal(tokenizer.encode(Image.fromarray(self.pixels)), expected)
        opaque = np.concatenate([self.pixels, np.full((9, 14, 1), 255, np.uint8)], 2)
        assert torch.equal(tokenizer.encode(opaque), expected)

    def test_colors_are_brought_to_the_tokenizers(self) -> None:
        gray = self.pixels[..., 0]
        three, one = small(), small(channels=1)
        assert torch.equal(three.encode(gray), three.encode(torch.from_numpy(gray).expand(3, -1, -1)))
        assert torch.equal(one.encode(Image.fromarray(gray)), one.encode(torch.from_numpy(gray)[None]))

    def test_a_list_of_different_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gritvq.images.tokenizer._PIXELS_AT_ONCE", 200)
        tokenizer = small()
        images: list[Any] = [torch.rand(3, 8, 8), self.pixels, torch.rand(3, 9, 14), *torch.rand(4, 3, 8, 8)]
        tokens = tokenizer.encode(images)
        assert [tuple(each.shape) for each in tokens] == [(2, 2, 1), (3, 4, 1), (3, 4, 1), *[(2, 2, 1)] * 4]
        assert all(torch.equal(each, tokenizer.encode(image)) for each, image in zip(tokens, images, strict=True))
        assert tokenizer.encode([]) == []

    def test_what_is_no_picture(self) -> None:
        tokenizer = small()
        wrong: list[tuple[Any, str]] = [
            (self.pixels / 255, r"got an array \(9, 14, 3\) of float64; put several images in a list"),
            (self.pixels.transpose(2, 0, 1), r"got an array \(3, 9, 14\) of uint8"),
            (Path("a.png"), "got PosixPath"),
            ([torch.rand(2, 3, 8, 8)], r"expected single images in the list, got \(2, 3, 8, 8\)"),
        ]
        for images, message in wrong:
            with pytest.raises(ValueError, match=message):
                tokenizer.encode(images)


@each_preset
def test_saved_and_loaded_gives_bitwise_the_same(preset: Callable[..., Quantizer], tmp_path: Path) -> None:
    tokenizer, images = small(preset).eval(), torch.rand(3, 3, 12, 20)
    folder = tokenizer.save_pretrained(tmp_path / "deep" / "tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tokenizer"]
    loaded = Tokenizer.from_pretrained(folder)
    tokens = tokenizer.encode(images)
    assert torch.equal(loaded.encode(images), tokens) and not loaded.training
    assert torch.equal(loaded.decode(tokens), tokenizer.decode(tokens))
    assert to_config(loaded) == to_config(tokenizer)
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "gritvq" and config["format_version"] == 1


LAYOUTS: dict[str, Callable[[int, int], Quantizer]] = {
    "multiscale": lambda d, k: MultiScaleQuantizer(VectorQuantizer(FreeCodebook(d, k), learning=[]), [1, 2, 4]),
    "multiscale-lfq": lambda d, k: MultiScaleQuantizer(LFQ(d), [2, 4], dropout=0.5),
    "product-of-multiscales": lambda d, k: ProductQuantizer([MultiScaleQuantizer(BSQ(d // 2), [1, 4])] * 2),
    "hierarchical": lambda d, k: HierarchicalQuantizer([vq_vae(d, k), grit_vq(d, k)], d),
    "projected-hierarchical": lambda d, k: ProjectedQuantizer(HierarchicalQuantizer([vq_vae(3, k)] * 3, 3), d),
    "product-tokens": lambda d, k: ProductQuantizer([vq_vae(d, k)] * 2, split="tokens"),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
class TestLayouts:
    def test_there_and_back(self, make: Callable[[int, int], Quantizer], tmp_path: Path) -> None:
        tokenizer, images = small(make).eval(), torch.rand(2, 3, 15, 14)
        tokens = tokenizer.encode(images)
        quantizer = tokenizer.quantizer
        assert tokens.shape == (2, *quantizer.token_shape((4, 4)), len(quantizer.codebook_sizes))
        assert tokenizer.num_token_axes == tokens.ndim - 2
        with torch.no_grad():
            expected = tokenizer(images).reconstruction.clamp(0, 1)
        assert torch.equal(tokenizer.decode(tokens, (15, 14)), expected)
        assert tokenizer.decode(tokens).shape == (2, 3, 16, 16)
        one = tokenizer.encode(images[0])
        assert torch.equal(one, tokens[0]) and tokenizer.decode(one, (15, 14)).shape == (3, 15, 14)
        loaded = Tokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "t"))
        assert torch.equal(loaded.decode(loaded.encode(images)), tokenizer.decode(tokens))
        assert torch.equal(tokenizer.fold().encode(images), tokens)
        for ending in ("npz", "parquet"):
            items = [TokenRow(f"{n}.png", own) for n, own in enumerate(tokens)]
            for item, own in zip(read_tokens(write_tokens(tmp_path / f"t.{ending}", items)), tokens, strict=True):
                assert torch.equal(item.tokens, own) and torch.equal(
                    tokenizer.decode(item.tokens), tokenizer.decode(own)
                )

    def test_images_that_do_not_fit(self, make: Callable[[int, int], Quantizer]) -> None:
        tokenizer = small(make)
        for run in (tokenizer.encode, tokenizer):
            with pytest.raises(ValueError, match=r"expected images whose 3 x 5 tokens of 4 x 4 pixels fit the layout"):
                run(torch.rand(1, 3, 12, 20))
        axes = tokenizer.num_token_axes
        with pytest.raises(ValueError, match="expected tokens"):
            tokenizer.decode(torch.zeros((1,) * (axes + 3), dtype=torch.int64))
        with pytest.raises(ValueError, match="expected a size within 3 pixels below 16 x 16, got 12 x 16"):
            tokenizer.decode(tokenizer.encode(torch.rand(1, 3, 16, 16)), (12, 16))

    def test_fields_of_one_code(self, make: Callable[[int, int], Quantizer]) -> None:
        quantizer = small(make).quantizer
        tokens = constant_tokens(quantizer, torch.tensor([3, 1]))
        assert tokens.shape[-1] == len(quantizer.codebook_sizes) and tokens.shape[0] == 2
        assert set(tokens[0, ..., 0].unique().tolist()) - {-1} == {3} and bool((tokens[..., 1:] <= 0).all())
        assert quantizer.decode(tokens).ndim == 4


def test_layouts_of_more_axes_than_an_image_are_refused() -> None:
    quantizer = grit_vq(6, 8)
    quantizer.layout = (2, 2, 2)
    with pytest.raises(ValueError, match=r"expected a quantizer of vectors, sequences or grids, got VectorQuantizer"):
        ImageTokenizer(ImageEncoder(6, width=8), quantizer, ImageDecoder(6, width=8))


def test_saving_again_replaces_and_saving_elsewhere_is_refused(tmp_path: Path) -> None:
    first, second = small(), small()
    images = torch.rand(1, 3, 8, 8)
    first.save_pretrained(tmp_path / "t")
    second.save_pretrained(tmp_path / "t")
    assert torch.equal(Tokenizer.from_pretrained(tmp_path / "t").encode(images), second.encode(images))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    with pytest.raises(ValueError, match="expected a new folder or one that holds a gritvq tokenizer"):
        first.save_pretrained(tmp_path / "thesis")
    with pytest.raises(ValueError, match="expected a new folder"):
        first.save_pretrained(tmp_path / "thesis" / "chapter.tex")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize(
    "config",
    ['{"model_type": "llama"}', '{"format": "gritvq", "format_version": 1, "backbone": {}}', '{"format": "gritvq", '],
)
def test_saving_leaves_models_of_other_kinds_alone(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"theirs")
    with pytest.raises(ValueError, match="expected a new folder or one that holds a gritvq tokenizer"):
        small().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == config
    assert (tmp_path / "model.safetensors").read_bytes() == b"theirs"


def test_a_failing_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small()
    tokenizer.save_pretrained(tmp_path / "t")
    before = (tmp_path / "t" / "model.safetensors").read_bytes()
    monkeypatch.setattr("gritvq.saving.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        small().save_pretrained(tmp_path / "t")
    assert (tmp_path / "t" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_replaced_parts_are_saved_as_they_are(tmp_path: Path) -> None:
    tokenizer, images = small().eval(), torch.rand(2, 3, 16, 16)
    tokens = tokenizer.encode(images)
    tokenizer.quantizer = tokenizer.quantizer.fold()
    loaded = Tokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "t"))
    assert torch.equal(loaded.encode(images), tokens)
    quantizer = grit_vq(4, 8)
    quantizer.surrogate = RotationTrick()
    rebuilt = from_config(to_config(quantizer))
    assert isinstance(rebuilt, VectorQuantizer) and type(rebuilt.surrogate) is RotationTrick
    quantizer = VectorQuantizer(FreeCodebook(4, 8))  # its assignment is the default
    quantizer.assignment = NearestAssignment("cosine")
    rebuilt = from_config(to_config(quantizer))
    assert isinstance(rebuilt, VectorQuantizer) and rebuilt.assignment.metric == "cosine"


def test_encode_leaves_every_part_in_its_mode() -> None:
    tokenizer = small().train()
    tokenizer.encoder.eval()
    tokenizer.decode(tokenizer.encode(torch.rand(1, 3, 8, 8)))
    assert tokenizer.training and not tokenizer.encoder.training and tokenizer.decoder.training


def test_folded_tokenizer_is_smaller_and_the_same(tmp_path: Path) -> None:
    tokenizer, images = small().eval(), torch.rand(2, 3, 16, 16)
    folded = Tokenizer.from_pretrained(tokenizer.fold().save_pretrained(tmp_path / "folded"))
    tokens = tokenizer.encode(images)
    assert torch.equal(folded.encode(images), tokens)
    assert torch.equal(folded.decode(tokens), tokenizer.decode(tokens))
    assert sum(p.numel() for p in folded.quantizer.parameters()) == 32 * 6
    tokenizer.train().fold()
    assert all(module.training for module in tokenizer.modules())


class TestDamaged:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return small().save_pretrained(tmp_path / "tokenizer")

    def refused(self, folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_pretrained(folder)

    def edit(self, folder: Path, **changes: Any) -> None:
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in config.items() if name != "sha256"}))

    def test_missing(self, folder: Path) -> None:
        self.refused(folder / "nowhere", "expected a tokenizer folder or a Hub name")
        self.refused(folder / "config.json", "expected a tokenizer folder or a Hub name")
        (folder / "model.safetensors").unlink()
        self.refused(folder, r"expected model\.safetensors in .*found none; copy the whole folder")
        (folder / "config.json").unlink()
        self.refused(folder, r"expected a tokenizer folder with config\.json, got .* without one")

    def test_half_a_file(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        self.refused(folder, r"got one with another checksum; it is damaged .*copy the whole folder again")
        self.edit(folder)  # as before there were checksums
        self.refused(folder, r"expected readable tensors in .*copy it again")
        (folder / "config.json").write_text('{"format": "gritvq", ')
        self.refused(folder, r"expected readable JSON in .*copy it again")

    def test_newer_or_foreign(self, folder: Path) -> None:
        self.edit(folder, format_version=99)
        self.refused(folder, r"expected format version 1 or older in .*, got 99; update gritvq")
        self.edit(folder, format="another")
        self.refused(folder, "expected a tokenizer folder of gritvq in .*got something else")
        (folder / "config.json").write_text("[1, 2]")
        self.refused(folder, "expected a tokenizer folder of gritvq in .*got something else")
        (folder / "config.json").write_text('{"format": "gritvq", "format_version": 1}')
        self.refused(folder, "expected the key 'tokenizer'")

    def test_weights_of_another_tokenizer(self, folder: Path) -> None:
        other = small(channels=1).save_pretrained(folder.parent / "other")
        shutil.copy(other / "model.safetensors", folder / "model.safetensors")
        self.refused(folder, "another checksum; it is damaged or of another artifact")
        self.edit(folder)
        self.refused(folder, "are not from the same tokenizer")

    def test_a_missing_tensor(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("quantizer.codebook.base")
        save_file(tensors, folder / "model.safetensors")
        self.edit(folder)
        self.refused(folder, r"got others at quantizer\.codebook\.base")

    def test_classes_from_elsewhere_need_trust(self, folder: Path) -> None:
        description = json.loads((folder / "config.json").read_text())["tokenizer"]
        description["init_args"]["quantizer"] = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
        self.edit(folder, tokenizer=description)
        self.refused(folder, r"expected a class of \['gritvq'\], got 'subprocess\.Popen'")
        with pytest.raises(ValueError, match="expected a gritvq component, got 'subprocess"):
            Tokenizer.from_pretrained(folder, trusted=["subprocess"])


class Own(FreeCodebook):
    """A user's class, from a module of their own."""


def test_a_users_class_loads_when_trusted(tmp_path: Path) -> None:
    tokenizer = small(lambda d, k: VectorQuantizer(Own(d, k)))
    folder = tokenizer.save_pretrained(tmp_path / "t")
    with pytest.raises(ValueError, match=r"pass trusted=\['test_image_tokenizer'\]"):
        Tokenizer.from_pretrained(folder)
    loaded = Tokenizer.from_pretrained(folder, trusted=["test_image_tokenizer"])
    assert isinstance(loaded.quantizer, VectorQuantizer) and type(loaded.quantizer.codebook) is Own


def test_the_hub_is_asked_for_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = small().save_pretrained(tmp_path / "t")
    asked: list[str] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert isinstance(Tokenizer.from_pretrained("somebody/something"), Tokenizer) and asked == ["somebody/something"]

    def unreachable(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"or a reachable Hub name, got 'somebody/something' \(ConnectionError\)"):
        Tokenizer.from_pretrained("somebody/something")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"for 'runs/typo', which is no folder here, got none; .*'gritvq\[hub\]'"):
        Tokenizer.from_pretrained("runs/typo")


class TestBadInput:
    def test_pictures(self) -> None:
        tokenizer = small()
        for images, message in (
            (torch.rand(2, 1, 8, 8), r"expected images \(B, 3, H, W\)"),
            (torch.rand(8, 8), "expected images"),
            (torch.rand(2, 3, 0, 8), "expected images"),
            (
                torch.randint(0, 255, (1, 3, 8, 8)),
                r"expected uint8 images or floating ones in \[0, 1\], got torch\.int64",
            ),
            (255 * torch.rand(1, 3, 8, 8), r"expected values in \[0, 1\], got .*divide by 255"),
            (2 * torch.rand(1, 3, 8, 8) - 1, r"expected values in \[0, 1\]"),
            (torch.full((1, 3, 8, 8), float("nan")), r"expected values in \[0, 1\]"),
        ):
            with pytest.raises(ValueError, match=message):
                tokenizer.encode(images)

    def test_tokens(self) -> None:
        tokenizer = small()
        tokens = torch.zeros(1, 2, 2, 1, dtype=torch.int64)
        for bad, size, message in (
            (tokens + 32, None, r"expected indices below \(32,\).*got 32; were they made with another tokenizer"),
            (tokens[..., 0], None, "expected integer indices"),
            (tokens[0, 0], None, r"expected tokens \(B, h, w, Q\)"),
            (tokens.float(), None, "expected integer indices"),
            (tokens, (8, 9), r"expected a size within 3 pixels below 8 x 8, got 8 x 9"),
            (tokens, (4, 8), r"expected a size within 3 pixels below 8 x 8, got 4 x 8"),
        ):
            with pytest.raises(ValueError, match=message):
                tokenizer.decode(bad, size)

    def test_parts_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="expected the encoder to have dim=5 as the quantizer has, got 6"):
            ImageTokenizer(ImageEncoder(6, width=8), grit_vq(5, 8), ImageDecoder(5, width=8))
        with pytest.raises(ValueError, match="expected the decoder to have dim=5"):
            ImageTokenizer(ImageEncoder(5, width=8), grit_vq(5, 8), ImageDecoder(6, width=8))

    @pytest.mark.parametrize(("setting", "one", "other"), [("factor", 4, 8), ("factor", 8, 4), ("channels", 1, 3)])
    def test_parts_whose_pictures_differ(self, setting: str, one: int, other: int) -> None:
        encoder = ImageEncoder(5, width=8, **{setting: one})
        message = f"expected the decoder to have {setting}={one} as the encoder has, got {other}; make them equal"
        with pytest.raises(ValueError, match=message):
            ImageTokenizer(encoder, grit_vq(5, 8), ImageDecoder(5, width=8, **{setting: other}))
        same = ImageDecoder(5, width=8, **{setting: one})
        assert getattr(ImageTokenizer(encoder, grit_vq(5, 8), same), setting) == one

    def test_parts_that_do_not_say_what_they_are(self) -> None:
        part = ImageDecoder(5, width=8)
        del part.factor
        with pytest.raises(ValueError, match=r"expected the decoder to have dim, .* got ImageDecoder without factor"):
            ImageTokenizer(ImageEncoder(5, width=8), grit_vq(5, 8), part)


class TestDescriptions:
    @pytest.mark.parametrize(
        ("description", "message"),
        [
            ({}, "expected a description with a 'class_path'"),
            ({"class_path": "FreeCodebook"}, "expected a description with a 'class_path'"),
            (
                {"class_path": "gritvq.quantizers.codebooks.Nothing"},
                r"expected a class that exists, got .*is gritvq too old",
            ),
            ({"class_path": "__main__.Encoder"}, "put the class of the script into a file of its own, and save again"),
            ({"class_path": "gritvq.quantizers.functional.kmeans"}, "expected a gritvq component"),
            (
                {"class_path": "gritvq.quantizers.codebooks.FreeCodebook", "init_args": {"size": 3}},
                "expected arguments that",
            ),
        ],
    )
    def test_bad_ones(self, description: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            from_config(description)

    def test_arguments_must_be_plain(self) -> None:
        class Strange(Component):
            def __init__(self, value: object) -> None:
                super().__init__()

        with pytest.raises(ValueError, match="expected plain values or gritvq components as constructor arguments"):
            to_config(Strange(object()))

    def test_constructors_must_name_their_arguments(self) -> None:
        class Vague(FreeCodebook):
            def __init__(self, *args: int, **kwargs: int) -> None:
                super().__init__(*args, **kwargs)  # type: ignore[arg-type]

        with pytest.raises(ValueError, match="expected a constructor with named arguments"):
            to_config(Vague(2, 3))

    def test_generators_are_left_out(self) -> None:
        book = FreeCodebook(2, 3, generator=torch.Generator().manual_seed(1))
        assert to_config(book)["init_args"]["generator"] is None
