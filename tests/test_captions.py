"""Captions: BLIP through its real classes, captions from a file, each clean image once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from datamodules.captions import CAPTIONS, PARTIAL, read_captions, write_captions
from datamodules.reader import SampleAddress, ShardSet
from datamodules.shards import write_shards
from modules.captioners import BlipCaptioner, FileCaptioner
from tests.conftest import form, paired_folder, photograph

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "cat", "dog", ":", "of"]


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BLIP of a few thousand weights, saved as transformers saves one."""
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    text = BlipTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=5,
        eos_token_id=3,
        sep_token_id=3,
        pad_token_id=0,
    )
    vision = BlipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    torch.manual_seed(0)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    BlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def samples(pair_folder: Path, tmp_path: Path) -> list[SampleAddress]:
    write_shards(
        paired_folder(pair_folder).plan(), tmp_path / "s", form(shard_mb=1), 0.0, workers=0
    )
    return ShardSet(tmp_path / "s", "train").all()


def test_blip_captions_from_disk(tiny_blip: Path) -> None:
    captioner = BlipCaptioner(str(tiny_blip), max_new_tokens=5, device="cpu")
    images = [photograph(40, 60, seed) for seed in range(3)]
    captions = captioner.caption(images, ["x", "y", "z"])
    assert len(captions) == 3
    assert all(set(caption.split()) <= set(VOCABULARY) for caption in captions)
    assert captions == captioner.caption(images, ["x", "y", "z"])
    assert {"config.json", "model.safetensors"} <= {p.name for p in captioner.files()}


@pytest.mark.parametrize("model", ["./no/such/folder", "Salesforce/blip-image-captioning-large"])
def test_missing_blip_says_what_to_do(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    captioner = BlipCaptioner(model, max_new_tokens=5, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"captions\.captioner\.model"):
        captioner.caption([photograph(40, 60)], ["x"])


def test_caption_file_is_looked_up_by_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [
        {"source": "a.png", "caption": "a sign: 'open'\n  today"},
        {"source": "b", "caption": "b"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    captioner = FileCaptioner(str(path))
    images = [photograph(8, 8)] * 3
    assert captioner.caption(images, ["b", "a.png", "b"]) == ["b", "a sign: 'open' today", "b"]
    with pytest.raises(ValueError, match=r"mine\.jsonl has no caption for 1 images: c"):
        captioner.caption(images, ["a.png", "c", "b"])


@pytest.mark.parametrize("line", ["{", '{"source": "a"}', "[]", "a.png\ta caption"])
def test_damaged_caption_file_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"source": "a", "caption": "x"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"mine\.jsonl:2: expected"):
        FileCaptioner(str(path)).caption([photograph(8, 8)], ["a"])


class Counting:
    """A captioner that counts images, and may be cut off after some batches."""

    def __init__(self, batches: int = 99) -> None:
        self.images, self.batches = 0, batches

    def __call__(self, images: Sequence[np.ndarray], sources: Sequence[str]) -> list[str]:
        if self.batches == 0:
            raise KeyboardInterrupt
        self.batches -= 1
        self.images += len(images)
        return [f"caption: of {source}" for source in sources]


def test_every_distinct_clean_image_is_captioned_once(
    samples: list[SampleAddress], tmp_path: Path
) -> None:
    counting = Counting()
    assert write_captions(samples, tmp_path, counting, "test", 2) == 3  # six pairs share them
    assert counting.images == 3
    captions = read_captions(tmp_path / CAPTIONS)
    assert all(captions[s.origin()["gt_sha256"]].startswith("caption: of") for s in samples)


def test_interrupted_captions_go_on(samples: list[SampleAddress], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_captions(samples, tmp_path, Counting(batches=1), "test", 1)
    assert not (tmp_path / CAPTIONS).exists()
    with (tmp_path / PARTIAL).open("a") as file:
        file.write('{"gt_sha256": "cut off in the mid')
    counting = Counting()
    write_captions(samples, tmp_path, counting, "test", 1)
    assert counting.images == 2
    assert len(read_captions(tmp_path / CAPTIONS)) == 3


def test_missing_and_damaged_captions_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `make captions`"):
        read_captions(tmp_path / CAPTIONS)
    (tmp_path / CAPTIONS).write_text('{"gt_sha256": "x"}\n')
    with pytest.raises(ValueError, match=r"captions\.jsonl:1 is damaged"):
        read_captions(tmp_path / CAPTIONS)


def test_damaged_clean_image_does_not_stop_captioning(
    samples: list[SampleAddress], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for spoilt, field in ((samples[0], "gt"), (samples[1], "json")):
        row = spoilt.store.table(spoilt.shard)[spoilt.row][field]
        path = tmp_path / "s" / spoilt.store.shards[spoilt.shard].name
        time = path.stat().st_mtime_ns
        with path.open("r+b") as file:
            file.seek(int(row["offset"]))
            file.write(b"\xff" * int(row["size"]))
        os.utime(path, ns=(time, time))
    write_captions(samples, tmp_path, Counting(), "test", 2)
    assert len(read_captions(tmp_path / CAPTIONS)) == 2
    assert samples[0].name in caplog.text
    assert "damaged" in caplog.text
