"""Networks that are not plain convolutions: which layer Grad-CAM reads, where tokens lie, what attention carries, what captum gets wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from lit_xai.errors import UsageError
from lit_xai.explainers import AttentionRollout, Captum, GradCAM, GradCAMPlusPlus, GradientRollout
from lit_xai.explainers.cam import features
from lit_xai.rng import SampleRng
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import ConvNeXt, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig

from conftest import seeded
from test_contracts import CONFIGS, build

timm = pytest.importorskip("timm")
SIDE = 32


def vit(**options: Any) -> nn.Module:
    return VisionTransformer(
        image_size=SIDE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3, **options
    )


def swin(**options: Any) -> nn.Module:
    return SwinTransformer(
        patch_size=[2, 2], embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=[2, 2], num_classes=3, **options
    )


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=3)


def timms(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=3, img_size=SIDE, **options)


SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


class Alternate(nn.Module):
    """A transformer by hand: dense patches where `conv` is off, tokens first where `sequence` is on, the class token read."""

    def __init__(self, conv: bool = True, sequence: bool = False, norm: bool = True) -> None:
        super().__init__()
        self.sequence = sequence
        self.embed = nn.Conv2d(3, 24, 8, 8) if conv else nn.Linear(192, 24)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(0.5 * torch.randn(1, 17, 24))
        kind = nn.LayerNorm if norm else nn.Identity
        self.first, self.second, self.last = kind(24), kind(24), kind(24)
        self.mix1, self.mix2 = (nn.MultiheadAttention(24, 2, batch_first=not sequence) for _ in range(2))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.embed, nn.Conv2d):
            patches = self.embed(x).flatten(2).transpose(1, 2)
        else:
            patches = self.embed(x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2))
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.place
        x = x.transpose(0, 1) if self.sequence else x
        for norm, mix in ((self.first, self.mix1), (self.second, self.mix2)):
            y = norm(x)
            x = x + mix(y, y, y, need_weights=False)[0]
        x = self.last(x)
        return self.head(x[0] if self.sequence else x[:, 0])


FAMILIES: dict[str, tuple[Any, str]] = {  # how it is made, and the layer that Grad-CAM reads
    "ViT": (vit, "encoder.layers.encoder_layer_1.ln_1"),
    "Swin": (swin, "norm"),
    "ConvNeXt": (convnext, "features.3.0.block.2"),
    "timm ViT": (partial(timms, "vit_tiny_patch16_224", **SMALL), "blocks.1.norm1"),
    "DeiT, two tokens": (partial(timms, "deit_tiny_distilled_patch16_224", **SMALL), "blocks.1.norm1"),
    "registers": (partial(timms, "vit_small_patch14_reg4_dinov2", **SMALL), "blocks.1.norm1"),
    "no class token": (
        partial(timms, "vit_tiny_patch16_224", **SMALL, class_token=False, global_pool="avg"),
        "blocks.1.norm2",
    ),
    "timm Swin": (
        partial(
            timms,
            "swin_tiny_patch4_window7_224",
            embed_dim=16,
            depths=(1, 1),
            num_heads=(2, 2),
            window_size=4,
            patch_size=2,
        ),
        "norm",
    ),
    "Mixer": (lambda: timm.models.mlp_mixer.MlpMixer(3, SIDE, patch_size=8, num_blocks=2, embed_dim=32), "norm"),
    "CaiT": (
        partial(timms, "cait_xxs24_224", patch_size=8, embed_dim=32, depth=1, num_heads=2),
        "blocks_token_only.1.norm1",
    ),
    "dense patches": (partial(Alternate, conv=False), "second"),
    "tokens first": (partial(Alternate, sequence=True), "second"),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def made(make: Any, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make()
        for m in network.modules():  # heads that start at zero would tell nothing
            if isinstance(m, nn.Linear) and not bool(m.weight.any()):
                nn.init.normal_(m.weight, std=0.5)
    return network.eval()


# ------------------------------------------------------------------------------------------------------------- Grad-CAM


@every_family
@pytest.mark.kind("transformers: the layer that Grad-CAM reads")
def test_gradcam_chooses_the_last_layer_that_the_logits_read_at_patches(family):
    make, layer = FAMILIES[family]
    assert GradCAM().resolve(made(make), torch.rand(2, 3, SIDE, SIDE, generator=seeded(1)))["layer"] == layer


@every_family
@pytest.mark.kind("transformers: where Grad-CAM points")
def test_what_changes_in_a_corner_of_the_image_changes_in_that_corner_of_what_is_read(family):
    network, targets = made(FAMILIES[family][0]), torch.tensor([0])
    with torch.no_grad():  # nothing but attention carries anything from place to place
        for name, m in network.named_modules():
            if isinstance(m, nn.Conv2d) and m.groups > 1:
                nn.init.dirac_(m.weight, m.groups)
            if name.endswith("mlp_tokens.fc2"):
                m.weight.zero_()
    black = torch.zeros(1, 3, SIDE, SIDE)
    bright = black.clone()
    bright[:, :, :8, 24:] = torch.rand(3, 8, 8, generator=seeded(1))
    read = [features(network, x, targets, None, "logit").activation for x in (black, bright)]
    change = (read[1] - read[0]).norm(dim=1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert (row, column) == (0, change.shape[1] - 1)


@every_family
@pytest.mark.kind("transformers: Grad-CAM by hand")
def test_gradcam_of_a_transformer_by_hand(family):
    make, layer = FAMILIES[family]
    network, images, targets = made(make), torch.rand(3, 3, SIDE, SIDE, generator=seeded(1)), torch.tensor([0, 2, 1])
    kept: list[Tensor] = []
    handle = network.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out))
    logits = network(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), kept[0])
    a, g = kept[0].detach(), gradient
    if family == "tokens first":
        a, g = a.transpose(0, 1), g.transpose(0, 1)
    if a.ndim == 3:
        side = math.isqrt(a.shape[1])
        a, g = (t[:, a.shape[1] - side * side :].unflatten(1, (side, side)) for t in (a, g))
    small = torch.einsum("bk,buvk->buv", g.mean((1, 2)), a).relu()
    expected = F.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    assert expected.count_nonzero() > 0
    assert torch.allclose(GradCAM()(network, images, targets), expected, atol=1e-6)


@pytest.mark.kind("transformers: the layer that Grad-CAM reads")
def test_the_layer_does_not_depend_on_batch_or_class():
    network, images = made(vit), torch.rand(17, 3, SIDE, SIDE, generator=seeded(1))
    targets = torch.arange(17) % 3
    together = GradCAM()(network, images, targets)  # as many images as tokens
    alone = torch.cat([GradCAM()(network, images[i : i + 1], targets[i : i + 1]) for i in range(17)])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.kind("transformers: tokens first")
def test_as_many_images_as_tokens_are_told_apart_where_tokens_come_first():
    network, images = made(partial(Alternate, sequence=True)), torch.rand(17, 3, SIDE, SIDE, generator=seeded(1))
    targets = torch.arange(17) % 3
    assert torch.allclose(
        GradCAM()(network, images, targets)[:3], GradCAM()(network, images[:3], targets[:3]), atol=1e-6
    )


@pytest.mark.kind("channels-last layer")
def test_a_named_layer_whose_channels_come_last_is_put_back_on_its_grid():
    network, images = made(swin), torch.rand(2, 3, SIDE, SIDE, generator=seeded(1))
    targets = torch.tensor([0, 1])
    kept: list[Tensor] = []
    block = network.features[3][0]
    handle = block.register_forward_hook(lambda m, a, out: kept.append(out))
    (gradient,) = torch.autograd.grad(network(images).gather(1, targets[:, None]).sum(), kept[0])
    handle.remove()
    small = torch.einsum("bk,buvk->buv", gradient.mean((1, 2)), kept[0].detach()).relu()
    expected = F.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(GradCAM(layer="features.3.0")(network, images, targets), expected, atol=1e-6)


@pytest.mark.kind("transformers: no layer fits")
@pytest.mark.parametrize("make", [partial(Alternate, norm=False), partial(timms, "resmlp_12_224")])
def test_the_patch_embedding_is_never_read(make):
    with pytest.raises(UsageError, match="no layer of this network has a map"):
        GradCAM()(made(make), torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


@pytest.mark.kind("transformers: no layer fits")
def test_the_only_convolution_of_a_network_that_normalises_after_pooling_is_read():
    parts = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 3)
    assert GradCAM().resolve(made(lambda: nn.Sequential(*parts)), torch.rand(1, 3, SIDE, SIDE)) == {"layer": "0"}


@pytest.mark.kind("transformers: no layer fits")
def test_a_named_norm_that_only_the_class_token_leaves_is_refused():
    with pytest.raises(UsageError, match="zero at every position"):
        GradCAM(layer="encoder.ln")(made(vit), torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


class Twice(nn.Module):
    """A convolution that sees an image and its mirror image."""

    def __init__(self, joined: bool = False) -> None:
        super().__init__()
        self.joined, self.conv = joined, nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.joined:
            one, other = self.head(self.conv(torch.cat([x, x.flip(-1)])).relu().mean((2, 3))).chunk(2)
            return one + other
        return sum(self.head(self.conv(v).relu().mean((2, 3))) for v in (x, x.flip(-1)))  # type: ignore[return-value]


class Aside(nn.Module):
    """A convolution that runs last and whose result nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.used(x).relu()
        self.unused(y)
        return self.head(y.mean((2, 3)))


@pytest.mark.kind("unused layers")
def test_a_convolution_that_the_logits_do_not_use_is_passed_over():
    assert GradCAM().resolve(made(Aside), torch.rand(1, 3, SIDE, SIDE)) == {"layer": "used"}


@pytest.mark.kind("half precision")
@pytest.mark.parametrize("explainer", [GradCAM(), AttentionRollout(), GradientRollout()], ids=str)
def test_maps_of_a_transformer_in_bfloat16_are_near_those_in_float32(explainer):
    network, images, targets = made(vit), torch.rand(2, 3, SIDE, SIDE, generator=seeded(1)), torch.tensor([0, 2])
    expected = explainer(network, images, targets)
    maps = explainer(network.bfloat16(), images.bfloat16(), targets)
    assert float((maps.float() - expected).abs().max()) < 0.1 * float(expected.max())


@pytest.mark.kind("a layer that runs twice in one pass")
@pytest.mark.parametrize("kind", [GradCAM, GradCAMPlusPlus])
def test_a_layer_that_runs_twice_is_refused_until_its_run_is_named(kind):
    network, images, targets = made(Twice), torch.rand(2, 3, 8, 8, generator=seeded(1)), torch.tensor([0, 2])
    with pytest.raises(UsageError, match=r"conv runs 2 times in one pass.*conv#0 .. conv#1"):
        kind()(network, images, targets)
    first, second = (kind(layer=f"conv#{i}")(network, images, targets) for i in (0, 1))
    mirrored = kind(layer="conv#0")(network, images.flip(-1), targets)
    assert first.count_nonzero() > 0
    assert torch.allclose(second, mirrored, atol=1e-6)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.kind("a layer that runs twice in one pass")
def test_a_layer_that_sees_more_images_than_it_was_given_is_refused():
    with pytest.raises(UsageError, match=r"shape \(4, 6, 8, 8\) for 2 images"):
        GradCAM()(made(partial(Twice, joined=True)), torch.rand(2, 3, 8, 8), torch.tensor([0, 2]))


class Checkpointed(nn.Module):
    """A network whose body is computed again in the backward pass."""

    def __init__(self, body: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


WRAPPED = {
    "torch.compile": partial(torch.compile, backend="eager"),
    "DataParallel": nn.DataParallel,
    "checkpoint": partial(Checkpointed, reentrant=False),
}


@pytest.mark.kind("wrapped models")
@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "used before"])
@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("explainer", [GradCAM(), GradientRollout(), AttentionRollout()], ids=str)
def test_maps_of_a_wrapped_model_are_those_of_the_model(wrap, warm, explainer):
    network, images, targets = made(vit), torch.rand(2, 3, SIDE, SIDE, generator=seeded(1)), torch.tensor([0, 2])
    expected, wrapped = explainer(network, images, targets), WRAPPED[wrap](network)
    if warm:
        wrapped(images)
    assert torch.allclose(explainer(wrapped, images, targets), expected, atol=1e-6)


@pytest.mark.kind("wrapped models")
@pytest.mark.parametrize("explainer", [GradCAM(), AttentionRollout()], ids=str)
@pytest.mark.parametrize(
    ("wrap", "match"),
    [
        (partial(Checkpointed, reentrant=True), "use_reentrant=False"),
        (
            lambda m: torch.jit.trace(m, torch.rand(1, 3, SIDE, SIDE), check_trace=False),
            "pass the module it was made from",
        ),
    ],
    ids=["checkpoint", "traced"],
)
def test_a_wrapped_model_whose_layers_cannot_be_read_is_refused_with_the_mend(explainer, wrap, match):
    with pytest.raises(UsageError, match=match):
        explainer(wrap(made(vit)), torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


# ------------------------------------------------------------------------------------------------------------ attention


class TwoLayers(nn.Module):
    """Two layers of attention whose weights can be worked out from its own parameters."""

    def __init__(self, how: str = "softmax", mean: bool = False) -> None:
        super().__init__()
        self.how, self.mean = how, mean
        self.embed, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.qkv = nn.ModuleList([nn.Linear(8, 24) for _ in range(2)])
        self.head = nn.Linear(8, 3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(x).flatten(2).transpose(1, 2)
        t = t if self.mean else torch.cat([self.token.expand(len(t), -1, -1), t], 1)
        for qkv in self.qkv:
            q, k, v = (3 * qkv(t)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            if self.how == "fused":
                out = F.scaled_dot_product_attention(q, k, v)
            else:
                a = (q @ k.transpose(-1, -2) / 2).softmax(-1)
                if self.how == "kept":
                    a.retain_grad()
                    self.seen.append(a)
                out = a @ v
            t = t + out.transpose(1, 2).flatten(2)
        return self.head(t.mean(1) if self.mean else t[:, 0])


def rollouts(mean: bool, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both rollouts by hand, on the grid of 4 x 4 patches enlarged to the image."""
    network = made(partial(TwoLayers, "kept", mean))
    network(images).gather(1, targets[:, None]).sum().backward()
    (a1, g1), (a2, g2) = ((a.detach(), a.grad) for a in network.seen)
    unit = torch.eye(a1.shape[-1])
    plain = (a2.mean(1) + unit) / 2 @ ((a1.mean(1) + unit) / 2)
    one, two = (a1 * g1).clamp(min=0).mean(1), (a2 * g2).clamp(min=0).mean(1)
    weighted = unit + one + two @ (unit + one)
    rows = [r.mean(1) if mean else r[:, 0, 1:] for r in (plain, weighted)]
    large = [
        F.interpolate(r.view(-1, 1, 4, 4), size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0] for r in rows
    ]
    return large[0], large[1]


@pytest.mark.kind("transformers: rollout by hand")
@pytest.mark.parametrize("mean", [False, True], ids=["class token", "mean of patches"])
@pytest.mark.parametrize("how", ["softmax", "fused"])
def test_rollouts_of_two_layers_by_hand(how, mean):
    network = made(partial(TwoLayers, how, mean))
    images, targets = torch.rand(3, 3, SIDE, SIDE, generator=seeded(1)), torch.tensor([0, 2, 1])
    plain, weighted = rollouts(mean, images, targets)
    assert torch.allclose(AttentionRollout()(network, images, targets), plain, atol=1e-5)
    assert torch.allclose(GradientRollout()(network, images, targets), weighted, atol=1e-5)


@pytest.mark.kind("transformers: rollout by hand")
def test_rollout_of_torchvisions_transformer_is_that_of_its_attention_modules():
    network, images = made(vit), torch.rand(2, 3, SIDE, SIDE, generator=seeded(1))
    seen: list[Tensor] = []
    for block in network.encoder.layers:
        mix = block.self_attention
        mix.register_forward_hook(
            lambda m, a, out, mix=mix: seen.append(nn.MultiheadAttention.forward(mix, *a)[1].detach())
        )
    network(images)
    unit = torch.eye(17)
    rows = ((seen[1] + unit) / 2 @ ((seen[0] + unit) / 2))[:, 0, 1:].view(2, 1, 4, 4)
    expected = F.interpolate(rows, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    for m in network.modules():
        m._forward_hooks.clear()
    assert torch.allclose(AttentionRollout()(network, images, torch.tensor([0, 0])), expected, atol=1e-5)


@pytest.mark.kind("transformers: rollout refused")
@pytest.mark.parametrize(
    ("family", "match"),
    [("Swin", "windows"), ("CaiT", "a class's own"), ("Mixer", "no softmax"), ("ConvNeXt", "no softmax")],
)
def test_rollout_is_refused_where_not_all_tokens_attend_to_all(family, match):
    with pytest.raises(UsageError, match=match):
        AttentionRollout()(made(FAMILIES[family][0]), torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


class Mirrored(nn.Module):
    """A transformer that sees an image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = TwoLayers()

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + self.inside(x.flip(-1))


@pytest.mark.kind("a layer that runs twice in one pass")
def test_rollout_of_two_passes_in_one_is_refused():
    with pytest.raises(UsageError, match="runs twice in one pass"):
        GradientRollout()(made(Mirrored), torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


# --------------------------------------------------------------------------------------------------------------- captum

CHANGED = ("DeepLift", "DeepLiftShap", "GuidedBackprop", "Deconvolution", "LRP")  # methods that change gradients


def plain_network(act: Any = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), act(), nn.Conv2d(6, 6, 3, 2), act(), nn.Flatten(), nn.Linear(294, 3))


class Residual(nn.Module):
    """A sum of branches, whose ReLUs are modules of their own, one for all, or a function."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv1, self.conv2 = how, nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1)
        self.act1, self.act2, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        act1 = F.relu if self.how == "function" else self.act1
        act2 = {"function": F.relu, "one": self.act1, "own": self.act2}[self.how]
        y = act1(self.conv1(x))
        return self.head(act2(y + self.conv2(y)).mean((2, 3)))


@pytest.mark.kind("captum on transformers")
@pytest.mark.parametrize("method", CHANGED)
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (vit, "attention"),
        (swin, "attention"),
        (partial(timms, "vit_tiny_patch16_224", **SMALL), "attention"),
        (convnext, "GELU"),
        (partial(plain_network, nn.SiLU), "SiLU"),
        (partial(plain_network, nn.GELU), "GELU"),
    ],
    ids=["ViT", "Swin", "timm", "ConvNeXt", "SiLU", "GELU"],
)
def test_methods_whose_rules_captum_lacks_are_refused_by_name(method, make, match):
    with pytest.raises(UsageError, match=match):
        Captum(method)(made(make), torch.rand(2, 3, SIDE, SIDE), torch.tensor([0, 1]))


@pytest.mark.kind("wrapped models")
@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("method", ["DeepLift", "GuidedBackprop"])
def test_captums_rules_hold_in_a_wrapped_model(method, wrap):
    network, images, targets = (
        made(plain_network),
        torch.rand(2, 3, SIDE, SIDE, generator=seeded(1)),
        torch.tensor([0, 2]),
    )
    expected, wrapped = Captum(method)(network, images, targets), WRAPPED[wrap](network)
    wrapped(images)
    assert torch.allclose(Captum(method)(wrapped, images, targets), expected, atol=1e-6)


@pytest.mark.kind("wrapped models")
@pytest.mark.parametrize(
    ("captum", "wrap", "match"),
    [
        (Captum("Saliency"), partial(Checkpointed, reentrant=True), "use_reentrant=False"),
        (Captum("GuidedBackprop"), torch.jit.script, "pass the module it was made from"),
        (Captum("LayerGradCam", layer="0"), torch.jit.script, "pass the module it was made from"),
    ],
    ids=["checkpoint", "rules", "layer"],
)
def test_captum_on_a_wrapped_model_that_it_cannot_see_into_is_refused_with_the_mend(captum, wrap, match):
    with pytest.raises(UsageError, match=match):
        captum(wrap(made(plain_network)), torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


@pytest.mark.kind("captum on residual sums")
@pytest.mark.parametrize(
    ("how", "method", "match"),
    [
        ("own", "DeepLift", None),
        ("own", "GuidedBackprop", None),
        ("own", "LRP", "residual"),
        ("one", "DeepLift", "does not take this network"),
        ("one", "GuidedBackprop", None),
        ("function", "DeepLift", "as a function"),
        ("function", "Deconvolution", "as a function"),
    ],
)
def test_residual_sums_are_refused_where_captum_is_wrong_and_only_there(how, method, match):
    network, images, targets = made(partial(Residual, how)), torch.rand(2, 3, SIDE, SIDE), torch.tensor([0, 1])
    if match is None:
        assert bool(Captum(method)(network, images, targets).any())
    else:
        with pytest.raises(UsageError, match=match):
            Captum(method)(network, images, targets)


@pytest.mark.kind("captum on residual sums")
def test_guided_backpropagation_through_layer_norms_is_that_of_its_relus():
    layers = nn.Conv2d(3, 6, 3, 2), nn.LayerNorm([6, 15, 15]), nn.ReLU(), nn.Flatten(), nn.Linear(1350, 3)
    network, targets = made(lambda: nn.Sequential(*layers)), torch.tensor([0, 1])
    images = torch.rand(2, 3, SIDE, SIDE, generator=seeded(1), requires_grad=True)
    before = network[:2](images)
    (above,) = torch.autograd.grad(network[2:](before).gather(1, targets[:, None]).sum(), before, retain_graph=True)
    (gradient,) = torch.autograd.grad(before, images, above.relu())
    maps = Captum("GuidedBackprop")(network, images.detach(), targets)
    assert torch.allclose(maps, gradient.mean(1), atol=1e-6)


@pytest.mark.kind("captum on residual sums")
@pytest.mark.parametrize("make", [plain_network, partial(Residual, "own")], ids=["plain", "residual"])
def test_deep_lift_that_is_taken_adds_up_to_the_difference_of_the_logits(make):
    network, images = made(make), torch.rand(2, 3, SIDE, SIDE, generator=seeded(1))
    total = 3 * Captum("DeepLift")(network, images, torch.tensor([0, 1])).sum((1, 2))
    with torch.no_grad():
        difference = (network(images) - network(torch.zeros_like(images)))[torch.arange(2), torch.arange(2)]
    assert torch.allclose(total, difference, atol=1e-5)


@pytest.mark.kind("captum on residual sums")
def test_deep_lift_that_does_not_add_up_is_refused():
    network = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Square(), nn.Flatten(), nn.Linear(3600, 3)))
    with pytest.raises(UsageError, match="miss the sum"):
        Captum("DeepLift")(network, torch.rand(1, 3, SIDE, SIDE), torch.tensor([0]))


class Square(nn.Module):
    """An operation that no list names."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square()


# ------------------------------------------------------------------------------------------- every method, every network

LARGE = {  # side, and how it is made
    "vit_b_16": (64, lambda: torchvision.models.vit_b_16(image_size=64, num_classes=3)),
    "swin_t": (64, lambda: torchvision.models.swin_t(num_classes=3)),
    "convnext_tiny": (64, lambda: torchvision.models.convnext_tiny(num_classes=3)),
    "googlenet": (64, lambda: torchvision.models.googlenet(num_classes=3, init_weights=False, aux_logits=False)),
    "inception_v3": (96, lambda: torchvision.models.inception_v3(num_classes=3, init_weights=False)),
    "densenet121": (64, lambda: torchvision.models.densenet121(num_classes=3)),
    "efficientnet_v2_s": (64, lambda: torchvision.models.efficientnet_v2_s(num_classes=3)),
    **{
        name: (side, partial(timm.create_model, name, pretrained=False, num_classes=3, img_size=side))
        for name, side in {
            "vit_tiny_patch16_224": 64,
            "deit_tiny_distilled_patch16_224": 64,
            "swin_tiny_patch4_window7_224": 56,
            "mixer_s32_224": 64,
            "mixer_b16_224": 64,
            "cait_xxs24_224": 64,
        }.items()
    },
}
METHODS = sorted(f for g in ("*.yaml", "attention/*.yaml", "captum/*.yaml") for f in (CONFIGS / "explainer").glob(g))

LIGHTER: dict[str, Any] = {
    "occlusion": {"options": {"sliding_window_shapes": [3, 16, 16], "strides": [3, 16, 16]}},
    "sliding_patch": {"stride": 16},
    "kernel_shap": {"samples": 100},
    "lime": {"samples": 100},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.kind("transformers: every method")
def test_every_method_gives_finite_maps_of_every_network_or_says_why_not(name):
    side, make = LARGE[name]
    network, images, targets = made(make), torch.rand(2, 3, side, side, generator=seeded(1)), torch.tensor([0, 2])
    said = {}
    for file in METHODS:
        try:
            explainer = replace(build(file), **LIGHTER.get(file.stem, {}))
            maps = explainer(network, images, targets, SampleRng(0, (0, 1)))
        except UsageError as refused:
            said[file.stem] = str(refused)
            continue
        assert maps.shape == (2, side, side), file.stem
        assert bool(torch.isfinite(maps).all()), file.stem
    assert set(said) <= {"attention_rollout", "gradient_rollout", "deep_lift", "guided_backprop", "deconvolution"}, said
    assert not any("\n" in line for line in said.values())


@pytest.mark.kind("tokens and channels-last")
@pytest.mark.parametrize("explainer", [AttentionRollout(), GradientRollout()], ids=["rollout", "gradient rollout"])
def test_rollout_of_a_head_of_zeros_is_refused_and_not_nan(explainer):
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()  # its head begins at zero
    with pytest.raises(UsageError, match="do not depend on any token"):
        explainer(network, torch.rand(2, 3, 32, 32), torch.tensor([0, 1]))
