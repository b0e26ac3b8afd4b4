import json
import os
import pickle
import socket
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from modules.clip import weights as clip_weights
from modules.clip.daclip import DaClip, build_daclip
from modules.clip.losses import info_nce
from modules.reference.daclip import (
    convert_daclip,
    infer_architecture,
    load_reference_checkpoint,
)

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = json.loads((GOLDEN / "daclip_tiny" / "daclip_tiny.json").read_text())
SMALL = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 16,
        "head_width": 8,
        "patch_size": 16,
    },
    "text_cfg": {
        "context_length": 20,
        "vocab_size": 49408,
        "width": 4,
        "heads": 2,
        "layers": 1,
    },
}
CAPTIONS = [
    "a close up of a flower in a garden",
    "a man riding a wave on top of a surfboard",
    "there is a city street at night with cars",
    "a painting of it's 3 cats & 2 dogs, 2023!",
    "an old house on a hill, with snow all around it and trees in the background and a fence and "
    "a car parked in front of the house and people walking by and many more words that make this "
    "caption so very long that it has to be truncated because the context length of the text "
    "encoder is only seventy seven tokens and this sentence has clearly more than that many "
    "tokens, and goes on",
]
WORDS = ["rainy", "motion-blurry", "low-light", "jpeg-compressed", "uncompleted"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "daclip_tiny" / "io.safetensors")


@pytest.fixture(scope="module")
def reference_state() -> dict[str, Tensor]:
    return load_reference_checkpoint(GOLDEN / "daclip_tiny" / "state_dict.safetensors")


@pytest.fixture
def tiny(reference_state: dict[str, Tensor]) -> DaClip:
    daclip = build_daclip(TINY)
    daclip.load_state_dict(convert_daclip(reference_state))
    return daclip


@pytest.fixture
def small() -> DaClip:
    torch.manual_seed(0)
    return build_daclip(SMALL)


def assert_close(ours: Tensor, golden: Tensor) -> None:
    """To 1e-5 of the golden tensor's largest value."""
    assert ours.shape == golden.shape
    torch.testing.assert_close(ours, golden, rtol=0, atol=1e-5 * golden.abs().max().item())


@pytest.mark.parametrize("gradients", [True, False])
def test_embeddings_are_the_reference_s(tiny, golden, gradients):
    with torch.set_grad_enabled(gradients):
        embeddings = tiny(golden["in.image"])
        clean = tiny.encode_clean(golden["in.image"])
        captions, words = (tiny.encode_text(t) for t in golden["in.text"].split(77, dim=1))
    assert_close(embeddings.content, golden["out.image_features_control"])
    assert_close(embeddings.degradation, golden["out.degra_features"])
    assert_close(clean, golden["out.image_features_plain"])
    assert_close(captions, golden["out.text_caption"])
    assert_close(words, golden["out.text_degradation"])
    content, degradation = (normalize(e, dim=-1) for e in embeddings)
    for name in "out.image_features_control_norm", "forward.image_features":
        assert_close(content, golden[name])
    for name in "out.degra_features_norm", "forward.image_degra_features":
        assert_close(degradation, golden[name])
    assert_close(normalize(captions, dim=-1), golden["forward.text_features"])
    assert_close(normalize(words, dim=-1), golden["forward.text_degra_features"])
    assert_close(tiny.logit_scale.exp(), golden["forward.logit_scale"])


def test_signals_are_the_reference_s(tiny, golden):
    _, signals = tiny.controller(golden["in.image"])
    assert len(signals) == 3
    for i, signal in enumerate(signals):
        assert_close(signal.transpose(0, 1), golden[f"out.hiddens.{i}"])


def test_control_is_reversed(tiny, golden):
    """Block k takes the signal of controller block n + 1 - k: released weights rely on it."""
    linears = tiny.controller.zero_linears
    tiny.controller.zero_linears = nn.ModuleList([linears[2], linears[1], linears[0]])
    content = tiny(golden["in.image"]).content
    assert (content - golden["out.image_features_control"]).abs().max() > 1e-2


def test_losses_and_gradients_are_the_reference_s(tiny, golden):
    losses = tiny_losses(tiny, golden)
    for name in losses:
        assert_close(losses[name], golden[f"loss.{name}"])
    losses["total"].backward()
    ours = {key: p.grad for key, p in tiny.named_parameters() if p.grad is not None}
    gradients = convert_daclip(
        {key.removeprefix("grad."): g for key, g in golden.items() if key.startswith("grad.")}
    )
    assert len(gradients) == 10
    for key, gradient in gradients.items():
        assert_close(ours[key], gradient)
    norms = json.loads((GOLDEN / "daclip_tiny" / "grad_norms.json").read_text())
    norms = convert_daclip({key: torch.tensor(norm) for key, norm in norms.items()})
    assert ours.keys() == norms.keys()
    for key, norm in norms.items():
        assert_close(ours[key].norm(), norm)


def tiny_losses(tiny: DaClip, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    content, degradation = (normalize(e, dim=-1) for e in tiny(golden["in.image"]))
    captions, words = (
        normalize(tiny.encode_text(t), dim=-1) for t in golden["in.text"].split(77, dim=1)
    )
    scale = tiny.logit_scale.exp()
    losses = {
        "contrastive_loss": info_nce(content, captions, scale),
        "degra_loss": info_nce(degradation, words, scale),
    }
    return losses | {"total": losses["contrastive_loss"] + losses["degra_loss"]}


def test_tokens_are_the_reference_s(tiny, golden):
    captions, words = golden["in.text"].split(77, dim=1)
    assert torch.equal(tiny.tokenize(CAPTIONS), captions)
    assert torch.equal(tiny.tokenize(WORDS), words)


def test_control_is_zero_at_the_start(small):
    view = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        nn.init.normal_(small.clip.visual.ln_post.weight)  # not where layer norms start
    daclip = DaClip(small.clip)
    assert all(not p.any() for p in daclip.controller.zero_linears.parameters())
    tower = daclip.clip.visual.state_dict()
    copied = daclip.controller.tower.state_dict()
    assert copied.keys() == tower.keys()
    assert all(torch.equal(copied[key], tower[key]) for key in tower)
    with torch.no_grad():  # with gradients, torch takes another path through attention
        content, degradation = daclip(view)
        clean = daclip.encode_clean(view)
    assert torch.equal(content, clean)
    torch.testing.assert_close(degradation, clean)
    torch.testing.assert_close(daclip(view).content, clean)


def test_control_of_the_reference_is_not_zero_at_its_start():
    """Its initialiser puts `ln_post` into the first zero linear; ours is right instead."""
    start = load_file(GOLDEN / "daclip_tiny" / "after_initial_controller.safetensors")
    assert start["zero_modules.0.weight"].abs().min() > 0
    change = (start["image_features_control"] - start["image_features_plain"]).abs().max()
    assert change > 0.01 * start["image_features_plain"].abs().max()


def test_clip_stays_frozen(small):
    small.train()
    assert small.controller.training
    assert not any(module.training for module in small.clip.modules())
    before = {key: tensor.clone() for key, tensor in small.state_dict().items()}
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):  # the controller's blocks get a gradient of the control from the second on
        content, degradation = (normalize(e, dim=-1) for e in small(torch.randn(2, 3, 32, 32)))
        texts = small.encode_text(small.tokenize(["a cat", "a dog"]))
        assert not texts.requires_grad
        loss = info_nce(content, texts, small.logit_scale.exp())
        (loss + info_nce(degradation, texts, small.logit_scale.exp())).backward()
        optimizer.step()
    for key, tensor in small.state_dict().items():
        assert torch.equal(tensor, before[key]) == key.startswith("clip."), key


def test_unfrozen_clip_trains_whole(small):
    small.unfreeze_clip()
    assert small.train().clip.training
    content, degradation = (normalize(e, dim=-1) for e in small(torch.randn(2, 3, 32, 32)))
    texts = normalize(small.encode_text(small.tokenize(["a cat", "a dog"])), dim=-1)
    scale = small.logit_scale.exp()
    (info_nce(content, texts, scale) + info_nce(degradation, texts, scale)).backward()
    for key, parameter in small.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), key
        assert parameter.requires_grad == (key != "clip.logit_scale"), key


def test_sizes(small):
    assert (small.image_size, small.embed_dim) == (32, 8)
    assert small.tokenize(["noisy"]).shape == (1, 20)


def test_full_size_has_the_reference_s_tensors():
    facts = json.loads((GOLDEN / "checkpoint_format" / "daclip_vitb32_keys.json").read_text())
    with torch.device("meta"):
        daclip = build_daclip("ViT-B-32")
        reference = {key: torch.empty(s) for key, s in facts["state_dict_keys"].items()}
    ours = {key: tensor.shape for key, tensor in daclip.state_dict().items()}
    assert {key: t.shape for key, t in convert_daclip(reference).items()} == ours
    counts = facts["counts"]
    trained = sum(p.numel() for p in daclip.parameters() if p.requires_grad)
    assert trained == counts["trainable_after_lock_clip"] == 94_936_321
    assert sum(p.numel() for p in daclip.parameters()) == counts["total_unique_params"]
    zeros = sum(p.numel() for p in daclip.controller.zero_linears.parameters())
    assert zeros == counts["zero_modules"]
    released = open_clip.get_model_config("ViT-B-32")
    released["vision_cfg"]["head_width"] = 64
    assert infer_architecture(reference) == released


def test_architecture_is_read_off_shapes(reference_state):
    found = infer_architecture(reference_state, head_width=16, text_head_width=8)
    assert found | {"custom_text": True} == TINY
    assert infer_architecture(convert_daclip(reference_state), 16, 8) == found
    with pytest.raises(ValueError, match="text tower's 16; give their head widths"):
        infer_architecture(reference_state)
    with pytest.raises(ValueError, match=r"no 'clip\.visual\.conv1\.weight'"):
        infer_architecture({"clip.visual.stem.weight": torch.zeros(3)}, 16, 8)


def test_foreign_names_are_refused():
    with pytest.raises(ValueError, match=r"unet\.stem is not of the reference's DA-CLIP layout"):
        convert_daclip({"unet.stem": torch.zeros(1)})


@pytest.mark.parametrize("prefix", ["", "module."])
def test_training_checkpoint_of_the_reference(tmp_path, prefix):
    facts = json.loads((GOLDEN / "checkpoint_format" / "checkpoint_format.json").read_text())
    state = {prefix + key: torch.randn(shape) for key, shape in facts["state_dict_keys"].items()}
    groups = [{"lr": np.float64(2.9e-6), "params": [0], "loss": np.float32(1), "n": np.int64(3)}]
    content = (facts["epoch"], facts["name"], state, {"param_groups": groups})
    checkpoint = dict(zip(facts["top_level_keys"], content, strict=True))
    torch.save(checkpoint, tmp_path / "epoch_2.pt")
    loaded = load_reference_checkpoint(tmp_path / "epoch_2.pt")
    daclip = build_daclip(infer_architecture(loaded, head_width=16, text_head_width=4))
    daclip.load_state_dict(convert_daclip(loaded))
    signal = daclip.controller.zero_linears[1].weight
    assert torch.equal(signal, state[f"{prefix}visual_control.transformer.zero_modules.1.weight"])


def test_numpy_1_scalars_are_read(tmp_path):
    new, old = tmp_path / "new.pt", tmp_path / "old.pt"
    torch.save({"epoch": np.float64(2), "state_dict": {"logit_scale": torch.ones(())}}, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, content)
    assert load_reference_checkpoint(old)["logit_scale"] == 1


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_code_in_a_pickle_is_refused(tmp_path):
    path, trace = tmp_path / "epoch_1.pt", tmp_path / "trace"
    state = {"logit_scale": torch.ones(())}
    torch.save({"state_dict": state, "optimizer": Malicious(trace)}, path)
    for load in load_reference_checkpoint, lambda p: build_daclip(SMALL, p):
        with pytest.raises(ValueError, match=r"epoch_1\.pt cannot be opened") as caught:
            load(path)
        assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    state = {"logit_scale": torch.ones(100)}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{name} cannot be opened: it is damaged"):
        load_reference_checkpoint(path)


def test_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"empty\.pt holds no named tensors"):
        load_reference_checkpoint(tmp_path / "empty.pt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*absent\.pt"):
        build_daclip(SMALL, str(tmp_path / "absent.pt"))


@pytest.mark.parametrize("name", ["clip.safetensors", "clip.pt", "training.pt"])
def test_local_clip_weights(tmp_path, small, name):
    state, path = small.clip.state_dict(), tmp_path / name
    if name == "training.pt":
        torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    loaded = build_daclip(SMALL, path)
    view = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.encode_clean(view), small.encode_clean(view))
    torch.testing.assert_close(loaded(view).degradation, small.encode_clean(view))


def test_weights_of_another_architecture_are_refused(tmp_path, small):
    save_file(small.clip.state_dict(), tmp_path / "clip.safetensors")
    wider = SMALL | {"embed_dim": 12}
    message = r"clip\.safetensors is a .* text_projection is \(4, 8\) there and \(4, 12\) in this"
    with pytest.raises(ValueError, match=message):
        build_daclip(wider, tmp_path / "clip.safetensors")
    shallower = SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"layers": 2}}
    with pytest.raises(ValueError, match=r"resblocks\.2\.\S+ is \(\d+,\) there and missing in"):
        build_daclip(shallower, tmp_path / "clip.safetensors")


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match=r"'ViT-B/32'; did you mean .*'ViT-B-32'"):
        build_daclip("ViT-B/32")
    with pytest.raises(ValueError, match=r"'laion2b' .* choose one of \[.*'laion2b_s34b_b79k'"):
        build_daclip("ViT-B-32", "laion2b")
    with pytest.raises(ValueError, match="a tag needs an architecture given by name"):
        build_daclip(SMALL, "laion2b_s34b_b79k")


def test_weights_that_take_another_view_are_refused():
    with pytest.raises(ValueError, match="CLIP's usual view"):
        build_daclip("ViT-L-14", "laion2b_s32b_b82k")  # mean and standard deviation of 0.5
    with pytest.raises(ValueError, match="activation"):
        build_daclip("ViT-B-32", "openai")  # quick GELU


def test_tags_are_downloaded(monkeypatch, tmp_path):
    sources = []

    def download(source):
        sources.append(source["hf_hub"])
        raise FileNotFoundError("no route")

    monkeypatch.setattr(clip_weights, "download_pretrained", download)
    message = r"\(no route\).*fetch open_clip_model\.safetensors .* of laion/CLIP-ViT-B-32\S+, and"
    with pytest.raises(FileNotFoundError, match=message):
        build_daclip("ViT-B-32", "laion2b_s34b_b79k")
    assert sources == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"]
    monkeypatch.setattr(clip_weights, "download_pretrained", lambda _: tmp_path / "clip.bin")
    with pytest.raises(FileNotFoundError, match=r"clip\.bin"):
        build_daclip("ViT-B-32", "laion2b_s34b_b79k")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("roberta-ViT-B-32", "'hf_model_name'"),
        ("ViT-L-14-CLIPA", "'hf_tokenizer_name'"),
        ("coca_ViT-B-32", "'multimodal_cfg'"),
        ({"embed_dim": 8, "vision_cfg": SMALL["vision_cfg"]}, "'text_cfg'"),
        (SMALL | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8}}, "is a ModifiedResNet"),
        ("convnext_base", "'timm_model_name'"),
        (SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"patch_dropout": 0.5}}, "patch dropout"),
        (SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"image_size": (32, 16)}}, "takes 32x16"),
    ],
)
def test_architectures_the_method_does_not_fit_are_refused(architecture, message):
    with pytest.raises(ValueError, match=message):
        build_daclip(architecture)


def test_tower_on_the_hub_is_refused_before_anything_is_contacted(monkeypatch):
    contacted = []

    def contact(*address, **options):
        contacted.append(address)
        raise OSError("no route")

    monkeypatch.setattr(socket, "getaddrinfo", contact)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    vision = SMALL["vision_cfg"] | {"timm_model_name": "hf-hub:someone/tracker"}
    with pytest.raises(ValueError, match=r"from elsewhere \(\['timm_model_name'\]\)"):
        build_daclip(SMALL | {"vision_cfg": vision})
    assert not contacted
    build_daclip(SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"timm_model_name": None}})
