"""Checkpoints that run code where they are resumed, or claim more memory than they have bytes."""

import os
import pickle

import numpy as np
import pytest
import torch

from ropevit_mmdet.compat.reading import read_torch_file
from ropevit_mmdet.deploy.publish import publish
from ropevit_mmdet.evaluation.result_file import read_results
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.detector_checkpoint import read_detector_checkpoint
from tests.malformed_files import Payload, saved
from tests.test_compat.test_checkpoint import train

ONE = torch.ones(4)
HUGE = 10**9  # numbers


def test_the_config_in_a_checkpoint_does_not_run_where_it_is_resumed(tmp_path):
    train(tmp_path / "run", 1)
    path, marker = tmp_path / "run" / "epoch_1.pth", tmp_path / "ran"
    content = torch.load(path, weights_only=True)
    content["meta"]["config"] = f"import os\nos.mkdir({str(marker)!r})\n"
    torch.save(content, path)
    assert train(tmp_path / "run", 2, resume=True).epoch == 2
    assert not marker.exists()

    publish(path, tmp_path / "published.pth")
    (published,) = tmp_path.glob("published-*.pth")
    assert "config" not in torch.load(published, weights_only=True)["meta"]


def array(*arguments):
    """What pickles as the call of numpy's array class."""
    return Payload(np.ndarray, *arguments)


CLAIMS = {
    "a bytearray": (Payload(bytearray, HUGE), "is refused: it holds a bytearray"),
    "an expanded tensor": (ONE.expand(HUGE, 4), "'x' claims more numbers than the file holds"),
    "an overlapping tensor": (
        ONE.as_strided((2, 4), (0, 1)).as_strided((3, 2), (1, 1)),
        "'x' claims more numbers than the file holds",
    ),
    "a tensor of a length": (Payload(torch.Tensor, HUGE), "'x' claims more numbers"),
    "a tensor of an old kind": (Payload(torch.FloatTensor, HUGE), "'x' claims more numbers"),
    "an array": (array((HUGE,), "f4"), r"is refused: .*\(GLOBAL numpy\.ndarray\)"),
    "a sparse tensor": (torch.eye(3).to_sparse(), "'x' is no dense tensor of numbers"),
    "a tensor of no device": (torch.ones(3, device="meta"), "'x' is no dense tensor of numbers"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("place", ["state_dict", "optimizer", "meta"])
def test_claims_are_refused_wherever_they_are(claim, place, tmp_path):
    value, words = CLAIMS[claim]
    content = dict(state_dict=dict(weight=ONE), meta={}, optimizer={})
    content[place]["x"] = value
    path = tmp_path / "claims.pth"
    torch.save(content, path)
    for read in (
        read_torch_file,
        read_checkpoint,
        lambda path: read_detector_checkpoint(str(path)),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_claims_without_an_archive_are_refused(tmp_path):
    """A bare pickle of 60 bytes, and the older format, whose sizes are in its pickle."""
    path = tmp_path / "claims.pth"
    for content, words in (
        (pickle.dumps(bytearray(5), protocol=2), "holds a bytearray"),
        (saved(ONE.expand(HUGE, 4), _use_new_zipfile_serialization=False), "more numbers than the"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_torch_file(path)


def test_shared_storages_and_arrays_are_no_claims(tmp_path):
    large = torch.arange(1000.0)
    content = dict(a=large, b=large[10:], c=large.view(10, 100).T, d=np.arange(1000), e=large[:0])
    content |= dict(again=[content["a"], content["d"]], scalar=np.float64(3))
    torch.save(content, tmp_path / "sound.pth")
    found = read_torch_file(tmp_path / "sound.pth")
    assert torch.equal(found["c"], content["c"]) and os.path.getsize(tmp_path / "sound.pth") < 20000


def results(**found):
    """The bytes of a result file of one image."""
    found = dict(bboxes=np.zeros((1, 4)), labels=np.zeros(1), scores=np.zeros(1)) | found
    return pickle.dumps([dict(img_id=1, pred_instances=found)], protocol=2)


EMPTY = np.zeros(0, "f4").__reduce__()[0]
STORAGE = torch.storage._load_from_bytes
RESULT_CLAIMS = {
    "an expanded tensor": torch.ones(1).expand(HUGE),
    "an array": array((HUGE,), "f4"),
    "an array of no content": Payload(EMPTY, np.ndarray, (HUGE,), b"b"),
    "a storage of an older format": Payload(
        STORAGE, saved(Payload(torch.FloatStorage, HUGE), _use_new_zipfile_serialization=False)
    ),
    "a bytearray in a storage": Payload(
        STORAGE, saved(bytearray(5), _use_new_zipfile_serialization=False)
    ),
    "a storage in an archive": Payload(STORAGE, saved(torch.ones(3).untyped_storage())),
}


@pytest.mark.parametrize("claim", RESULT_CLAIMS)
@pytest.mark.parametrize("key", ["labels", "unread"])
def test_claims_in_results_are_refused(claim, key, tmp_path):
    path = tmp_path / "results.pkl"
    path.write_bytes(results(**{key: RESULT_CLAIMS[claim]}))
    assert path.stat().st_size < 5000
    with pytest.raises(ValueError, match=r"results\.pkl is (refused|truncated or no pickle)"):
        read_results(path)


def test_results_of_tensors_that_share_a_storage_are_read(tmp_path):
    boxes = torch.rand(20, 5)
    path = tmp_path / "results.pkl"
    path.write_bytes(results(bboxes=boxes[:, :4], scores=boxes[:, 4], labels=torch.zeros(20)))
    (found,) = read_results(path)
    np.testing.assert_array_equal(found.boxes, boxes[:, :4].numpy())
    np.testing.assert_array_equal(found.scores, boxes[:, 4].numpy())
