"""Networks that bring their weights: torchvision's, timm's, transformers'. Each must be what its authors made."""

from __future__ import annotations

import builtins
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from lit_xai.cli.build import build_module
from lit_xai.errors import UsageError
from lit_xai.models import Classifier, HuggingFace, Pretrained, Timm, resnet50
from lit_xai.models.pretrained import Frame
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as T

from conftest import seeded

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TINY = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


def seeded_weights(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a trained network's kind: none is 0 or 1 but the counts, running variances are positive."""
    g = seeded(seed)
    out = network.state_dict()
    for name, t in out.items():
        if not t.is_floating_point():
            continue
        if name.endswith("running_var") or (t.ndim == 1 and name.endswith("weight")):
            out[name] = 0.5 + torch.rand(t.shape, generator=g)
        else:
            out[name] = torch.randn(t.shape, generator=g) * (1 / max(1, t[0].numel()) ** 0.5 if t.ndim > 1 else 0.1)
    return out


def theirs(arch: str, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Any]:
    """What torchvision itself makes of these weights (they stand for its download), and its transforms."""
    entry = torchvision.models.get_model_weights(arch).DEFAULT  # type: ignore[attr-defined]
    monkeypatch.setattr(type(entry), "get_state_dict", lambda self, *a, **k: state)
    return torchvision.models.get_model(arch, weights=entry).eval(), entry.transforms()


def blank(arch: str, **options: Any) -> nn.Module:
    if arch in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": True, **options}
    return torchvision.models.get_model(arch, weights=None, **options)


FEW = ("googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5")
MORE = (
    "inception_v3",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_l",
    "vit_b_16",
    "swin_t",
    "convnext_tiny",
    "maxvit_t",
    "regnet_y_400mf",
    "mobilenet_v3_large",
    "resnet50",
    "swin_v2_t",
    "wide_resnet50_2",
    "vgg11_bn",
)


@pytest.mark.parametrize("arch", [*FEW, *(pytest.param(a, marks=pytest.mark.slow) for a in MORE)])
@pytest.mark.kind("pretrained: torchvision's own network and transforms")
def test_a_network_with_weights_is_torchvisions_own(arch, tmp_path, monkeypatch):
    state = seeded_weights(blank(arch))
    torch.save(state, tmp_path / "w.pth")
    network, transforms = theirs(arch, state, monkeypatch)
    module = Pretrained(arch, str(tmp_path / "w.pth"))
    picture = torch.randint(256, (3, 400, 480), dtype=torch.uint8, generator=seeded(1))
    side, resize, how = module.frame
    assert (side, resize, how) == (transforms.crop_size[0], transforms.resize_size[0], transforms.interpolation.value)
    image = T.center_crop(picture, [side, side])[None].float() / 255
    normalised = T.normalize(image, list(transforms.mean), list(transforms.std))
    with torch.no_grad():
        expected = network(normalised)
        assert torch.allclose(module.predictor()(image), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    assert module.class_names[:2] == ("tench", "goldfish")


@pytest.mark.kind("pretrained: torchvision's own network and transforms")
def test_mean_and_deviation_are_the_architectures_own(tmp_path, monkeypatch):
    small = partial(torchvision.models.efficientnet_b0, weights=None)
    monkeypatch.setattr(torchvision.models, "get_model", lambda arch, **options: small())
    torch.save(seeded_weights(small()), tmp_path / "w.pth")
    module = Pretrained("efficientnet_v2_l", str(tmp_path / "w.pth"))
    assert module.network[0].mean.flatten().tolist() == module.network[0].std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert module.frame == Frame(480, 480, "bicubic")


@pytest.mark.kind("pretrained: what files call their weights")
@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "hyper_parameters": {}},
        lambda s: {"model": {f"module._orig_mod.{k}": v for k, v in s.items()}},
        lambda s: {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.tensor(3)},
    ],
    ids=["model", "module.", "model.", "both", "averaged"],
)
def test_weights_are_found_in_their_nest_and_without_prefixes(nest, tmp_path):
    network = blank("squeezenet1_1", num_classes=4).eval()
    torch.save(nest(network.state_dict()), tmp_path / "w.pth")
    module, x = (
        Pretrained("squeezenet1_1", str(tmp_path / "w.pth"), mean=(0, 0, 0), std=(1, 1, 1)),
        torch.rand(1, 3, 64, 64),
    )
    with torch.no_grad():
        assert torch.allclose(module.predictor()(x), network(x), atol=1e-6)
    assert module.class_names == ()


@pytest.mark.kind("pretrained: what files call their weights")
def test_safetensors_are_read(tmp_path):
    network = blank("squeezenet1_1").eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    loaded = Pretrained("squeezenet1_1", str(tmp_path / "w.safetensors")).network[1]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


@pytest.mark.kind("pretrained: what files call their weights")
def test_names_of_old_densenets_are_renamed(tmp_path, monkeypatch):
    tiny = partial(torchvision.models.DenseNet, 4, (1, 2), 8)
    monkeypatch.setattr(torchvision.models, "get_model", lambda arch, weights, **o: tiny(**o))
    state = seeded_weights(tiny())
    old = {k.replace("norm1", "norm.1").replace("norm2", "norm.2"): v for k, v in state.items()}
    old = {k.replace("conv1", "conv.1").replace("conv2", "conv.2"): v for k, v in old.items() if "num_batches" not in k}
    assert sum(k not in state for k in old) == 30  # ten of each of the three layers
    torch.save(old, tmp_path / "w.pth")
    loaded = Pretrained("densenet121", str(tmp_path / "w.pth")).network[1].state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in state.items() if "num_batches" not in k)


@pytest.mark.kind("pretrained: what files call their weights")
def test_names_of_old_vision_transformers_are_renamed(tmp_path, monkeypatch):
    tiny = partial(torchvision.models.VisionTransformer, 32, 8, 1, 2, 16, 16)
    monkeypatch.setattr(torchvision.models, "get_model", lambda arch, weights, image_size=32, **o: tiny(**o))
    state = seeded_weights(tiny())
    old = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in state.items()}
    assert set(old) != set(state)
    torch.save(old, tmp_path / "w.pth")
    loaded = Pretrained("vit_b_16", str(tmp_path / "w.pth")).network[1].state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in state.items())


@pytest.mark.kind("pretrained: what files call their weights")
def test_mnasnets_first_version_is_loaded(tmp_path):
    from collections import OrderedDict

    network, first = blank("mnasnet0_5"), OrderedDict()
    first._metadata = {"": {"version": 1}}
    network.load_state_dict(first, strict=False)
    assert network.state_dict()["layers.0.weight"].shape != blank("mnasnet0_5").state_dict()["layers.0.weight"].shape
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded, x = (
        Pretrained("mnasnet0_5", str(tmp_path / "w.pth"), mean=(0, 0, 0), std=(1, 1, 1)),
        torch.rand(1, 3, 64, 64),
    )
    with torch.no_grad():
        assert torch.allclose(loaded.predictor()(x), network.eval()(x), atol=1e-6)


@pytest.mark.kind("pretrained: what does not fit")
def test_what_is_missing_or_unexpected_is_named_in_three_keys(tmp_path):
    state = {f"block.{i}.weight": torch.rand(3) for i in range(500)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        UsageError, match=r"52 missing: \S+, \S+, \.\.\.; 500 unexpected: \S+, \.\.\.\): name the right"
    ) as e:
        Pretrained("squeezenet1_1", str(tmp_path / "w.pth"))
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300 + len(str(tmp_path))


@pytest.mark.kind("pretrained: what does not fit")
def test_training_from_weights_of_another_network_is_refused(tmp_path):
    torch.save(blank("squeezenet1_1").state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="holds no weights of resnet50"):
        resnet50(3, 4, 64, weights=str(tmp_path / "w.pth"))


@pytest.mark.kind("pretrained: the network's own side")
def test_a_transformer_is_made_for_the_side_of_its_weights(tmp_path, monkeypatch):
    tiny = partial(
        torchvision.models.VisionTransformer, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
    )
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda arch, weights, image_size=32, **o: tiny(image_size, **o)
    )
    torch.save(tiny(48).state_dict(), tmp_path / "w.pth")
    assert Pretrained("vit_b_16", str(tmp_path / "w.pth")).frame == Frame(48, 55, "bilinear")
    with pytest.raises(UsageError, match=r"images of 48 pixels, the data have 32: set data\.size=48"):
        Pretrained("vit_b_16", str(tmp_path / "w.pth"), side=32)


# ----------------------------------------------------------------------------------------------------------------- timm


def tiny_timm(classes: int = 3, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(
            "vit_tiny_patch16_224", pretrained=False, num_classes=classes, **{**TINY, **options}
        )
        nn.init.normal_(network.head.weight)
    return network.eval()


@pytest.fixture
def timm_file(tmp_path) -> str:
    save_file(tiny_timm().state_dict(), tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


@pytest.mark.kind("timm: given weights")
def test_a_timm_network_with_weights_is_timms_own(timm_file):
    module = Timm("vit_tiny_patch16_224", weights=timm_file, options=TINY)
    network, x = tiny_timm(), torch.rand(2, 3, 32, 32, generator=seeded(1))
    with torch.no_grad():
        assert torch.allclose(module.predictor()(x), network((x - 0.5) / 0.5), atol=1e-6)  # its pretrained_cfg says .5
    assert module.frame == Frame(32, 35, "bicubic")
    assert module.class_names == ()


@pytest.mark.kind("timm: given weights")
def test_a_timm_network_of_imagenets_classes_has_their_names(tmp_path):
    torch.save({"model": tiny_timm(1000).state_dict()}, tmp_path / "w.pth")
    module = Timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"), options=TINY)
    assert (len(module.class_names), module.class_names[0]) == (1000, "tench, Tinca tinca")


@pytest.mark.kind("timm: given weights")
def test_an_untagged_networks_side_and_crop_are_its_configurations():
    module = Timm("mobilenetv3_small_050", classes=3, side=64)
    use = timm.get_pretrained_cfg("mobilenetv3_small_050")
    assert module.frame == Frame(use.input_size[-1], int(use.input_size[-1] / use.crop_pct), use.interpolation)


@pytest.mark.kind("timm: given weights")
def test_the_side_of_timms_weights_is_that_of_their_position_embeddings(tmp_path):
    network = tiny_timm(img_size=48)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    options = {k: v for k, v in TINY.items() if k != "img_size"}
    module, x = (
        Timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.safetensors"), options=options),
        torch.rand(1, 3, 48, 48),
    )
    assert module.frame.side == 48
    with torch.no_grad():
        assert torch.allclose(module.predictor()(x), network((x - 0.5) / 0.5), atol=1e-6)


@pytest.mark.kind("timm: training folds")
def test_a_timm_network_learns(timm_file):
    module = Timm("vit_tiny_patch16_224", pretrained=timm_file, options=TINY, classes=4, side=32)
    images, labels = torch.rand(16, 3, 32, 32, generator=seeded(1)), torch.arange(16) % 4
    optimizer = torch.optim.AdamW(module.parameters(), module.lr)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(module.batch_loss((images, labels)))
        losses[-1].backward()
        optimizer.step()
    assert float(losses[-1]) < 0.8 * float(losses[0])


@pytest.mark.kind("timm: training folds")
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_training_starts_from_the_weights_of_a_file_with_a_new_head_and_the_datas_channels(timm_file, channels):
    module = Timm("vit_tiny_patch16_224", pretrained=timm_file, options=TINY, channels=channels, classes=5, side=32)
    assert module(torch.rand(2, channels, 32, 32)).shape == (2, 5)
    body = tiny_timm().blocks.state_dict()
    assert all(torch.equal(v, body[k]) for k, v in module.network.blocks.state_dict().items())
    assert module.network.patch_embed.proj.weight.shape[1] == channels


@pytest.mark.kind("timm: training folds")
def test_position_embeddings_of_a_file_are_fitted_to_the_datas_side(timm_file):
    options = {k: v for k, v in TINY.items() if k != "img_size"}
    module = Timm("vit_tiny_patch16_224", pretrained=timm_file, options=options, classes=5, side=48)
    assert module.network.pos_embed.shape == (1, 37, 32)
    assert module(torch.rand(1, 3, 48, 48)).shape == (1, 5)


@pytest.mark.kind("timm: training folds")
def test_a_timm_network_is_trained_by_the_mean_of_its_pretrained_configuration(timm_file):
    colour = ([0.1] * 3, [0.2] * 3)
    started = Timm("vit_tiny_patch16_224", pretrained=timm_file, options=TINY, classes=5, side=32, colour=colour)
    fresh = Timm("vit_tiny_patch16_224", options=TINY, classes=5, side=32, colour=colour)
    assert started.normalise.mean.flatten().tolist() == [0.5] * 3
    assert fresh.normalise.mean.flatten().tolist() == pytest.approx([0.1] * 3)


@pytest.mark.kind("timm: what does not fit")
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "no_such_net"}, "timm has no network 'no_such_net'"),
        ({"arch": "hf-hub:timm/resnet18.a1_in1k"}, "timm has no network"),
        ({"options": {"depht": 3}, "classes": 3}, "does not take"),
        ({"weights": "FILE", "pretrained": "FILE"}, "give one of them"),
        ({"weights": "nowhere.pth"}, "no weights at nowhere.pth"),
        ({"weights": "FILE"}, r"holds no weights of vit_tiny_patch16_224 \(120 missing: "),
        ({"pretrained": "FILE", "classes": 3}, r"holds no weights of vit_tiny_patch16_224 \(120 missing: "),
        ({"weights": "FILE", "options": TINY, "classes": 7}, "tells 3 classes apart and the data have 7"),
        ({"weights": "FILE", "options": TINY, "channels": 1}, "takes 3 channels"),
    ],
    ids=lambda v: v[:12] if isinstance(v, str) else ",".join(v),
)
def test_timm_networks_that_cannot_be_had_are_refused_in_a_line(options, match, timm_file):
    options = {k: timm_file if v == "FILE" else v for k, v in options.items()}
    with pytest.raises(UsageError, match=match) as e:
        Timm(**{"arch": "vit_tiny_patch16_224", **options})
    assert "\n" not in str(e.value)


# --------------------------------------------------------------------------------------------------------- transformers


def saved(folder: Path, kind: str = "vit", processor: Any = None) -> nn.Module:
    labels = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "vit":
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, **labels)
            model = transformers.ViTForImageClassification(config)
        else:
            config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **labels)
            model = transformers.ConvNextForImageClassification(config)
    model.save_pretrained(folder)
    (processor or transformers.ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return model.eval()


@pytest.mark.kind("transformers' folders")
def test_a_folder_of_half_precision_takes_images_of_float32(tmp_path):
    saved(tmp_path)
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path).half()
    model.save_pretrained(tmp_path)
    module, images = HuggingFace(str(tmp_path)), torch.rand(2, 3, 32, 32)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    torch.testing.assert_close(module(images), model.float().eval()(2 * images - 1).logits)


@pytest.mark.kind("transformers' folders")
def test_a_folder_of_transformers_is_the_model_behind_its_processor(tmp_path):
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=3
    )
    model, module = saved(tmp_path, processor=processor), HuggingFace(str(tmp_path))
    pixels = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=seeded(1))
    with torch.no_grad():
        expected = model(**processor(pixels, return_tensors="pt")).logits
        assert torch.allclose(module.predictor()(pixels / 255), expected, atol=1e-5)
    assert module.class_names == ("cat", "dog", "owl")
    assert module.frame == Frame(32, 32, "bicubic")


@pytest.mark.kind("transformers' folders")
@pytest.mark.parametrize(
    ("processor", "frame"),
    [
        (partial(transformers.ConvNextImageProcessor, size={"shortest_edge": 224}), Frame(224, 256, "bicubic")),
        (partial(transformers.ConvNextImageProcessor, size={"shortest_edge": 384}), Frame(384, 384, "bicubic")),
        (
            partial(
                transformers.ViTImageProcessor,
                size={"shortest_edge": 256},
                do_center_crop=True,
                crop_size={"height": 224, "width": 224},
            ),
            Frame(224, 256, "bilinear"),
        ),
    ],
    ids=["crop share", "no crop", "edge and crop"],
)
def test_the_side_is_the_image_processors(processor, frame, tmp_path):
    saved(tmp_path, "convnext", processor())
    assert HuggingFace(str(tmp_path)).frame == frame


def without(folder: Path, file: str) -> None:
    (folder / file).unlink()


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')\n")


def pickled(folder: Path) -> None:
    torch.save(torch.load, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def headless(folder: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.kind("transformers' folders")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (partial(without, file="preprocessor_config.json"), "has no preprocessor_config.json"),
        (pickled, "has no model.safetensors"),
        (with_code, "needs code of its own, which is not run"),
        (headless, "lacks 2 weights of its model, such as classifier.bias"),
    ],
    ids=["processor", "pickle", "code", "head"],
)
def test_folders_that_are_no_classifier_are_refused_in_a_line(change, match, tmp_path):
    saved(tmp_path)
    change(tmp_path)
    with pytest.raises(UsageError, match=match) as e:
        HuggingFace(str(tmp_path))
    assert "\n" not in str(e.value)


@pytest.mark.kind("missing packages")
@pytest.mark.parametrize(
    ("package", "make", "extra"),
    [("timm", lambda: Timm("resnet18", classes=3), "timm"), ("transformers", lambda: HuggingFace("folder"), "hf")],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(package, make, extra, monkeypatch):
    real = builtins.__import__

    def missing(name: str, *more: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.delitem(sys.modules, package)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=rf"pip install 'lit_xai\[{extra}\]'"):
        make()


# ------------------------------------------------------------------------------------------------- randomness and damage


def attending() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3)


def windowed() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [2, 2], num_classes=3)


NETWORKS = {"ViT": attending, "Swin": windowed, "timm": tiny_timm}


@pytest.mark.kind("weight noise of transformers")
@pytest.mark.parametrize("name", NETWORKS)
def test_weight_noise_damages_every_matrix_and_kernel(name):
    network = NETWORKS[name]()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    module = Classifier(lambda **_: network, 3, 3, 32)
    module.add_weight_noise(1.0, 0, 0)
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    kinds = ("weight", "in_proj_weight")
    expected = {k for k, v in before.items() if k.split(".")[-1] in kinds and v.ndim > 1}
    assert changed == expected
    assert expected


@pytest.mark.kind("randomisation of transformers")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_transformer_forgets_all_of_its_weights_in_the_order_of_its_layers(name):
    from lit_xai.models.randomise import find_layers, randomised

    network = NETWORKS[name]()
    network.load_state_dict(seeded_weights(network))
    layers = find_layers(network, torch.rand(1, 3, 32, 32))
    fresh = randomised(network, layers, 0)
    old = dict(network.named_parameters())
    for key, p in fresh.named_parameters():
        assert not torch.equal(p, old[key]), key
        assert bool(torch.isfinite(p).all())
        if "pos_embed" in key or "token" in key:
            assert float(p.std()) == pytest.approx(0.02, rel=0.5)
    blocks = [layer.name for layer in layers if ".encoder_layer_" in layer.name or "blocks." in layer.name]
    assert blocks == sorted(
        blocks, key=lambda n: [int(x) for x in n.replace("encoder_layer_", "").split(".") if x.isdigit()][:1]
    )
    assert layers[0].name.split(".")[0] in ("conv_proj", "patch_embed", "features")
    with torch.no_grad():
        assert bool(torch.isfinite(fresh(torch.rand(2, 3, 32, 32))).all())


@pytest.mark.kind("randomisation of transformers")
def test_scales_of_residual_branches_are_reset_to_one():
    from lit_xai.models.randomise import find_layers, randomised

    blocks = [torchvision.models.convnext.CNBlockConfig(8, None, 2)]
    network = torchvision.models.ConvNeXt(blocks, num_classes=3).eval()
    fresh = randomised(network, find_layers(network, torch.rand(1, 3, 32, 32)), 0)
    assert bool((fresh.features[1][0].layer_scale == 1).all())


# ------------------------------------------------------------------------------------------------------ the main command


def picture(file: Path, height: int = 60, width: int = 80) -> Path:
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=seeded(3))
    Image.fromarray(pixels.numpy()).save(file)
    return file


def composed(command: str, *options: str) -> Any:
    from lit_xai.cli.compose import compose

    return compose(command, ["logger=none", "progress=false", *options])


@pytest.mark.kind("pretrained: the network's own side")
def test_pictures_and_one_picture_take_the_networks_side_and_interpolation(tmp_path, timm_file):
    from lit_xai.cli.picture import loaded, read_picture
    from lit_xai.cli.run import Run

    picture(tmp_path / "a.png")
    model = ["model=timm", f"model.weights={timm_file}", *(f"+model.options.{k}={v}" for k, v in TINY.items())]
    cfg = composed(
        "explain", *model, "data=pictures", f"data.root={tmp_path}", f"root={tmp_path}", "explainer=saliency"
    )
    network, takes, _, _ = loaded(cfg)
    alone = read_picture(tmp_path / "a.png", takes)
    run = Run(cfg, "explain")
    assert (run.cfg.data.size, run.cfg.data.resize, run.cfg.data.interpolation) == (32, 35, "bicubic")
    assert torch.equal(run.data.source.train.images([0]), alone)
    pixels = torch.from_numpy(__import__("numpy").array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    resized = T.resize(pixels, [35], interpolation=T.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(alone[0], T.center_crop(resized, [32, 32]) / 255)
    assert network(alone).shape == (1, 3)


@pytest.mark.kind("pretrained: the network's own side")
def test_a_folder_of_before_keeps_the_side_that_it_was_made_with(tmp_path, timm_file):
    from lit_xai.cli.run import Run

    picture(tmp_path / "a.png")
    model = ["model=timm", f"model.weights={timm_file}", *(f"+model.options.{k}={v}" for k, v in TINY.items())]
    where = ["data=pictures", f"data.root={tmp_path}", f"root={tmp_path / 'out'}", "explainer=saliency"]
    first = Run(composed("explain", *model, *where, "data.size=64", "data.resize=80"), "explain")
    first.claim()
    first.store.predictions_file.touch()
    again = Run(composed("explain", *model, *where), "explain")
    assert (again.cfg.data.size, again.cfg.data.resize) == (64, 80)
    again.check_folder()


@pytest.mark.kind("timm: training folds")
def test_given_weights_are_not_trained_and_others_are(tmp_path, timm_file):
    from lit_xai.cli.run import Run

    options = ["model=timm", "data=digits", f"root={tmp_path}", "explainer=saliency"]
    assert Run(composed("train", *options), "train").trainable
    assert Run(composed("train", *options, f"model.pretrained={timm_file}"), "train").trainable
    assert not Run(composed("train", *options, f"model.weights={timm_file}"), "train").trainable


def test_a_module_is_built_from_its_saved_configuration(tmp_path, timm_file):
    saved(tmp_path / "hf")
    shape = {"channels": 3, "classes": 0, "side": 0}
    assert isinstance(
        build_module({"_target_": "lit_xai.models.HuggingFace", "path": str(tmp_path / "hf")}, shape), HuggingFace
    )
