"""A checkpoint as a classifier: the model card's three uses, equal to birder's."""

import numpy as np
import pytest
import torch
from PIL import Image

from ropevit_mmdet import RoPEViT
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier
from tests.oracle import (
    RGB_STATS,
    SMALL,
    birder_net,
    fill,
    relative_error,
    seeded_images,
    write_checkpoint,
)

pytest.importorskip("birder")

CUT = dict(num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=48)
HEADS = {  # name -> overrides of SMALL
    "class token": {},
    "average": dict(class_token=False),
    "average, no special tokens": dict(class_token=False, num_reg_tokens=0),
    "norm after class token": dict(norm_after_pool=True),
    "norm after average, RMSNorm": dict(
        class_token=False, norm_after_pool=True, norm_layer_type="RMSNorm"
    ),
    "no norm": dict(post_norm=False),
    "no norm, although after the pool": dict(post_norm=False, norm_after_pool=True),
    "attention": dict(attn_pool_head=True),
    "attention, special tokens": dict(attn_pool_head=True, attn_pool_special_tokens=True),
    "attention, norm after pool": dict(attn_pool_head=True, norm_after_pool=True),
    "attention, heads, eps, activation": dict(
        attn_pool_head=True,
        attn_pool_num_heads=8,
        attn_pool_norm_eps=1e-2,
        attn_pool_act_layer_type="quick_gelu",
    ),
    "attention, learned activation": dict(
        attn_pool_head=True, attn_pool_act_layer_type="prelu", mlp_layer_type="SwiGLU_FFN"
    ),
    "probing": dict(attn_pool_head=True, attn_pool_type="EfficientProbing"),
    "probing, heads, special tokens": dict(
        attn_pool_head=True,
        attn_pool_type="EfficientProbing",
        attn_pool_num_heads=4,
        attn_pool_special_tokens=True,
    ),
    "no bias": dict(head_bias=False),
    "two layers": dict(mlp_head=True),
    "two layers, no bias": dict(mlp_head=True, head_bias=False),
    "several maps": dict(out_indices=[0, 1]),
}


def written(directory, name="rope_vit_reg4_b14", *, config, size=(70, 70), num_classes=7):
    """A small network of birder, and the file that birder wrote of it."""
    net = birder_net(name, config, size=size, num_classes=num_classes)
    return net, write_checkpoint(net, directory, config=config)


def check_three_uses(ours, net, sizes):
    """Ours against birder's, in float64 and in float32."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        ours, net = ours.to(dtype), net.to(dtype)
        for size in sizes:
            images = seeded_images((2, 3, *size)).to(dtype)
            with torch.no_grad():
                embedding = net.embedding(images)
                logits = net.classify(embedding)
            probabilities = ours.probabilities(images)
            assert probabilities.shape == (2, net.num_classes)
            torch.testing.assert_close(probabilities, logits.softmax(1), rtol=0, atol=tolerance)
            assert relative_error(ours.embedding(images), embedding) <= tolerance
            assert relative_error(ours(images), logits) <= tolerance
            last = list(net.return_stages)[-1]
            assert set(ours.detection_features(images)) == {"neck"}
            neck = ours.detection_features(images)["neck"]
            with torch.no_grad():
                stage = net.detection_features(images)[last]
                expected = net.norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert relative_error(neck, expected) <= tolerance


@pytest.mark.parametrize("head", HEADS)
def test_every_head_equals_birder(tmp_path, head):
    config = SMALL | CUT | HEADS[head]
    net, path = written(tmp_path, config=config)
    check_three_uses(load_classifier(path, "rope_vit_reg4_b14"), net, [(70, 70), (112, 84)])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A network with a name in birder, which the file identifies."""
    return written(tmp_path_factory.mktemp("tiny"), "rope_vit_reg1_t14", config=None)


def test_arch_is_inferred_from_the_file(tiny):
    net, path = tiny
    ours = load_classifier(path)
    check_three_uses(ours, net, [(70, 70)])
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert ours.class_names == tuple(f"class_{i}" for i in range(7))


def test_preprocessing_equals_birder(tiny, tmp_path):
    from birder.data.transforms.classification import inference_preset

    values = np.random.RandomState(0).randint(0, 256, (90, 150, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    expected = inference_preset((70, 70), RGB_STATS)(Image.open(tmp_path / "image.png"))
    ours = load_classifier(tiny[1])
    rotated = Image.fromarray(values).rotate(90, expand=True)
    rotated.getexif()[0x0112] = 6  # display rotated by 90 degrees clockwise
    for image in (tmp_path / "image.png", Image.fromarray(values), rotated):
        torch.testing.assert_close(ours.preprocess(image), expected[None])


def test_a_file_without_classes_has_an_embedding_and_a_feature_map(tmp_path):
    net, path = written(tmp_path, "rope_vit_reg1_t14", config=None, num_classes=0)
    ours, images = load_classifier(path), seeded_images((1, 3, 70, 70)).float()
    assert ours.num_classes == 0 and ours.class_names == ()
    with pytest.raises(ValueError, match="has no classes"):
        ours.probabilities(images)
    with torch.no_grad():
        expected = net.float().embedding(images)
    assert relative_error(ours.embedding(images), expected) <= 1e-5
    assert ours.detection_features(images)["neck"].shape == (1, 192, 5, 5)


def test_an_architecture_without_a_name_needs_a_dict(tmp_path):
    net, path = written(tmp_path, config=SMALL | CUT)
    content = torch.load(path, weights_only=True)
    del content["config"]
    torch.save(content, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"no architecture that has a name.*hidden_dim=64"):
        load_classifier(tmp_path / "bare.pt")
    check_three_uses(load_classifier(tmp_path / "bare.pt", SMALL | CUT), net, [(70, 70)])


@pytest.mark.parametrize(
    "key", ["attn_pool.extra", "classifier.extra", "embedding_norm.bias", "attn_pool.q.bias"]
)
def test_the_head_is_strict_both_ways(tmp_path, key):
    config = SMALL | CUT | dict(attn_pool_head=True)
    _, path = written(tmp_path, config=config)
    content = torch.load(path, weights_only=True)
    if key in content["state"]:
        del content["state"][key]
    else:
        content["state"][key] = torch.zeros(1)
    torch.save(content, path)
    with pytest.raises(ValueError, match=key):
        load_classifier(path, "rope_vit_reg4_b14")


def test_other_checkpoints_are_not_classifiers(tmp_path):
    torch.save({"state_dict": fill(RoPEViT(SMALL)).state_dict()}, tmp_path / "epoch_1.pth")
    with pytest.raises(ValueError, match="no classifier"):
        load_classifier(tmp_path / "epoch_1.pth")


def test_class_indices_with_gaps_are_refused(tiny, tmp_path):
    content = torch.load(tiny[1], weights_only=True)
    content["class_to_idx"] = {"one": 0, "two": 5}
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="7 classes"):
        load_classifier(tmp_path / "odd.pt")
