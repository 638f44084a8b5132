"""What the program says: texts as they are, and one message for whatever is wrong."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from gritvq.cli import _program, main
from gritvq.cli.errors import explained, guarded
from gritvq.cli.output import table
from gritvq.items import ResidualKMeans
from gritvq.quantizers import presets
from program import wrong

pytestmark = pytest.mark.usefixtures("own_folder")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, columns: int, *content: Any) -> list[str]:
    """Lines of a table."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", stream)
    table(*content)
    return stream.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


class TestTable:
    @pytest.mark.parametrize("text", ["Shampoo [refill]", "Soap [/]", "Kit [@home]", "a [link=x] y", ":heart: of 3"])
    def test_texts_are_no_markup(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = shown(io.StringIO(), monkeypatch, 80, text, ["key", text], [["1", text]])
        assert sum(text in line for line in lines) == 3

    def test_characters_that_move_the_cursor_are_blanks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = shown(io.StringIO(), monkeypatch, 80, "t", None, [["a\nb", "c\x1b[2Jd"]])
        assert any("a b" in line and "c [2Jd" in line for line in lines)

    CONTENT = (
        "comparison",
        ["K", "method", "PSNR (dB)", "perplexity", "what it is"],
        [["1024", "grit_vq without transform", "29.13 (28.90-29.30)", "1,000", "word " * 30 + "end"]] * 2,
    )

    def test_a_file_has_a_line_for_each_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = shown(io.StringIO(), monkeypatch, 80, *self.CONTENT)
        assert sum("grit_vq without transform" in line and line.count("word") == 30 for line in lines) == 2

    @pytest.mark.parametrize("columns", [20, 40, 80, 120, 200])
    def test_no_terminal_is_too_narrow(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = shown(Terminal(), monkeypatch, columns, *self.CONTENT)
        assert max(map(len, lines)) <= columns and not any("…" in line for line in lines)
        words = " ".join(lines).replace("│", " ").replace("┃", " ").split()
        joined = "".join(words)
        assert all(joined.count(part) == count for part, count in (("word", 60), ("29.13", 2), ("(28.90-29.30)", 2)))
        if columns >= 40:
            assert {"PSNR", "(dB)", "perplexity", "method", "29.13"} <= set(words)


def text_of(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


NESTED = b"[" * 100_000
FIT = ("--data.path", "./nowhere")


CONFIGURED = {
    "fit images": FIT,
    "fit items": ("--data.folder", "./nowhere"),
    "fit text": FIT,
    "fit prior": ("--data.train", "./nowhere", "--tokenizer", "nowhere"),
    "validate": ("nowhere",),
    "inspect": ("nowhere",),
    "evaluate": ("nowhere", "nowhere", "--features", "torch.nn.Identity"),
    "compare": FIT,
    "semantic-ids fit": ("--data", "nowhere"),
}
OTHERS = {
    "demo": ("--steps", "-1"),
    "doctor": ("nowhere",),
    "encode": ("nowhere", "--tokenizer", "nowhere"),
    "decode": ("nowhere", "--tokenizer", "nowhere"),
    "images-from": ("./nowhere",),
    "generate": ("nowhere",),
    "export": ("nowhere",),
    "presets": ("nothing",),
    "push": ("nowhere", "owner/name"),
    "recommend": ("nowhere", "--user", "x"),
    "semantic-ids encode": ("nowhere", "--embeddings", "nowhere"),
    "semantic-ids report": ("nowhere",),
    "semantic-ids add": ("nowhere", "--data", "nowhere"),
    "semantic-ids convert": ("nowhere", "--out", "nowhere"),
    "semantic-ids vectors": ("--data.folder", "nowhere"),
    "completion": ("nothing",),
}


TAKERS = {"data.train", "data.validation", "data.label"}  # a mapping as a list of its names; null for no labels


def leaves(parser: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Verbs and jobs with their parsers."""
    if parser._subcommands_action is None:
        yield name.strip(), parser
        return
    for word, own in parser._subcommands_action.choices.items():
        yield from leaves(own, f"{name} {word}")


def parsers() -> dict[str, Any]:
    return dict(leaves(_program([], whole=True)[0]))


def settings_of(parser: Any) -> dict[str, Any]:
    """Names and defaults of all that may be left out."""
    every = {action.dest: action.default for action in parser._actions if action.option_strings}
    return {
        name: default
        for name, default in every.items()
        if name.split(".")[-1] not in ("help", "config", "print_config")
    }


def nested(name: str, value: Any) -> Any:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


class TestNull:
    """Null and values of no type, for the arguments of every verb; the data is nowhere, so nothing runs."""

    def wrong(self, words: list[str], content: Any, capsys: pytest.CaptureFixture[str]) -> str:
        Path("a.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return wrong(words, capsys)

    def test_no_verb_is_forgotten(self) -> None:
        assert parsers().keys() == CONFIGURED.keys() | OTHERS.keys()

    @pytest.mark.parametrize("verb", sorted(CONFIGURED.keys() - {"fit items", "fit prior"}))
    def test_some_in_a_file(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.check_file(verb, 9, capsys)

    @pytest.mark.soak
    @pytest.mark.parametrize("verb", CONFIGURED)
    def test_all_in_a_file(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.check_file(verb, 1, capsys)

    def check_file(self, verb: str, every: int, capsys: pytest.CaptureFixture[str]) -> None:
        words = [*verb.split(), *CONFIGURED[verb], "--config", "a.yaml"]
        for name, default in list(settings_of(parsers()[verb]).items())[::every]:
            said = self.wrong(words, nested(name, None), capsys)
            assert name in said or default is None or name in TAKERS
            said = self.wrong(words, nested(name, {"x": [0]}), capsys)
            assert name in said or name in TAKERS

    @pytest.mark.parametrize("verb", OTHERS)
    def test_on_the_command_line(self, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
        for name in settings_of(parsers()[verb]):
            for value in ("null", "{x: [0]}", ""):
                wrong([*verb.split(), *OTHERS[verb], f"--{name}={value}"], capsys)


class TestHelp:
    OBJECTS = re.compile(r"<function|<lambda|<locals>|functools\.| object at |0x[0-9a-f]{6}")

    def check(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == 0
        said = " ".join(capsys.readouterr().out.split())  # however the lines are broken
        assert len(said) > 100 and not self.OBJECTS.search(said), words

    def test_of_verbs_shows_no_objects(self, capsys: pytest.CaptureFixture[str]) -> None:
        for verb in parsers():
            self.check([*verb.split(), "--help"], capsys)
        self.check(["--help"], capsys)
        self.check(["semantic-ids", "--help"], capsys)
        self.check(["fit", "--help"], capsys)

    def test_of_classes_and_presets_shows_no_objects(self, capsys: pytest.CaptureFixture[str]) -> None:
        for name in presets.__all__:
            self.check(["presets", name], capsys)
        self.check(["fit", "--tokenizer.quantizer.help", "gritvq.FSQ"], capsys)
        self.check(["fit", "--tokenizer.encoder.help", "gritvq.images.ImageEncoder"], capsys)
        self.check(["fit", "--tokenizer.decoder.help", "gritvq.images.ImageDecoder"], capsys)
        self.check(["semantic-ids", "fit", "--tokenizer.help", "gritvq.items.ResidualKMeans"], capsys)


class TestOneMessage:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"tokenizer: {quantizer: {class_path: gritvq.fsq, init_args: null}}", "settings by name under init_args"),
            (b"tokenizer: {quantizer: {class_path: gritvq.fsq, init_args: [1]}}", "settings by name under init_args"),
            (b"tokenizer: {encoder: {class_path: torch.nn.Identity}}", "torch.nn.Identity"),
            (b"tokenizer: {encoder: null}", "expected a value for tokenizer.encoder, got null"),
            (NESTED, "nested a few levels deep"),
            (b"\xff\xfe\x00abc", "expected text in UTF-8"),
            (b"", "config"),
            (b"- a\n- b\n", "config"),
            (b"task: null", "expected settings of task, got null"),
            (b"plan: null", "expected settings of plan, got null"),
            (b"task: 0.5", "expected settings of task, got 0.5"),
            (b"plan: [1]", "plan"),
            (b"tokenizer: 3", "tokenizer"),
            (b'data: "\\0"', "expected arguments that fit together"),
            (b"out: ''", "expected a value for out, got an empty text"),
            (b"preset: 5", "preset"),
            (b"tokenizer: {quantizer: {class_path: gritvq.vq_vae, init_args: {codebook_sise: 4}}}", "'codebook_size'?"),
            (b"tokenizer: {quantizer: {class_path: gritvq.fsqq}}", "did you mean 'fsq'?"),
            (b"tokenizer: {quantizer: {class_path: null}}", "expected the name of a class under class_path"),
            (b"plan: {max_stepz: 3}", "did you mean 'plan.max_steps'?"),
            (b"preset: fsqq", "did you mean 'fsq'?"),
            (b"init_from: ''", "expected a value for init_from, got an empty text"),
            (b"init_from: 3", "init_from: Expected a str\n  Given value: 3"),
            (b"callbacks: 3", "callbacks: Expected a list\n  Given value: 3"),
            (b"loggers: [nothing]", "loggers: Expected a dot import path string: nothing"),
            (b"loggers: [{class_path: gritvq.FSQ}]", "gritvq.FSQ"),
        ],
        ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
    )
    def test_of_configurations(self, content: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert message in wrong(["fit", "--config", text_of("a.yaml", content), *FIT], capsys)

    def test_of_a_module_that_raises(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "own_parts.py").write_text("raise RuntimeError('no parts today')")
        monkeypatch.syspath_prepend(str(tmp_path))
        content = b"tokenizer: {encoder: {class_path: own_parts.Encoder}}"
        assert "no parts today" in wrong(["fit", "--config", text_of("a.yaml", content), *FIT], capsys)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["fitt"], "did you mean 'fit'?"),
            (["--hlep"], "did you mean '--help'?"),
            (["semantic-ids", "raport"], "did you mean 'report'?"),
            (["demo", "--stepz", "3"], "did you mean '--steps'?"),
            (["fit", "--plan.max_stepz=3"], "did you mean '--plan.max_steps'?"),
            (["fit", "--preset", "fsqq"], "did you mean 'fsq'?"),
            (["validate", "x", "--data.pth", "y"], "did you mean '--data.path'?"),
            (["doctor", "x", "--num_imges", "3"], "did you mean '--num_images'?"),
            (["doctor", "x", "--num_images", "0"], "expected num_images >= 1, got 0"),
            (["doctor", "x"], "expected a tokenizer folder or a Hub name 'owner/name', got 'x', which is neither"),
            (["inspect", "x", "--uot", "y"], "did you mean '--out'?"),
            (["encode", "x", "--tokeniser", "y"], "did you mean '--tokenizer'?"),
            (["decode", "x", "--tokeniser", "y"], "did you mean '--tokenizer'?"),
            (["encode", "x", "--tokenizer", "y", "--unit", "page"], "invalid choice: 'page'"),
            (["encode", "x", "--tokenizer", "y", "--batch_size", "0"], "expected batch_size >= 1, got 0"),
            (["generate", "x", "--promt", "y"], "did you mean '--prompt'?"),
            (["generate", "x", "--num", "0"], "expected num >= 1, got 0"),
            (["generate", "x"], "or one of a model by 'gritvq fit text', got x, which has no prior/"),
            (["export", "x", "--fromat", "onnx"], "did you mean '--format'?"),
            (["compare", "--sedes", "[1]"], "did you mean '--seeds'?"),
            (["presets", "--dimm", "3"], "did you mean '--dim'?"),
            (["presets", "fsqq"], "did you mean 'fsq'?"),
            (["push", "x", "owner/name", "--licence", "mit"], "did you mean '--license'?"),
            (["push", "x"], "gritvq push: error: the following arguments are required: name"),
            (["push", "x", "owner/name"], "got 'x', which is not a folder"),
            (["push", "x", "name"], "expected a name 'owner/name' for the Hub"),
            (["recommend", "x", "--usr", "3"], "did you mean '--user'?"),
            (["semantic-ids", "fit", "--embedings", "x"], "did you mean '--embeddings'?"),
            (["recommend"], "gritvq recommend: error: the following arguments are required: run"),
            (["semantic-ids", "fit"], "gritvq semantic-ids fit: error: the following arguments are required: data"),
            (["encode", "x", "--tokenizer", ""], "expected a value for tokenizer, got an empty text"),
            (["fit", "--preset", "vq_vae", "--tokenizer.quantizer", "gritvq.fsq"], "expected one quantizer"),
            (
                ["fit", "images", "--channels", "1", "--data.channels", "3"],
                "one value of channels, got 1 and data.channels 3",
            ),
            (["fit", "imagse"], "did you mean 'images'?"),
            (["fit", "text"], "expected a file or folder of text, got 'nowhere', which does not exist"),
            (["fit", "text", "--model.widht", "3"], "did you mean 'width'?"),
            (["fit", "text", "--model", "gritvq.FSQ"], "gritvq.FSQ"),
            (["fit", "text", "--data.vocabulary", "12"], "expected vocabulary >= 256, got 12"),
            (["fit", "text", "--data.reading.encoding", "utf9"], "the name of an encoding, got 'utf9'"),
            (["fit", "text", "--data.segmentation.max_tokens", "1"], "expected max_tokens >= 2, got 1"),
            (["fit", "--channels", "2"], "1 (gray) or 3 (RGB), got 2"),
            (["fit", "--codebook_size", "0"], "expected codebook_size >= 1, got 0"),
            (["fit", "--init_from", ""], "expected a value for init_from, got an empty text"),
            (
                ["fit", "--init_from", "nothing", "--data.path", "photographs"],
                "expected a tokenizer folder or a Hub name",
            ),
            (["fit", "--callbacks", "[gritvq.FSQ]"], "gritvq.FSQ"),
            (["fit", "--plan.accelerator", "nonsense", "--data.path", "photographs"], "nonsense"),
            (["validate", "x", "--device", "nonsense"], "expected a device that this machine has, got 'nonsense'"),
            (["encode", "x", "--tokenizer", "y", "--trusted", "3"], "trusted: Expected a list. Got value: 3"),
            (["validate", "x", "--trusted", "[nothing]"], "expected a tokenizer folder or a Hub name"),
            (["completion", "fish"], "invalid choice: 'fish'"),
            (["completion"], "gritvq completion: error: the following arguments are required: shell"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_of_the_command_line(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert message in wrong([*words, *(FIT if words[0] == "fit" and "photographs" not in words else ())], capsys)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OSError(errno.ENOSPC, "No space left on device", "a.npz"), "room on the disk to write a.npz, got none"),
            (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file"), "room on the disk"),
            (PermissionError(errno.EACCES, "Permission denied", "a"), "got 'a': Permission denied"),
            (RecursionError("maximum recursion depth exceeded"), "nested a few levels deep"),
            (MemoryError(), "fits into memory"),
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU's memory, got more; take"),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "fits into memory"),
            (RuntimeError("a fault of ours"), None),
            (OSError(errno.EFBIG, "File too large"), "room on the disk to write, got none"),
            (ModuleNotFoundError("No module named 'onnx'", name="onnx"), "the package onnx, got none; pip install"),
            (ValueError("expected a, got b"), "expected a, got b"),
            (ValueError(), "ValueError"),
            (TypeError("a fault of ours"), None),
        ],
    )
    def test_of_errors(self, error: Exception, message: str | None) -> None:
        said = explained(error)
        assert (said is None) == (message is None) and (message or "") in (said or "")

    def test_whatever_arguments_raise_is_their_fault(self) -> None:
        def refuse() -> None:
            raise AttributeError("no such part")

        with pytest.raises(ValueError, match=r"expected arguments that fit together.*no such part"):
            guarded(refuse)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize(
    ("closed", "expected", "message"),
    [(True, 141, ""), pytest.param(False, 2, "expected room on the disk", marks=pytest.mark.soak)],
)
def test_output_that_nobody_takes(closed: bool, expected: int, message: str) -> None:
    """By a closed pipe or a full disk; a fault of ours is a traceback, or what the interpreter says when it ends."""
    code = "import sys; from gritvq.cli import main; sys.exit(main(['presets', 'fsq']))"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full:
        stream = writer if closed else full.fileno()
        done = subprocess.run([sys.executable, "-c", code], stdout=stream, stderr=subprocess.PIPE, text=True)
        assert done.returncode == expected
        assert message in done.stderr and len(done.stderr.splitlines()) <= bool(message)
    os.close(writer)


def test_presets_show_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "rq"]) == 0
    said = capsys.readouterr().out
    assert "arXiv 2203.01941" in said
    rows = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    assert ["num_levels", "int", "4"] in [[cell.strip() for cell in row] for row in rows]


class Ours(ResidualKMeans):
    """An item tokenizer of somebody's own."""


def test_classes_of_trusted_modules_are_built(capsys: pytest.CaptureFixture[str]) -> None:
    vectors = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    ours = Ours(codebook_size=4, num_levels=2)
    ours.fit(vectors)
    ours.save_pretrained("run/tokenizer")
    np.save("vectors.npy", vectors.numpy())
    words = ["semantic-ids", "encode", "run", "--embeddings", "vectors.npy"]
    assert f"trusted=['{__name__}']" in wrong(words, capsys)
    assert main([*words, "--trusted", f"[{__name__}]"]) == 0
    assert np.array_equal(np.load("codes.npy"), ours.encode(vectors).numpy())
    for verb in (["semantic-ids", "report"], ["semantic-ids", "add"], ["recommend"]):
        assert main([*verb, "--help"]) == 0 and "--trusted" in capsys.readouterr().out


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    program = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_shtab_gritvq
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "-c", program, "bash", script, "gritvq", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_shell_completes(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("shtab") is None:
        assert "pip install 'gritvq[train]'" in wrong(["completion", "bash"], capsys)
        pytest.skip("needs shtab, which the extra train brings")
    assert main(["completion", "bash"]) == 0
    Path("gritvq.bash").write_text(capsys.readouterr().out)
    for words, offered in (
        (["va"], ["validate"]),
        (["fit", "im"], ["images"]),
        (["fit", "images", "--plan.max_s"], ["--plan.max_steps"]),
        (["fit", "images", "--preset", "fs"], ["fsp", "fsq"]),
        (["semantic-ids", "re"], ["report"]),
        (["semantic-ids", "fit", "--emb"], ["--embeddings"]),
    ):
        assert completed("gritvq.bash", *words) == offered


# --- random input -----------------------------------------------------------------------------------------------------

WORDS = ["", "gritvq.fsq", "gritvq.vq_vae", "./nowhere", "[", "é\u202e", "-1", "1e9", "true", "*x", "!!python/x"]
SOME = (
    "tokenizer encoder quantizer decoder class_path init_args dim codebook_size data path task lr plan max_steps preset"
)
KEYS = [*SOME.split(), "tokenizer", "out", "resume", "channels", "size", "betas", "objective", "config"]


def anything(draw: random.Random, depth: int = 0) -> Any:
    """A value of any kind that YAML writes."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.choice([0, -1, 3, 10**20, 0.5, float("nan"), float("inf"), True]),
        lambda: draw.choice(WORDS),
        lambda: draw.choice(WORDS),
    ]
    if depth < 4:
        kinds += [lambda: [anything(draw, depth + 1) for _ in range(draw.randrange(3))]]
        kinds += [lambda: {draw.choice(KEYS): anything(draw, depth + 1) for _ in range(draw.randrange(4))}] * 3
    return draw.choice(kinds)()


def likely(draw: random.Random) -> dict[str, Any]:
    """A configuration of ``fit`` with wrong values here and there."""

    def perhaps(value: Any) -> Any:
        return anything(draw, 2) if draw.random() < 0.15 else value

    parts = {}
    for name, path in (("encoder", "ImageEncoder"), ("quantizer", "vq_vae"), ("decoder", "ImageDecoder")):
        path = f"gritvq.{path}" if name == "quantizer" else f"gritvq.images.{path}"
        sizes: dict[str, Any] = {"dim": perhaps(4)}
        sizes |= {"codebook_size": perhaps(8)} if name == "quantizer" else {"width": perhaps(8)}
        parts[name] = perhaps({"class_path": perhaps(path), "init_args": perhaps(sizes)})
    data = {"path": "./nowhere", **{key: perhaps(2) for key in ("size", "batch_size", "num_validation", "seed")}}
    return {
        "tokenizer": perhaps(parts),
        "data": perhaps(data),
        "task": perhaps({"lr": perhaps(0.1), "betas": perhaps([0.9, 0.9]), "objective": perhaps(None)}),
        "plan": perhaps({"max_steps": perhaps(1), "accelerator": perhaps("cpu")}),
    }


def arguments(draw: random.Random) -> list[str]:
    """Words of a command line that names nothing which is there."""
    verb = draw.choice(["fit", "validate", "encode", "decode", "export", "recommend", "semantic-ids", "compare"])
    if verb == "fit":
        Path("a.yaml").write_text(yaml.safe_dump(draw.choice([likely, anything])(draw)), encoding="utf-8")
        words = ["fit", "--config", "a.yaml"]
    else:
        words = [verb, *(["report"] if verb == "semantic-ids" else []), *(["nothing"] if verb != "compare" else [])]
        words += ["--tokenizer", "nothing"] if verb in ("encode", "decode") else []
    options = ["--out", "--data.size", "--k", "--data.path", "--data", "--tokenizer.quantizer", "--plan", "--strict"]
    for _ in range(draw.randrange(3)):
        words += [draw.choice(options), draw.choice(WORDS)]
    return [*words, "--data.path", "./nowhere"] if verb in ("fit", "compare", "validate") else words


def check_random_input(seeds: range, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in seeds:
        words = arguments(random.Random(seed))
        code = main(words)  # a traceback here is a fault of the program
        said = capsys.readouterr().err
        assert code == 2 and said.count("error: ") >= 1 and "Traceback" not in said, (seed, words, said)


def test_random_input_ends_with_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    check_random_input(range(40), capsys)


@pytest.mark.soak
def test_much_random_input_ends_with_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    check_random_input(range(1000, 2000), capsys)
